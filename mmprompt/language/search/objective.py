"""The loss of prompts in words over given rows, its gradient, and which of several prompts has the lowest.

It is the loss that soft vectors are trained on, with the words read exactly as the model will read them. Many prompts
are read at a time: what all begin with once, the rest of each once for all rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmprompt.errors import UserError
from mmprompt.language.data import TextRow
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.search.words import TokenIds, Words, place_words
from mmprompt.language.task import Objective, question_of
from mmprompt.models.decoder.encoder_decoder import EncoderDecoderReader
from mmprompt.models.decoder.kv_cache import KVCache
from mmprompt.models.decoder.model import FrozenLanguageModel, Predicted, columns_of, shared_start
from mmprompt.models.decoder.packing import Packed, Question, pack, share_rows
from mmprompt.models.decoder.reader import CausalReader
from mmprompt.models.decoder.whole_rows import WholeRowReader
from mmprompt.models.sites import LM_INPUT, Vectors

SLOTS_AT_ONCE = 2048
"""Slots that are read in one go; more are no faster, and their keys and values take memory."""


@dataclass(frozen=True)
class Scored:
    """A prompt in words with its losses: of each of N rows in nats (float64), what its own improbability adds, and the
    loss in all, a row or a token of the answers.
    """

    ids: TokenIds
    losses: Tensor
    improbability: float
    loss: float


@dataclass(frozen=True)
class Gradient:
    """How the loss of a prompt over some rows changes with its words: by the embeddings [P, D] that are read, and
    [P, V] by which word is judged for its improbability, one-hot; None where none is.
    """

    loss: float
    by_embedding: Tensor
    by_judged: Tensor | None

    def by_token(self, embeddings: Tensor) -> Tensor:
        """Return [P, V], by which of the tokens with embeddings [V, D] stands in each place, one-hot."""
        by_read = self.by_embedding @ embeddings.T
        return by_read if self.by_judged is None else by_read + self.by_judged


class WordObjective:
    """What a prompt in words is to lower: the loss of `LanguageProblem`, and perhaps its own improbability.

    The template of `prompted` has soft slots that no vectors fill; `fluency` is the weight of the mean improbability,
    in nats a token.
    """

    def __init__(
        self, prompted: LanguagePredictor, rows: Sequence[TextRow], objective: Objective, fluency: float = 0.0
    ) -> None:
        self.prompted, self.model = prompted, prompted.model
        self.rows, self.fluency = rows, fluency
        self.words = Words(prompted.bound, self.model.start_ids)
        self._labels: Tensor | None = None
        self._columns: Tensor | None = None
        if any(segment.slots for segment in prompted.bound.behind):
            raise UserError("words are searched before the answer, but {soft} stands behind it. Move it forward.")
        self.questions = [question_of(row, prompted, objective) for row in rows]
        if objective == "choices":
            labels = prompted.verbalizer.labels
            self._labels = torch.tensor([labels.index(row.label) for row in rows], device=self.model.device)
            self._columns = prompted.words
            self.counts = torch.ones(len(rows), dtype=torch.float64)
        else:
            counts = [len(question.answers[0]) for question in self.questions]
            self.counts = torch.tensor(counts, dtype=torch.float64)

    def losses(self, prompts: Sequence[TokenIds], which: Sequence[int]) -> Tensor:
        """Return [C, n] float64, the loss in nats of each of n rows with each of C prompts, as the model reads them."""
        questions = [self.questions[row] for row in which]
        predicted = predict_in_words(self.model, prompts, questions, self._columns)
        return torch.stack([self._row_losses(one, which) for one in predicted]).double().cpu()

    def improbability(self, prompts: Sequence[TokenIds]) -> Tensor:
        """Return [C] float64, what the prompts' own words add to the loss; zero without a weight."""
        if not self.fluency:
            return torch.zeros(len(prompts), dtype=torch.float64)
        ids = torch.tensor(prompts, device=self.model.device)
        with torch.no_grad():
            return self._improbability(self.model.embed(ids), ids)[0].double().cpu()

    def score(self, prompt: TokenIds) -> Scored:
        """Score a prompt over all rows."""
        rows = range(len(self.rows))
        (losses,) = self.losses([prompt], rows)
        improbability = self.improbability([prompt]).item()
        return Scored(prompt, losses, improbability, self.mean(losses, rows) + improbability)

    def mean(self, losses: Tensor, which: Sequence[int]) -> float:
        """Return the loss a row, or a token of the answers, over some of the rows."""
        return (losses[list(which)].sum() / self.counts[list(which)].sum()).item()

    def loss_of(self, prompt: Scored, which: Sequence[int]) -> float:
        """Return the loss of a prompt on some of the rows."""
        return self.mean(prompt.losses, which) + prompt.improbability

    def gradient(self, ids: TokenIds, which: Sequence[int]) -> Gradient:
        """Compute how the loss of a prompt over some of the rows changes with its words."""
        tokens = torch.tensor(ids, device=self.model.device)
        soft = self.model.embed(tokens).detach().requires_grad_()
        questions = [self.questions[row] for row in which]
        predicted = self.model.predict({LM_INPUT: Vectors(soft)}, questions, self._columns)
        loss = self._row_losses(predicted, which).sum() / self.counts[list(which)].sum().item()
        judged = None
        if self.fluency:
            improbability, judged = self._improbability(soft[None], tokens[None])
            loss = loss + improbability[0]
        (by_embedding,) = torch.autograd.grad(loss, soft)
        return Gradient(loss.item(), by_embedding, judged)

    @property
    def embeddings(self) -> Tensor:
        """The embeddings [V, D] of all tokens as the model scales them."""
        with torch.no_grad():
            return self.model.embed(torch.arange(self.model.vocabulary_size, device=self.model.device))

    def _row_losses(self, predicted: Predicted, which: Sequence[int]) -> Tensor:
        log_probs = predicted.answer_log_probs()
        if self._labels is None:
            return -log_probs
        scores = self.prompted.verbalizer.label_scores(log_probs, predicted.lengths)
        return F.cross_entropy(scores, self._labels[list(which)], reduction="none")

    def _improbability(self, soft: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return [C], and of the first prompt its gradient [P, V] by which word is judged."""
        log_probs, places = prompt_log_probs(self.model, self.questions[0].slots, soft)
        weight = self.fluency / max(1, len(places))
        values = -weight * log_probs.gather(2, ids[:, places, None]).sum((1, 2))
        judged = log_probs.new_zeros(ids.shape[1], log_probs.shape[2])
        rows = torch.tensor(places, dtype=torch.int64, device=ids.device)
        return values, judged.index_add(0, rows, -weight * log_probs[0].detach())

    def first_misread(self, ids: TokenIds, row: int = 0) -> int | None:
        """Find the first token that the text of the prompt does not give back within a row; None for none."""
        prompted, item = self.prompted, self.rows[row]
        if self._labels is not None:
            texts = prompted.verbalizer.flat
        else:
            texts = (item.answer if item.answer is not None else prompted.verbalizer.words[str(item.label)][0],)
        answers = dict(zip(texts, prompted.bound.answers(texts), strict=True))
        return self.words.first_misread(ids, item.fields, self.questions[row].slots, self.model.budget, answers)

    def reads_back(self, ids: TokenIds) -> bool:
        """Say whether the text of the prompt gives its tokens back in every row."""
        return all(self.first_misread(ids, row) is None for row in range(len(self.rows)))


def best_of(
    objective: WordObjective, prompts: Sequence[TokenIds], best: Scored, order: Sequence[int], n_first: int
) -> Scored | None:
    """Find the prompt with the lowest loss over all rows, if it is lower than the best so far and read back in all.

    Prompts are looked at on the first rows of the order first. Those that do worse there than the best so far are left
    out, and of the others a quarter goes on to twice as many rows each time; what is returned was scored on all.
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
    """Draw an order of all rows in which the labels take turns, so that the first ones hold as many of each."""
    turn: dict[str | None, int] = defaultdict(int)
    places: list[tuple[int, int, int]] = []
    for row in torch.randperm(len(rows), generator=draw).tolist():
        label = rows[row].label
        places.append((turn[label], len(places), row))
        turn[label] += 1
    return [row for _, _, row in sorted(places)]


@torch.no_grad()
def predict_in_words(
    model: FrozenLanguageModel, prompts: Sequence[TokenIds], questions: Sequence[Question], words: Tensor | None = None
) -> list[Predicted]:
    """Predict, as `FrozenLanguageModel.predict`, all questions with each of C prompts of P tokens for P vectors."""
    reader = model.reader
    if not (isinstance(reader, CausalReader) and reader.packs):
        return [
            model.predict({}, [Question(place_words(one.slots, ids), one.answers) for one in questions], words)
            for ids in prompts
        ]
    n_start = len(shared_start(questions))
    rest = [Question(question.slots[n_start:], question.answers) for question in questions]
    packed = pack(rest, share_rows(rest), n_start, model.device)
    ids = torch.tensor(prompts, device=model.device)  # [C, P]
    start = torch.tensor(questions[0].slots[:n_start], dtype=torch.int64, device=model.device)
    starts = place_words_of_all(start, ids)  # [C, n_start]
    n_same = int((starts == starts[:1]).all(0).int().cumprod(0).sum())  # columns in which all prompts begin alike
    shared = model.read_shared({}, starts[0, :n_same].tolist())
    columns = packed.tokens if words is None else columns_of(packed.tokens, words)
    predicted: list[Predicted] = []
    at_once = max(1, SLOTS_AT_ONCE // (n_start - n_same + packed.slots.numel()))
    for some, rest_of_start in zip(ids.split(at_once), starts[:, n_same:].split(at_once), strict=True):
        for hidden in _read(reader, shared, rest_of_start, packed, some):  # one by one: the head takes the most memory
            logits = reader.head(hidden) if words is None else reader.head_of(words, hidden)
            predicted.append(Predicted(logits, packed.at, columns, packed.lengths))
    return predicted


def place_words_of_all(slots: Tensor, ids: Tensor) -> Tensor:
    """Return slots [...] with the tokens [C, P] of each prompt in the places of soft vectors: [C, ...]."""
    return torch.where(slots < 0, ids[:, (-1 - slots).clamp(min=0)], slots)


def _read(reader: CausalReader, shared: KVCache, start: Tensor, packed: Packed, ids: Tensor) -> Tensor:
    """Return the hidden states [C, S, D''] that packed questions are answered from, after each of C prompts.

    All begin with the one row `shared`; the rest [C, L] of each start follows it, then the questions with `ids` [C, P].
    """
    n_prompts, n_rows = len(ids), len(packed.slots)
    cache = shared.repeat(n_prompts) if shared.own else shared
    if start.shape[1]:
        cache = reader.run(cache, reader.embed(start))[1]
    if n_rows > 1 and cache.own:
        cache = cache.select(torch.arange(n_prompts, device=ids.device).repeat_interleave(n_rows))
    slots = place_words_of_all(packed.slots, ids).flatten(0, 1)  # [C R, L]
    visible = None if packed.visible is None else packed.visible.repeat(n_prompts, 1, 1)
    hidden, _ = reader.run(cache, reader.embed(slots), packed.places.repeat(n_prompts, 1), visible)
    return hidden.unflatten(0, (n_prompts, n_rows)).flatten(1, 2).index_select(1, packed.read)


def prompt_log_probs(model: FrozenLanguageModel, slots: Sequence[int], soft: Tensor) -> tuple[Tensor, list[int]]:
    """Predict what the model itself would say in the places of C prompts with embeddings [C, P, D] in a row's slots.

    Return [C, Q, V] log-probabilities in the Q places that something stands before, and which of the P prompt tokens
    stands in each; slots behind the last soft one are not read.
    """
    if isinstance(model.reader, EncoderDecoderReader):
        raise UserError(
            f"{model.name} reads a prompt with its encoder, which does not say how probable words are. "
            "Leave `fluency` out."
        )
    last = max(place for place, slot in enumerate(slots) if slot < 0)
    places = [place for place in range(1, last + 1) if slots[place] < 0]
    if not places:
        return soft.new_zeros(len(soft), 0, model.vocabulary_size), []
    read = torch.tensor(slots[:last], device=model.device).expand(len(soft), -1)
    x = model.reader.embed_slots(read, Vectors(soft, "sample"))
    before = torch.tensor(places, device=model.device) - 1
    if isinstance(model.reader, WholeRowReader):
        logits = model.reader.logits(x, before)
    else:
        logits = model.reader.head(model.reader.run(KVCache(), x)[0].index_select(1, before))
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype).log_softmax(-1), [-1 - slots[place] for place in places]
