"""Training weights of a copy instead of a prompt, for comparison; and LoRA together with a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmprompt.core.file import save
from mmprompt.core.fit import refuse_changed
from mmprompt.core.header import check_new
from mmprompt.core.learned import Learned, Prompt
from mmprompt.core.soft import RECIPE, HardPrompt, PromptTuning
from mmprompt.files import make_folder, tensor_bytes, write_bytes
from mmprompt.language.data import TextData, load_texts
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.task import LanguageProblem, LanguageTask, epochs_of
from mmprompt.models.decoder.load import load_language_model
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.decoder.tuned import (
    Adapters,
    FullTuning,
    Lora,
    TunedModel,
    Tuning,
    describe,
    tuned_copy,
    write_lora,
)
from mmprompt.models.decoder.vectors import LM_INPUT
from mmprompt.training.callbacks import Callback
from mmprompt.training.loop import train
from mmprompt.training.recipe import Recipe
from mmprompt.training.seeds import derive_seed

RECIPES: dict[type, Recipe] = {
    Lora: replace(RECIPE, lr=2e-3),
    Adapters: replace(RECIPE, lr=2e-3),
    FullTuning: replace(RECIPE, lr=3e-5),
}
PROMPT_TIMES = PromptTuning.recipe.lr / RECIPES[Lora].lr
"""How much faster a prompt learns than the LoRA beside it."""
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class WeightsResult:
    """A finished training of weights: the tuned copy with the prompt beside it, what learned in it, one dict per epoch,
    how many numbers learned (those of a prompt among them), and the folder, None if nothing was written.
    """

    prompted: LanguagePredictor
    tuned: TunedModel
    history: list[dict[str, Any]]
    n_trained: int
    folder: Path | None


def fit_weights(
    data: TextData | LanguageTask | Path | str,
    tuning: Tuning,
    model: FrozenLanguageModel | str = "tiny",
    method: PromptTuning | None = None,
    out: Path | str | None = None,
    recipe: Recipe | None = None,
    seed: int = 1,
    callbacks: Sequence[Callback] = (),
) -> WeightsResult:
    """Train weights of a copy of a language model, alone or together with a soft prompt.

    Args:
        data: rows, the path of a JSONL file, or a task with template, verbalizer and start of its own.
        tuning: which weights.
        model: a model or the name of one; it stays as it is.
        method: of a soft prompt beside LoRA, None for none: then soft slots are taken out of the template.
        out: a new folder; with a prompt, both are kept there together.
        recipe: optimiser and schedule; that of the tuning by default.
        seed: of the order of the rows and of what is drawn.
        callbacks: called as training goes.
    Raises:
        UserError: something in the input cannot be; nothing is written then.
        RunFailed: the loss stopped being finite.
    """
    task = (load_texts(data) if isinstance(data, Path | str) else data).task()
    model = load_language_model(model) if isinstance(model, str) else model
    folder = None if out is None else Path(out)
    if folder is not None:
        check_new(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        tuned = tuned_copy(model, tuning)
    prompted = task.predictor(method or HardPrompt(), tuned.model, seed)
    if method is not None:  # the same vectors, which go so many times as far in a step
        values = prompted.vectors()[LM_INPUT].values.detach()
        unit = torch.tensor(model.embedding_rms * PROMPT_TIMES, device=values.device)
        prompt = Prompt(prompted.template, Learned(LM_INPUT, values, unit=unit)).to(values.device)
        prompted = LanguagePredictor(tuned.model, prompt, prompted.label_words)
    module = nn.ModuleDict({"prompt": prompted.prompt, "weights": tuned.module()})
    problem = LanguageProblem(prompted, module, task.data.train, task.data.val, task.objective_of(prompted))
    recipe = recipe or RECIPES[type(tuning)]
    history = train(problem, recipe, seed, epochs_of(recipe, problem.n_items), None, "", callbacks, False)
    refuse_changed(model)
    n_trained = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
    module.requires_grad_(False)
    tuned.finish()
    if folder is not None:  # LoRA as PEFT's folder, with a prompt both together; else all trained weights in a file
        make_folder(folder)
        if isinstance(tuning, Lora):
            write_lora(tuned, folder / "lora")
        else:
            write_bytes(folder / WEIGHTS, tensor_bytes(tuned.tensors()))
        if method is not None:
            beside = LanguagePredictor(model, prompted.prompt, prompted.label_words, lora="lora")
            save(beside, folder, {"weights": describe(tuning)})
    return WeightsResult(prompted, tuned, history, n_trained, folder)
