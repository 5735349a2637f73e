"""The loss of prompts in words over given rows, its gradient, and which of several prompts has the lowest.

It is the loss that soft vectors are trained on, with the words read exactly as the model will read them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmprompt.language.data import TextRow
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.search.predictor import predict_in_words, prompt_log_probs
from mmprompt.language.search.words import TokenIds, Words
from mmprompt.language.task import Objective, answers_of
from mmprompt.models.decoder.model import Predicted
from mmprompt.models.decoder.vectors import LM_INPUT
from mmprompt.models.sites import Vectors


@dataclass(frozen=True)
class Scored:
    """A prompt in words whose loss is known.

    Args:
        ids: its tokens.
        losses: [N] float64, of each row, sums in nats.
        improbability: what its own words add to the loss.
        loss: over all rows, in nats a row or a token of the answers, with that.
    """

    ids: TokenIds
    losses: Tensor
    improbability: float
    loss: float


@dataclass(frozen=True)
class Gradient:
    """How the loss of a prompt changes with its words.

    Args:
        loss: over the rows of the gradient.
        by_embedding: [P, D], by the embeddings that are read.
        by_judged: [P, V], by which word is judged for its improbability, one-hot; None where none is.
    """

    loss: float
    by_embedding: Tensor
    by_judged: Tensor | None

    def by_token(self, embeddings: Tensor) -> Tensor:
        """[P, V], by which of the tokens with embeddings [V, D] stands in each place, one-hot."""
        found = self.by_embedding @ embeddings.T
        return found if self.by_judged is None else found + self.by_judged


class WordObjective:
    """What a prompt in words is to lower: the loss of `LanguageProblem`, and perhaps its own improbability.

    Args:
        prompted: the frozen model and the template, with soft slots that no vectors fill.
        rows: that the loss is over.
        objective: "answer" or "choices", as in `LanguageProblem`.
        fluency: weight of the prompt's mean improbability in nats a token.
    """

    def __init__(
        self, prompted: LanguagePredictor, rows: Sequence[TextRow], objective: Objective, fluency: float = 0.0
    ) -> None:
        self.prompted, self.rows, self.fluency = prompted, rows, fluency
        self.words = Words(prompted.bound, prompted.model.start_ids)
        self._labels: Tensor | None = None
        answers = [prompted.answers] * len(rows)
        if objective == "choices":
            labels = prompted.verbalizer.labels
            self._labels = torch.tensor([labels.index(row.label) for row in rows], device=prompted.model.device)
        else:
            answers = [answers_of(row, prompted) for row in rows]
        self.questions = [prompted.question(row.fields, some) for row, some in zip(rows, answers, strict=True)]
        counts = [1.0 if self._labels is not None else float(len(question.answers[0])) for question in self.questions]
        self.counts = torch.tensor(counts, dtype=torch.float64)

    def losses(self, prompts: Sequence[TokenIds], which: Sequence[int]) -> Tensor:
        """[C, n] in float64, the loss of each of some rows with each prompt: sums in nats, exactly as the model reads
        the words.
        """
        questions = [self.questions[row] for row in which]
        found = predict_in_words(self.prompted.model, prompts, questions, self._columns)
        return torch.stack([self._row_losses(one, which) for one in found]).double().cpu()

    def improbability(self, prompts: Sequence[TokenIds]) -> Tensor:
        """[C] in float64, what the prompts' own words add to the loss; zero without a weight."""
        if not self.fluency:
            return torch.zeros(len(prompts), dtype=torch.float64)
        ids = torch.tensor(prompts, device=self.prompted.model.device)
        with torch.no_grad():
            return self._improbability(self.prompted.model.embed(ids), ids)[0].double().cpu()

    def score(self, prompt: TokenIds) -> Scored:
        """A prompt with its loss over all rows."""
        rows = range(len(self.rows))
        (losses,) = self.losses([prompt], rows)
        improbability = self.improbability([prompt]).item()
        return Scored(prompt, losses, improbability, self.mean(losses, rows) + improbability)

    def mean(self, losses: Tensor, which: Sequence[int]) -> float:
        """The loss a row, or a token of the answers, over some of the rows."""
        return (losses[list(which)].sum() / self.counts[list(which)].sum()).item()

    def loss_of(self, prompt: Scored, which: Sequence[int]) -> float:
        """Return the loss of a prompt on some of the rows."""
        return self.mean(prompt.losses, which) + prompt.improbability

    def gradient(self, ids: TokenIds, which: Sequence[int]) -> Gradient:
        """Compute how the loss of a prompt over some of the rows changes with its words."""
        model = self.prompted.model
        tokens = torch.tensor(ids, device=model.device)
        soft = model.embed(tokens).detach().requires_grad_()
        questions = [self.questions[row] for row in which]
        predicted = model.predict({LM_INPUT: Vectors(soft)}, questions, self._columns)
        loss = self._row_losses(predicted, which).sum() / self.counts[list(which)].sum().item()
        judged = None
        if self.fluency:
            improbability, judged = self._improbability(soft[None], tokens[None])
            loss = loss + improbability[0]
        (by_embedding,) = torch.autograd.grad(loss, soft)
        return Gradient(loss.item(), by_embedding, judged)

    @property
    def embeddings(self) -> Tensor:
        """[V, D], of all tokens as the model scales them."""
        model = self.prompted.model
        with torch.no_grad():
            return model.embed(torch.arange(model.vocabulary_size, device=model.device))

    @property
    def _columns(self) -> Tensor | None:
        return self.prompted.words if self._labels is not None else None

    def _row_losses(self, predicted: Predicted, which: Sequence[int]) -> Tensor:
        found = predicted.answer_log_probs()
        if self._labels is None:
            return -found
        scores = self.prompted.verbalizer.label_scores(found, predicted.lengths)
        return F.cross_entropy(scores, self._labels[list(which)], reduction="none")

    def _improbability(self, soft: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """[C], and of the first prompt its gradient [P, V] by which word is judged."""
        log_probs, places = prompt_log_probs(self.prompted.model, self.questions[0].slots, soft)
        weight = self.fluency / max(1, len(places))
        found = -weight * log_probs.gather(2, ids[:, places, None]).sum((1, 2))
        judged = log_probs.new_zeros(ids.shape[1], log_probs.shape[2])
        return found, judged.index_add(
            0, torch.tensor(places, dtype=torch.int64, device=ids.device), -weight * log_probs[0].detach()
        )

    def first_misread(self, ids: TokenIds, row: int = 0) -> int | None:
        """Find the first token that the text of the prompt does not give back within a row; None for none."""
        prompted = self.prompted
        answer, label = self.rows[row].answer, self.rows[row].label
        if self._labels is not None:
            texts = prompted.verbalizer.flat
        else:
            texts = (answer if answer is not None else prompted.verbalizer.words[str(label)][0],)
        answers = dict(zip(texts, prompted.bound.answers(texts), strict=True))
        room = prompted.model.budget
        return self.words.first_misread(ids, self.rows[row].fields, self.questions[row].slots, room, answers)

    def reads_back(self, ids: TokenIds) -> bool:
        """Whether the text of the prompt gives its tokens back in every row."""
        return all(self.first_misread(ids, row) is None for row in range(len(self.rows)))


def best_of(
    objective: WordObjective, prompts: Sequence[TokenIds], best: Scored, order: Sequence[int], n_first: int
) -> Scored | None:
    """The prompt with the lowest loss over all rows, if it is lower than the best so far and read back in every row.

    Prompts are looked at on a few rows first. Those that do worse there than the best so far are left out, and of the
    others a quarter goes on to twice as many rows each time; whatever is returned was scored on all.

    Args:
        objective: what counts.
        prompts: to choose from.
        best: the best so far.
        order: of all rows.
        n_first: rows of the first look.
    """
    improbability = objective.improbability(prompts).tolist()
    losses = torch.zeros(len(prompts), len(order), dtype=torch.float64)
    alive = list(range(len(prompts)))
    scores: dict[int, float] = {}
    start, size = 0, n_first
    while start < len(order) and alive:
        which, start, size = order[start : start + size], start + size, 2 * size
        losses[torch.tensor(alive)[:, None], torch.tensor(which)] = objective.losses([prompts[n] for n in alive], which)
        seen = order[:start]
        scores = {n: objective.mean(losses[n], seen) + improbability[n] for n in alive}
        better = [n for n in sorted(alive, key=scores.__getitem__) if scores[n] < objective.loss_of(best, seen)]
        alive = better if start >= len(order) else better[: max(1, len(alive) // 4)]
    winner = next((n for n in alive if objective.reads_back(prompts[n])), None)
    return None if winner is None else Scored(prompts[winner], losses[winner], improbability[winner], scores[winner])


def row_order(rows: Sequence[TextRow], draw: torch.Generator) -> list[int]:
    """All rows in a drawn order in which the labels take turns, so that the first ones hold as many of each."""
    turn: dict[str | None, int] = defaultdict(int)
    places: list[tuple[int, int, int]] = []
    for row in torch.randperm(len(rows), generator=draw).tolist():
        label = rows[row].label
        places.append((turn[label], len(places), row))
        turn[label] += 1
    return [row for _, _, row in sorted(places)]
