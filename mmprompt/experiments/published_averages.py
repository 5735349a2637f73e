"""Averages over the eleven sets as documents print them, for methods whose cards do not hold a row on every set.

All are of CLIP's ViT-B/16, in percent. Methods that learn from unlabelled pictures of the test classes are left out.
"""

from __future__ import annotations

from mmprompt.data.card import Reference

BACKBONE = "ViT-B/16"
MAPLE = "table in the README of MaPLe (github.com/muzairkhattak/multimodal-prompt-learning)"
PROMPTSRC = "table in the README of PromptSRC (github.com/muzairkhattak/PromptSRC)"
LIST = "Table 1 of the list github.com/zhengli97/Awesome-Prompt-Adapter-Learning-for-VLMs"
VAMP = "base-to-new table of VaMP (NeurIPS 2025, arXiv:2511.22664)"
FEW_SHOT = "few-shot tables of PromptSRC (Khattak et al. 2023)"

BASE_TO_NEW_AVERAGES = (
    ("CLIP", None, 69.34, 74.22, MAPLE),
    ("CoOp", 16, 82.69, 63.22, MAPLE),
    ("CoCoOp", 16, 80.47, 71.69, MAPLE),
    ("MaPLe", 16, 82.28, 75.14, MAPLE),
    ("Deep vision prompts", 16, 80.24, 73.43, MAPLE),
    ("Deep language prompts", 16, 81.72, 73.81, MAPLE),
    ("IVLP (5 epochs)", 16, 82.15, 74.07, MAPLE),
    ("IVLP (20 epochs)", 16, 84.21, 71.79, PROMPTSRC),
    ("PromptSRC", 16, 84.26, 76.10, PROMPTSRC),
    ("ProDA", 16, 81.56, 72.30, LIST),
    ("KgCoOp", 16, 80.73, 73.60, LIST),
    ("RPO", 16, 81.13, 75.00, LIST),
    ("TCP", 16, 84.13, 75.36, LIST),
    ("MMA", 16, 83.20, 76.80, LIST),
    ("2SFS", 16, 85.55, 75.48, LIST),
    ("HPT", 16, 84.32, 76.86, LIST),
    ("CoPrompt", 16, 84.00, 77.23, LIST),
    ("MMRL", 16, 85.68, 77.16, LIST),
    ("LLaMP", 16, 85.16, 77.71, LIST),
    ("VaMP", 16, 86.45, 78.67, VAMP),
)
FEW_SHOT_AVERAGES = (
    ("CoCoOp", {1: 66.79, 2: 67.65, 4: 71.21, 8: 72.96, 16: 74.90}),
    ("MaPLe", {1: 69.27, 2: 72.58, 4: 75.37, 8: 78.89, 16: 81.79}),
)

AVERAGES_OF_ELEVEN: tuple[Reference, ...] = (
    *(
        Reference(method, BACKBONE, "base-to-new", shots, {"base": base, "new": new}, source)
        for method, shots, base, new, source in BASE_TO_NEW_AVERAGES
    ),
    *(
        Reference(method, BACKBONE, "few-shot", shots, {"accuracy": accuracy}, f"{FEW_SHOT}; {method} as run there")
        for method, by_shots in FEW_SHOT_AVERAGES
        for shots, accuracy in by_shots.items()
    ),
)
