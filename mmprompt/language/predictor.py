"""A frozen language model with a prompt: texts in, labels or scores of answers out.

It knows prompts and texts, not how a prompt was learned. What it generates is in `language_generation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from mmprompt.errors import UserError
from mmprompt.language.data import TextRow
from mmprompt.language.sources import LanguageSources
from mmprompt.language.templates.template import BoundTemplate, Template
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.decoder.memory import Memory
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.decoder.packing import Question
from mmprompt.models.decoder.vectors import LM_INPUT
from mmprompt.models.sites import Site, Vectors

BATCH = 32


@dataclass(frozen=True)
class LanguagePrompt:
    """A prompt of a language model.

    Args:
        template: what stands around a row's fields, soft vectors among it.
        sources: the vectors by site, for each task where there are several.
        verbalizer: the words of each label; None where texts are generated.
        n_soft: vectors of the template's bare `{soft}`.
    """

    template: Template
    sources: LanguageSources
    verbalizer: Verbalizer | None = None
    n_soft: int = 0


@dataclass(frozen=True)
class LabelPrediction:
    """What a model says of a row.

    Attributes:
        label: the most probable.
        probabilities: of every label, which sum to 1.
    """

    label: str
    probabilities: Mapping[str, float]


class PromptedModel:
    """A frozen language model and a prompt.

    Args:
        model: the frozen model.
        prompt: what it is prompted with.
    Raises:
        UserError: the prompt does not fit the model.
    """

    def __init__(self, model: FrozenLanguageModel, prompt: LanguagePrompt) -> None:
        self.model, self.prompt = model, prompt
        self.bound = prompt.template.bind(model.tokenizer, model.start_ids, prompt.n_soft, model.is_encoder_decoder)
        for task in prompt.sources.tasks or ("",):
            vectors = prompt.sources.vectors_of(task)
            model.check_vectors(vectors)
            refuse_mismatch(self.bound, vectors)
        words = () if prompt.verbalizer is None else prompt.verbalizer.flat
        self.answers = self.bound.answers(words)
        if prompt.verbalizer is not None:
            prompt.verbalizer.check_distinct(self.answers)
        self.words = single_tokens(self.answers, model.device)
        self.compiled: dict[str, tuple[tuple[int, ...], Memory]] = {}  # of each task what was last read of the prompt

    @property
    def n_prefix(self) -> int:
        """Keys and values of the prompt in each block."""
        vectors = self.prompt.sources.vectors()
        return vectors[Site("lm.kv", 0)].n_vectors if Site("lm.kv", 0) in vectors else 0

    def question(self, fields: Mapping[str, str], answers: Sequence[tuple[int, ...]]) -> Question:
        """A row as it is read, with the tokens of some answers.

        Raises:
            UserError: a field is missing, or the row does not fit.
        """
        n_answer = max(map(len, answers))
        return Question(self.bound.encode(fields, self.model.budget - self.n_prefix, n_answer).slots, tuple(answers))

    @torch.no_grad()
    def answer_log_probs(self, rows: Sequence[TextRow], answers: Sequence[Sequence[str]]) -> list[Tensor]:
        """The log-probabilities of given answers to each row: sums over their tokens, without an end.

        Args:
            rows: N rows.
            answers: of each row, one or more.
        Raises:
            UserError: an answer has no tokens, or a row does not fit.
        """
        questions = [
            self.question(row.fields, self.bound.answers(some)) for row, some in zip(rows, answers, strict=True)
        ]
        found: list[Tensor] = []
        for start, end, vectors in parts_by_task(self.prompt.sources, rows):
            scores = self.model.predict(vectors, questions[start:end]).answer_log_probs()
            found += scores.split([len(some) for some in answers[start:end]])
        return found

    @torch.no_grad()
    def label_log_probs(self, rows: Sequence[TextRow]) -> Tensor:
        """[N, C] log-probabilities of the labels, which sum to 1 over the labels.

        Args:
            rows: N rows; their own labels are not looked at.
        Raises:
            UserError: the prompt has no verbalizer, or a row does not fit.
        """
        verbalizer = self.verbalizer
        questions = [self.question(row.fields, self.answers) for row in rows]
        parts = []
        for start, end, vectors in parts_by_task(self.prompt.sources, rows):
            predicted = self.model.predict(vectors, questions[start:end], self.words)
            word_scores = predicted.answer_log_probs().unflatten(0, (end - start, -1))  # [N, W]
            parts.append(verbalizer.label_scores(word_scores, predicted.lengths[: word_scores.shape[1]]))
        empty = torch.zeros(0, len(verbalizer.labels), device=self.model.device)
        return torch.cat([empty, *parts]).log_softmax(-1)

    def classify(self, rows: Sequence[TextRow]) -> list[LabelPrediction]:
        """The label of each row."""
        return label_predictions(self.verbalizer.labels, self.label_log_probs(rows))

    @property
    def verbalizer(self) -> Verbalizer:
        """The words of the labels.

        Raises:
            UserError: there are none.
        """
        if self.prompt.verbalizer is None:
            raise UserError("this prompt generates text and has no labels to tell apart. Use generate.")
        return self.prompt.verbalizer


def label_predictions(labels: Sequence[str], log_probs: Tensor) -> list[LabelPrediction]:
    """What log-probabilities [N, C] of C labels come to."""
    found = []
    for scores in log_probs.exp().tolist():
        probabilities = dict(zip(labels, scores, strict=True))
        found.append(LabelPrediction(max(labels, key=lambda label: probabilities[label]), probabilities))
    return found


def refuse_mismatch(bound: BoundTemplate, vectors: Mapping[Site, Vectors]) -> None:
    """Refuse vectors among the tokens that are more or fewer than a template has places for.

    Raises:
        UserError: they are.
    """
    if LM_INPUT in vectors and vectors[LM_INPUT].n_vectors != bound.n_soft:
        raise UserError(
            f"the template has {bound.n_soft} soft slots, but the prompt has {vectors[LM_INPUT].n_vectors} vectors. "
            "Use the template that the prompt was learned in."
        )


def single_tokens(answers: Sequence[tuple[int, ...]], device: torch.device) -> Tensor | None:
    """The tokens [W] of answers of one token each, the only ones whose logits are needed; None for longer answers."""
    if not answers or any(len(answer) > 1 for answer in answers):
        return None
    return torch.tensor([answer[0] for answer in answers], device=device)


def parts_by_task(sources: LanguageSources, rows: Sequence[TextRow]) -> list[tuple[int, int, dict[Site, Vectors]]]:
    """Batches of rows that follow one another and share a task: start, end, and the task's vectors."""
    parts = []
    place = 0
    for task, some in groupby(rows, key=lambda row: row.task if sources.tasks else ""):
        end = place + len(list(some))
        vectors = sources.vectors_of(task)
        parts += [(start, min(end, start + BATCH), vectors) for start in range(place, end, BATCH)]
        place = end
    return parts
