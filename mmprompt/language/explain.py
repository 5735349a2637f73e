"""What a prompt of a language model does: how it learns, the words its vectors lie near, what each is worth, and
whether it changes anything.

Alarms sound while it learns: gradients that vanish or burst, vectors that grow too large. Reading aids: a vector need
not lie near any word, and attention is no proof of use. Leaving a vector out, and the distance between what the model
says with and without a prompt, are measured on rows.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from statistics import fmean, median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmprompt.core.learned import rms
from mmprompt.core.words import nearest_by_cosine
from mmprompt.errors import UserError
from mmprompt.language.data import TextRow
from mmprompt.language.predictor import LanguagePredictor, parts_by_task
from mmprompt.models.decoder.inserts import keys_values
from mmprompt.models.decoder.kv_cache import cache_argument, to_cache
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.decoder.packing import Question
from mmprompt.models.decoder.reader import CausalReader, embed_slots
from mmprompt.models.sites import LM_INPUT, Vectors, vectors_of, without_vector
from mmprompt.settings import Count, check
from mmprompt.training.callbacks import Callback
from mmprompt.training.problem import Run

VANISHED, BURST, OUTGROWN = 1e-7, 100.0, 5.0
"""A gradient norm, times the median so far, and times the size of token embeddings."""
IGNORED = 0.01
"""Nats: prompts that change what the model says next by less are called ignored."""
_log = logging.getLogger(__name__)


class VectorWatch(Callback):
    """Record the gradient's norm and the vectors' size of every epoch, and say once what looks wrong.

    Adds `gradient_norm` and, for vectors among the tokens, `vector_size` (in sizes of the model's token embeddings) to
    every epoch's record. `alarms` are what was said, one sentence each.
    """

    def __init__(self, prompted: LanguagePredictor) -> None:
        self.prompted = prompted
        self.alarms: dict[str, str] = {}
        self._norms: list[float] = []

    def on_train_begin(self, run: Run) -> None:
        """Forget earlier trainings."""
        self.alarms, self._norms = {}, []

    def on_step_end(self, run: Run, step: int, logs: Mapping[str, float]) -> None:
        """Take the norm of the gradient of the step."""
        gradients = [value.grad for value in run.problem.module.parameters() if value.grad is not None]
        self._norms.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        """Write the epoch's figures into its record, and sound the alarms."""
        norm = fmean(self._norms)
        self._norms = []
        logs["gradient_norm"] = norm
        before = [record["gradient_norm"] for record in run.history if "gradient_norm" in record]
        if norm < VANISHED:
            self._sound(
                "vanished",
                f"The gradient has vanished (norm {norm:.1e} in epoch {epoch + 1}): the prompt no longer learns. "
                "Use another start or a higher lr.",
            )
        if before and norm > BURST * median(before) > 0:
            times = f"{norm / median(before):.0f} times its median so far"
            self._sound("burst", f"The gradient burst in epoch {epoch + 1} (norm {norm:.1e}, {times}). Use a lower lr.")
        vectors = self.prompted.vectors().get(LM_INPUT)
        if vectors is None:
            return
        size = rms(vectors.values.detach().float()).item() / self.prompted.model.embedding_rms
        logs["vector_size"] = size
        if size > OUTGROWN:
            self._sound(
                "outgrown",
                f"The vectors have grown to {size:.1f} times the size of token embeddings (epoch {epoch + 1}), where "
                "blocks saturate. Use a lower lr.",
            )

    def _sound(self, name: str, text: str) -> None:
        if name not in self.alarms:
            self.alarms[name] = text
            _log.warning("%s", text)


def nearest_tokens(model: FrozenLanguageModel, vectors: Tensor, k: int = 5) -> list[list[tuple[str, float]]]:
    """Find the k tokens whose embeddings point most nearly the way of each vector [P, D].

    Returns:
        P lists of (token, cosine), nearest first; special tokens are left out.
    """
    check("k", k, Count, "Use `k=5`.")
    if vectors.dim() != 2 or vectors.shape[1] != model.width:
        raise UserError(
            f"the vectors have the shape {list(vectors.shape)}, but [P, {model.width}] was expected, the width of "
            f"{model.name}. Give the vectors of lm.input."
        )
    near = nearest_by_cosine(vectors, model.embed, model.vocabulary_size, k, model.tokenizer.all_special_ids)

    def named(token: int) -> str:
        text: str = model.tokenizer.decode([token])
        is_part = "\ufffd" in text  # of a letter
        return str(model.tokenizer.convert_ids_to_tokens(token)) if is_part else text.strip() or repr(text)

    return [[(named(token), value) for token, value in row] for row in near]


@dataclass(frozen=True)
class Drift:
    """How far a vector went: its nearest token at each moment, the cosine between start and end, and its size at last,
    by that of the model's token embeddings.
    """

    words: tuple[str, ...]
    cosine: float
    size: float


def drift(model: FrozenLanguageModel, moments: Sequence[Tensor]) -> list[Drift]:
    """Describe how the vectors [P, D] of a prompt moved over two or more moments of its training."""
    words = [[pairs[0][0] for pairs in nearest_tokens(model, vectors, 1)] for vectors in moments]
    first, last = moments[0].float(), moments[-1].float()
    cosines = F.cosine_similarity(first, last, dim=1).tolist()
    sizes = (last.square().mean(1).sqrt() / model.embedding_rms).tolist()
    return [Drift(tuple(w), c, s) for w, c, s in zip(zip(*words, strict=True), cosines, sizes, strict=True)]


@dataclass(frozen=True)
class VectorAblation:
    """By how much the mean cross entropy grows, in nats, and the accuracy falls, without one vector.

    Of labels it is a row's, of answers a token's, and there is no accuracy.
    """

    loss: float
    accuracy: float | None


@torch.no_grad()
def ablate(prompted: LanguagePredictor, rows: Sequence[TextRow]) -> list[VectorAblation]:
    """Measure what each vector is worth, by the labels or answers of some rows with its slot left out.

    Vectors among the tokens come first, then keys and values, each in all blocks at once. Rows that hold nothing but
    one vector are passed over.
    """
    has_labels = prompted.label_words is not None
    if any((row.label if has_labels else row.answer) is None for row in rows):
        what = "label" if has_labels else "answer"
        raise UserError(
            f"some rows have no {what}, but what a vector is worth is measured on {what}s. Give rows with {what}s."
        )
    slots = [set(prompted.asked(row.fields, None if has_labels else (row.answer or "",)).slots) for row in rows]
    rows = [row for row, some in zip(rows, slots, strict=True) if len(some) > 1 or min(some, default=0) >= 0]
    if not rows:
        raise UserError("the rows hold nothing but one vector, so nothing is read without it. Give longer texts.")
    loss, accuracy = _loss_and_accuracy(prompted, rows)
    found = []
    for place in range(prompted.bound.n_soft + prompted.n_prefix):
        other, right = _loss_and_accuracy(prompted, rows, place)
        falls = None if accuracy is None or right is None else accuracy - right
        found.append(VectorAblation(other - loss, falls))
    return found


def _loss_and_accuracy(
    prompted: LanguagePredictor, rows: Sequence[TextRow], left_out: int | None = None
) -> tuple[float, float | None]:
    """Measure without one of the vectors, or with all."""
    n_soft, labels = prompted.bound.n_soft, prompted.label_words
    slots = () if left_out is None or left_out >= n_soft else (-1 - left_out,)
    questions = [prompted.asked(row.fields, None if labels else (row.answer or "",)) for row in rows]
    scores = []
    for start, end, inserts in parts_by_task(prompted, rows):
        shortened = [_without(question, slots) for question in questions[start:end]]
        kept = inserts if left_out is None or left_out < n_soft else without_vector(inserts, "lm.kv", left_out - n_soft)
        if labels:
            scores.append(prompted.label_scores(kept, shortened).cpu())
        else:
            scores.append(prompted.model.predict(kept, shortened).answer_log_probs().cpu())
    logits = torch.cat(scores)
    if not labels:
        return -logits.sum().item() / sum(len(question.answers[0]) for question in questions), None
    wanted = torch.tensor([labels.labels.index(str(row.label)) for row in rows])
    return F.cross_entropy(logits, wanted).item(), (logits.argmax(1) == wanted).float().mean().item()


def _without(question: Question, slots: Collection[int]) -> Question:
    kept = [tuple(slot for slot in some if slot not in slots) for some in (question.slots, *question.answers)]
    return Question(kept[0], tuple(kept[1:]))


def token_relevance(prompted: LanguagePredictor, row: TextRow) -> tuple[tuple[int, ...], Tensor]:
    """Compute what each slot of a row adds to its label or answer: gradient times input, at first order what would go
    with the slot's embedding.

    What is scored is the log-probability of the label less the mean of the others', or that of the answer.

    Returns:
        the L slots as in `Question`, and [L] float32, above 0 where a slot speaks for the label or answer.
    """
    own = 0 if prompted.label_words is None else prompted.label_words.labels.index(str(row.label))
    asked = prompted.asked(row.fields, None if prompted.label_words else (row.answer or "",))
    inserts, n = prompted.inserts(row.task if prompted.tasks else ""), len(asked.slots)
    soft, ids = vectors_of(inserts).get(LM_INPUT), torch.tensor([asked.slots], device=prompted.model.device)
    x = embed_slots(prompted.model.embed(ids.clamp(min=0)), ids, soft)[0].detach().requires_grad_()
    # every slot is a vector of x, and those of the prompt behind the answer come after them
    answers = tuple(tuple(token - n if token < 0 else token for token in answer) for answer in asked.answers)
    question = Question(tuple(-1 - place for place in range(n)), answers)
    with torch.enable_grad():
        values = x if soft is None or min(map(min, answers)) >= 0 else torch.cat([x, soft.values])
        inserts = {**inserts, LM_INPUT: Vectors(values)}
        if prompted.label_words is None:
            score = prompted.model.predict(inserts, [question]).answer_log_probs().sum()
        else:
            scores = prompted.label_scores(inserts, [question])[0]
            score = scores[own] - (scores.sum() - scores[own]) / max(1, len(scores) - 1)
        (gradient,) = torch.autograd.grad(score, x)
    return asked.slots, (gradient * x).detach().float().sum(-1).cpu()


@torch.no_grad()
def prompt_effect_kl(prompted: LanguagePredictor, rows: Sequence[TextRow]) -> float:
    """Measure how much a prompt changes what the model says next: the mean KL divergence over rows, in nats.

    Of the distribution over all tokens at the answer's first place, with the prompt from without it (its slots and its
    keys and values left out). Near zero, the prompt is ignored. Rows that hold nothing beside it tell nothing; NaN
    where all are such.
    """
    end = ((prompted.model.end_id,),)
    soft = frozenset(-1 - place for place in range(prompted.bound.n_soft))
    found = []
    for row in rows:
        question = prompted.question(row.fields, end)
        if not _without(question, soft).slots:
            continue
        inserts = prompted.inserts(row.task if prompted.tasks else "")
        learned = prompted.model.predict(inserts, [question]).logits[0].float().log_softmax(-1)
        bare = prompted.model.predict({}, [_without(question, soft)]).logits[0].float().log_softmax(-1)
        found.append(F.kl_div(bare, learned, log_target=True, reduction="sum").item())
    return fmean(found) if found else nan


@torch.no_grad()
def attention_mass(prompted: LanguagePredictor, rows: Sequence[TextRow]) -> Tensor:
    """Measure the attention to each vector where the answer is predicted: [blocks, P], means over heads and rows.

    The P vectors are those among the tokens, or else the keys and values of a prefix. A model with an encoder, or one
    that keeps its attention to itself, is refused.
    """
    model, reader, n_soft = prompted.model, prompted.model.reader, prompted.bound.n_soft
    if not isinstance(reader, CausalReader):
        raise UserError("attention to a prompt is shown for decoders with keys and values. Use ablate for this one.")
    masses = []
    before = model.lm.config._attn_implementation
    model.lm.set_attn_implementation("eager")  # the plain form, which alone gives its weights
    try:
        for row in rows:
            slots = prompted.question(row.fields, ((model.end_id,),)).slots
            inserts = prompted.inserts(row.task if prompted.tasks else "")
            vectors = vectors_of(inserts)
            learned = keys_values(vectors, model.kv_shape, model.dtype)
            n_kept = learned[0][0].shape[2] if learned else 0
            x = reader.embed_slots(torch.tensor([slots], device=model.device), vectors.get(LM_INPUT))
            cache = cache_argument(reader.body, to_cache(learned))
            with model.changed(inserts):
                out = reader.body(inputs_embeds=x, use_cache=True, output_attentions=True, **cache)
            if not out.attentions or out.attentions[0] is None:
                raise UserError(f"{model.name} keeps its attention to itself, so it cannot be shown. Use ablate.")
            last = torch.stack([block[0, :, -1].float().mean(0) for block in out.attentions]).cpu()  # [J, n_kept + L]
            mass = torch.zeros(len(last), n_soft) if n_soft else last[:, :n_kept]
            for place, slot in enumerate(slots):
                if slot < 0:
                    mass[:, -1 - slot] += last[:, n_kept + place]
            masses.append(mass)
    finally:
        model.lm.set_attn_implementation(before)
    return torch.stack(masses).mean(0)
