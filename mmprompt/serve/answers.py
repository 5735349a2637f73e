"""Answers to many requests at once, each perhaps of another prompt: images go through a frozen image tower once for all
prompts that put nothing into it, texts and captions of several prompts are read in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmprompt.language.generation import generate_texts
from mmprompt.language.predictor import LanguagePredictor, classify_texts
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.serve.prompts import Served

IMAGES = 64
"""In one forward of an image tower."""
KEPT = 64
"""Prompts of language models whose keys and values stay in memory, those that were used last."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An image: the bytes of its file, and for each kind the pixels [3, H, W] that its frozen model takes."""

    data: bytes
    pixels: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Question:
    """What one prompt is asked of a `Picture` or a `TextRow`: `top_k` labels, or a text of `max_tokens`."""

    served: Served
    number: int
    asked: Any
    top_k: int = 5
    max_tokens: int = 64


Answer = dict[str, Any]
Answers = dict[Question, Answer]


class Answerer:
    """Answers questions in batches; the one who knows which of them share a forward."""

    def __init__(self) -> None:
        self._recent: dict[LanguagePredictor, None] = {}

    @torch.no_grad()
    def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        """Return the answer to each question."""
        ways: dict[Callable[[list[Question]], Answers], list[Question]] = {}
        for question in questions:
            ways.setdefault(self._way(question.served), []).append(question)
        answers: Answers = {}
        for way, some in ways.items():
            answers |= way(some)
        return [
            {"prompt": question.served.name, "input": question.number, **answers[question]} for question in questions
        ]

    def _way(self, served: Served) -> Callable[[list[Question]], Answers]:
        if served.kind == "captioning":
            return _caption
        if served.kind == "language":
            return self._read if served.predictor.label_words is None else _classify_texts
        is_plain = not served.predictor.form and not served.predictor.prompt.has("vision")
        return _classify_images if is_plain else _classify_alone

    def _read(self, questions: list[Question]) -> Answers:
        answers: Answers = {}
        for max_tokens in {question.max_tokens for question in questions}:
            some = [question for question in questions if question.max_tokens == max_tokens]
            each = [question.served.predictor for question in some]
            texts = generate_texts(each, [q.asked for q in some], Generation(max_tokens=max_tokens))
            pairs = zip(some, texts, strict=True)
            answers |= {q: {"text": one.text, "is_cut": one.is_cut} | _input_cut(q, max_tokens) for q, one in pairs}
            for one in each:
                self._recent.pop(one, None)
                self._recent[one] = None
        for one in list(self._recent)[:-KEPT]:
            del self._recent[one]
            one.compiled.clear()
        return answers


def _by_prompt(questions: Sequence[Question]) -> dict[Served, list[Question]]:
    groups: dict[Served, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.served, []).append(question)
    return groups


def _pictures(questions: Sequence[Question]) -> tuple[list[Picture], Tensor]:
    """Return the pictures that questions are about, each once, and their pixels [B, 3, H, W]."""
    pictures = list(dict.fromkeys(question.asked for question in questions))
    return pictures, torch.stack([picture.pixels[questions[0].served.kind] for picture in pictures])


def _ranked(names: Sequence[str], probabilities: Sequence[float], top_k: int) -> Answer:
    order = sorted(range(len(names)), key=lambda place: -probabilities[place])[:top_k]
    named = {names[place]: probabilities[place] for place in order}
    return {"label": names[order[0]], "probabilities": named}


def _classify_images(questions: list[Question]) -> Answers:
    """Encode each image once for all prompts."""
    groups = _by_prompt(questions)
    pictures, pixels = _pictures(questions)
    backbone = questions[0].served.predictor.backbone
    is_wide = any(served.predictor.reads_raw for served in groups)
    parts = pixels.to(backbone.device, backbone.dtype).split(IMAGES)
    features = torch.cat([backbone.encode_image(part, raw=is_wide) for part in parts])
    row_of = {picture: row for row, picture in enumerate(pictures)}
    answers: Answers = {}
    for served, some in groups.items():
        width = None if served.predictor.reads_raw else backbone.embed_dim
        own = features[[row_of[question.asked] for question in some], :width]
        answers |= _labels(served, some, served.predictor.outputs(own).logits.double().softmax(-1).tolist())
    return answers


def _labels(served: Served, questions: Sequence[Question], rows: Sequence[Sequence[float]]) -> Answers:
    return {q: _ranked(served.predictor.class_names, row, q.top_k) for q, row in zip(questions, rows, strict=True)}


def _classify_alone(questions: list[Question]) -> Answers:
    """Let each prompt with something in the image tower, or with a way of its own, see its images."""
    answers: Answers = {}
    for served, some in _by_prompt(questions).items():
        classifier = served.predictor
        if classifier.form:
            rows = classifier.predict_proba([question.asked.data for question in some]).tolist()
        else:
            _, pixels = _pictures(some)
            parts = pixels.to(classifier.backbone.dtype).split(IMAGES)
            rows = torch.cat([classifier(part) for part in parts]).double().softmax(-1).tolist()
        answers |= _labels(served, some, rows)
    return answers


def _caption(questions: list[Question]) -> Answers:
    pictures, pixels = _pictures(questions)
    first = questions[0].served.predictor
    features = torch.cat([first.backbone.encode_image(part) for part in pixels.split(IMAGES)])
    row_of = {picture: row for row, picture in enumerate(pictures)}
    rows = [row_of[question.asked] for question in questions]
    captions = first.caption_features(features[rows], [question.served.predictor.guidance for question in questions])
    return {q: {"text": one.text, "is_cut": one.is_cut} for q, one in zip(questions, captions, strict=True)}


def _classify_texts(questions: list[Question]) -> Answers:
    found = classify_texts([q.served.predictor for q in questions], [q.asked for q in questions])
    return {
        question: _ranked(list(one.probabilities), list(one.probabilities.values()), question.top_k)
        | _input_cut(question, question.served.predictor.longest_answer(Generation()))
        for question, one in zip(questions, found, strict=True)
    }


def _input_cut(question: Question, n_answer: int) -> Answer:
    """Say of a text whose end was not read that it is so."""
    return {"is_input_cut": True} if question.served.predictor.n_cut([question.asked], n_answer) else {}
