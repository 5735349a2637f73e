"""Prompts of all kinds side by side, trained and used, on a model that nothing is done to."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from mmprompt.core.fit import fit
from mmprompt.core.learned import Prompt
from mmprompt.language.data import TextData, TextRow
from mmprompt.language.generation import generate_texts, stream_text
from mmprompt.language.methods import METHODS as LANGUAGE_METHODS
from mmprompt.language.methods import PrefixTuning, PTuning
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.templates.template import Template
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.training.recipe import Recipe
from tests.language_models import frozen_model
from tests.peft_models import METHODS, TEXTS, ours

TEMPLATES = {
    "prompt": "{soft} {text}\n{answer}",
    "p-tuning": "{text} {soft*2:a}. It is{soft}{answer}",
    "prefix": "It says: {text} {answer}",
    "multitask": "{soft}{bos}{text} {answer}",
}


@cache
def model_of(kind: str) -> FrozenLanguageModel:
    return frozen_model(kind)


def prompts_of(model: FrozenLanguageModel) -> list[tuple[LanguagePredictor, str]]:
    """Prompts of every kind and one in words alone, with a task each."""
    learned = {name: ours(model, name, TEMPLATES[name], n_soft=5 if name == "p-tuning" else None) for name in TEMPLATES}
    for prompted in learned.values():
        prompted.prompt.requires_grad_(False)  # so that what is read of a prompt is kept
    hard = LanguagePredictor(model, Prompt(Template.parse("Text: {text}\n{answer}")))
    plain = [(learned[name], "") for name in ("prompt", "p-tuning", "prefix")]
    return [*plain, (learned["multitask"], "second"), (hard, ""), (learned["multitask"], "first")]


SETTINGS = {
    "greedy": Generation(6),
    "beams": Generation(6, n_beams=3),
    "samples": Generation(6, temperature=1.0, top_k=1),
    "static": Generation(6, static_cache=True),
    "static beams": Generation(6, n_beams=3, static_cache=True),
}


@pytest.mark.parametrize(
    ("kind", "how"),
    [(kind, how) for kind in ("llama", "gpt2", "t5") for how in SETTINGS if not (kind == "t5" and "static" in how)],
)
def test_prompts_of_all_kinds_and_tasks_in_one_batch_answer_as_each_does_alone(kind: str, how: str) -> None:
    settings = SETTINGS[how]
    prompts = prompts_of(model_of(kind))
    each = [prompted for _ in TEXTS for prompted, _ in prompts]
    rows = [TextRow({"text": text}, task=task) for text in TEXTS for _, task in prompts]
    alone = [generate_texts(prompted, [row], settings)[0] for prompted, row in zip(each, rows, strict=True)]
    assert generate_texts(each, rows, settings) == alone
    assert len({one.text for one in alone}) > 5, "prompts and texts change what is said"
    assert alone[3::6] != alone[5::6], "each task has a prompt of its own"


@pytest.mark.parametrize("name", ["p-tuning", "lstm", "prefix", "multitask"])
def test_what_makes_the_vectors_learns_the_same_from_rows_that_are_read_again(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "lstm", PTuning(3, "lstm", hidden=8))
    model = model_of("llama")
    prompted = ours(model, name, "{text}{answer}" if name == "prefix" else "{text} {soft}{answer}")
    prompted.prompt.double()
    texts = [f"{first} and {second} {n}" for n in range(3) for first in TEXTS for second in TEXTS]  # in several rows
    answers = [(prompted.answers[len(text) % 3],) for text in texts]
    questions = [prompted.question({"text": text}, some) for text, some in zip(texts, answers, strict=True)]
    found = []
    for is_recomputed in (False, True):
        predicted = model.predict(prompted.vectors("first"), questions, None, is_recomputed)
        parameters = list(prompted.prompt.parameters())
        found.append(torch.autograd.grad(predicted.token_log_probs().mean(), parameters))
    assert any(grad.abs().max() > 1e-3 for grad in found[0])
    for whole, again in zip(*found, strict=True):
        torch.testing.assert_close(again, whole, rtol=1e-6, atol=1e-8)  # Llama's norms are taken in single precision


def state_of(lm: Any) -> list[tuple[Any, ...]]:
    """Of every module its class, its own attributes and hooks, and what its methods are."""
    names = ("forward", "generate", "prepare_inputs_for_generation", "__call__")
    return [
        (
            name,
            type(module),
            sorted(vars(module)),
            [getattr(getattr(module, method, None), "__func__", None) for method in names],
            [len(getattr(module, hooks)) for hooks in vars(module) if hooks.endswith("_hooks")],
        )
        for name, module in lm.named_modules()
    ]


@pytest.mark.parametrize("kind", ["llama", "opt", "t5"])
def test_learning_and_answering_leave_a_model_as_it_was(kind: str, tmp_path: Path) -> None:
    model = frozen_model(kind, torch.float32)
    before, settings = state_of(model.lm), model.lm.generation_config.to_dict()
    rows = tuple(TextRow({"text": text}, answer="happy", task="one") for text in TEXTS)
    labelled = tuple(TextRow(row.fields, label) for row, label in zip(rows, ("happy", "sad") * 9, strict=False))
    for name, method in LANGUAGE_METHODS.items():
        template = "{soft} {text} {answer}" if method().n_vectors or name == "searched-words" else "{text} {answer}"
        data = TextData("small", rows, (), (), template=template, instructions=("{text}: {answer}",))
        if name in ("soft-verbalizer", "searched-words"):
            data = replace(data, train=labelled, labels=("happy", "sad"))
        chosen = PrefixTuning(2, hidden=8) if name == "prefix-tuning" else method()
        recipe = Recipe(epochs=1) if chosen.is_trained else None
        result = fit(chosen, model, data, recipe=recipe, progress=False)
        if data.labels:
            result.predictor.classify(labelled)
            continue
        generate_texts(result.predictor, rows, Generation(3, n_beams=2))
        "".join(stream_text(result.predictor, rows[0], Generation(3)))
        result.predictor.answer_log_probs(rows, [["happy", "sad"]] * len(rows))
    assert state_of(model.lm) == before
    assert model.lm.generation_config.to_dict() == settings
    assert model.compute_fingerprint() == model.fingerprint
    assert not any(parameter.requires_grad for parameter in model.lm.parameters())
