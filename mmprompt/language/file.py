"""The prompt file of a language model: the same pair of files that every prompt has, kilobytes, no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmprompt.core.site_file import (
    read_prompt_header,
    read_prompt_tensors,
    read_sources,
    refuse_other_backbone,
    write_prompt,
)
from mmprompt.errors import bad_file
from mmprompt.language.predictor import LanguagePrompt, PromptedModel
from mmprompt.language.sources import LanguageSources, read_multitask
from mmprompt.language.templates.template import Template
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.decoder.load import load_language_model
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.decoder.tuned import read_lora

TASK_TENSORS = ("task_columns", "task_rows")


def save_language(
    prompted: PromptedModel, folder: Path | str, training: Mapping[str, Any] | None = None, lora: str | None = None
) -> None:
    """Write a prompt to a folder: kilobytes, and nothing of the model.

    Args:
        prompted: what `load_language` will give back.
        folder: made if missing.
        training: JSON-ready facts about where the prompt comes from.
        lora: the folder in it that holds the LoRA which was learned with the prompt.
    Raises:
        UserError: the folder cannot be written.
    """
    prompt = prompted.prompt
    more = {
        "kind": "language model",
        "template": prompt.template.text,
        "verbalizer": None if prompt.verbalizer is None else prompt.verbalizer.to_dict(),
        "n_soft": prompt.n_soft,
        "tasks": list(prompt.sources.tasks),
        "lora": lora,
    }
    write_prompt(Path(folder), prompted.model, prompt.sources, more, {}, training)


def load_language(folder: Path | str, model: FrozenLanguageModel | str | None = None) -> PromptedModel:
    """Load a saved prompt.

    Args:
        folder: a run folder.
        model: the model or its name; by default the one that the file names.
    Raises:
        UserError: files are missing, edited or damaged, or of another model or another kind of prompt.
    """
    folder = Path(folder)
    header = read_language_header(folder)
    tensors = read_prompt_tensors(folder, header, *(TASK_TENSORS if header["tasks"] else ()))
    if model is None or isinstance(model, str):
        model = load_language_model(model or header["backbone"]["name"])
    refuse_other_backbone(folder, header, model)
    if header["lora"] is not None:
        model = read_lora(folder / header["lora"], model).model
    sites = read_sources(header, tensors, model.device)
    sources: LanguageSources = LanguageSources(sites)
    if header["tasks"]:
        sources = read_multitask(sites, header["tasks"], tensors)
    verbalizer = None if header["verbalizer"] is None else Verbalizer.from_dict(header["verbalizer"])
    sources.requires_grad_(False)
    template = Template.parse(header["template"])
    return PromptedModel(model, LanguagePrompt(template, sources, verbalizer, header["n_soft"]))


def read_language_header(folder: Path) -> dict[str, Any]:
    """What a saved prompt of a language model says of itself.

    Raises:
        UserError: it is missing, edited, damaged, or another kind of prompt.
    """
    header = read_prompt_header(folder)
    kind = header.get("kind", "classifier")
    if kind != "language model":
        advice = "See mmprompt caption write." if kind == "captioner" else "See mmprompt predict."
        raise bad_file(folder, f"is the prompt of a {kind}, not of a language model", advice)
    return header
