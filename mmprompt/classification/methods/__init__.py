"""The methods of classification by name. An object that satisfies `Method` works wherever a name does."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from mmprompt.classification.methods.auto import Auto
from mmprompt.classification.methods.base import ClassificationMethod, Combination
from mmprompt.classification.methods.coop import CoCoOp, CoOp, KgCoOp, ProGrad
from mmprompt.classification.methods.deep import IVLP, VPT, DeepText, MaPLe, PromptSRC
from mmprompt.classification.methods.heads import CLAP, CLIPAdapter, TaskRes, TipAdapter, TipAdapterF, ZeroShotProbe
from mmprompt.classification.methods.parts import DPSGD, AlignedGradient, Consistency, GaussianAverage, KnowledgeGuided
from mmprompt.classification.methods.pixels import PaddingPrompt, PatchPrompt
from mmprompt.classification.methods.solved import (
    GDA,
    LinearProbe,
    LPPlusPlus,
    NearestClassMean,
    TextAndMeans,
    TextProbe,
)
from mmprompt.classification.methods.tpt import TPT
from mmprompt.classification.methods.weights import Adapters, CLIPLoRA, FullTuning, LayerNormTuning, TwoStage
from mmprompt.classification.methods.zero_shot import ZeroShot, ZeroShotEnsemble
from mmprompt.core.method import refuse_same_settings
from mmprompt.errors import unknown_name

METHODS: dict[str, type[Any]] = {
    "coop": CoOp,
    "cocoop": CoCoOp,
    "kgcoop": KgCoOp,
    "prograd": ProGrad,
    "vpt": VPT,
    "padding-prompt": PaddingPrompt,
    "patch-prompt": PatchPrompt,
    "deep-text": DeepText,
    "ivlp": IVLP,
    "maple": MaPLe,
    "promptsrc": PromptSRC,
    "clip-lora": CLIPLoRA,
    "adapters": Adapters,
    "layer-norm": LayerNormTuning,
    "two-stage": TwoStage,
    "full-tuning": FullTuning,
    "zero-shot": ZeroShot,
    "zero-shot-ensemble": ZeroShotEnsemble,
    "nearest-class-mean": NearestClassMean,
    "text-and-means": TextAndMeans,
    "text-probe": TextProbe,
    "auto": Auto,
    "linear-probe": LinearProbe,
    "zero-shot-probe": ZeroShotProbe,
    "clap": CLAP,
    "gda": GDA,
    "lp-plus-plus": LPPlusPlus,
    "tip-adapter": TipAdapter,
    "tip-adapter-f": TipAdapterF,
    "clip-adapter": CLIPAdapter,
    "taskres": TaskRes,
    "tpt": TPT,
    "knowledge-guided": KnowledgeGuided,
    "consistency": Consistency,
    "aligned-gradient": AlignedGradient,
    "gaussian-average": GaussianAverage,
    "dp-sgd": DPSGD,
}


def method_types(name: str) -> list[type[Any]]:
    """Return the methods that a name such as `coop` or `coop+vpt` stands for."""
    parts = [part.strip() for part in name.split("+")]
    for part in parts:
        if part not in METHODS:
            raise unknown_name("method", part, METHODS)
    kinds = [METHODS[part] for part in parts]
    refuse_same_settings(kinds)
    return kinds


def make_method(name: str, settings: dict[str, Any] | None = None) -> ClassificationMethod:
    """Make a method of its name, `coop` or several joined by `+`, and the settings of all together."""
    types, given = method_types(name), dict(settings or {})
    made: list[ClassificationMethod] = []
    for kind in types:
        names = [field.name for field in fields(kind)]
        made.append(kind(**{field: given.pop(field) for field in names if field in given}))
    if given:
        known = [field.name for kind in types for field in fields(kind)]
        raise unknown_name(f"setting of {name}", next(iter(given)), known)
    return made[0] if len(made) == 1 else Combination(tuple(made))
