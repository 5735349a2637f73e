"""From the words that a model may answer with to the labels they stand for.

A verbalizer adds up words to labels; calibration takes out what a model answers whatever it reads; an ensemble joins
what several templates say. Only log-probabilities are known here, and no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from mmprompt.errors import UserError, bad_value, unknown_name
from mmprompt.settings import check_settings, validate

Aggregation = Literal["logsumexp", "mean", "first"]
Ensemble = Literal["mean-log", "mean-prob", "vote"]

CONTENT_FREE = ("N/A", "", "[MASK]")
"""Texts that say nothing, as in the published code of Zhao et al. 2021."""

_LOG_TIE = math.log(1e-6)  # of a vote: enough to part equal counts, too little to change unequal ones


@dataclass(frozen=True)
class Verbalizer:
    """The words of each label.

    Args:
        words: label -> its word or words, in the order of the labels; kept as tuples.
        aggregation: how a label's words count together: their probabilities added up ("logsumexp"), the mean of their
            log-probabilities ("mean"), or the first word alone ("first").
        length_normalised: whether a word of several tokens is scored by the mean of its tokens' log-probabilities, not
            by their sum; the sum favours short words, the mean words whose end follows from their beginning.
        log_priors: of each word that is scored, label after label, what is taken from its score: see
            `knowledge.calibrate_words`; () for nothing.
    Raises:
        UserError: there are fewer than two labels, a label has no word, a word is empty, no text or there twice, or the
            aggregation is unknown, or there are not as many priors as words.
    """

    words: Mapping[str, str | Sequence[str]]
    aggregation: Aggregation = "logsumexp"
    length_normalised: bool = False
    log_priors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_settings(self)
        if len(self.words) < 2:
            raise bad_value("the number of labels", len(self.words), "two or more are needed", "Give words for each.")
        listed = {
            label: tuple(words) if isinstance(words, Iterable) and not isinstance(words, str) else (words,)
            for label, words in self.words.items()
        }
        owner: dict[str, str] = {}
        for label, words in listed.items():
            _check_words(label, words, owner)
        object.__setattr__(self, "words", listed)
        if len(self.log_priors) not in (0, len(self.flat)):
            expected = f"one for each of the {len(self.flat)} words is needed"
            raise bad_value("the number of log_priors", len(self.log_priors), expected, "Leave them out.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Verbalizer:
        """Read what `to_dict` gave."""
        return validate(cls, values, "verbalizer")

    def to_dict(self) -> dict[str, Any]:
        """Return what a file keeps."""
        return asdict(self)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in order."""
        return tuple(self.words)

    @property
    def flat(self) -> tuple[str, ...]:
        """The words that are scored, W in all, label after label."""
        return tuple(word for _, words in self._pairs() for word in words)

    def label_scores(self, word_log_probs: Tensor, n_tokens: Sequence[int]) -> Tensor:
        """Return the score of each label: [N, C] log-probabilities over the labels; see `label_masses`."""
        return self.label_masses(word_log_probs, n_tokens).log_softmax(-1)

    def word_scores(self, word_log_probs: Tensor, n_tokens: Sequence[int]) -> Tensor:
        """Return [N, W] of what `label_masses` is given, per token where words are scored so; without priors."""
        scores = word_log_probs.reshape(-1, len(self.flat))
        if self.length_normalised:
            sizes = torch.tensor(n_tokens, dtype=scores.dtype, device=scores.device)
            scores = scores / sizes.reshape(-1, len(self.flat))
        return scores

    def label_masses(self, word_log_probs: Tensor, n_tokens: Sequence[int]) -> Tensor:
        """Return how probable each label is among all answers: [N, C] log-probabilities that do not sum to 1.

        Given are [N, W] or [N W] sums of the log-probabilities of each word's tokens, and each word's number of tokens,
        W or N W of them.
        """
        scores = self.word_scores(word_log_probs, n_tokens)
        if self.log_priors:
            scores = scores - torch.tensor(self.log_priors, dtype=scores.dtype, device=scores.device)
        masses, start = [], 0
        for _, words in self._pairs():
            of_label = scores[:, start : start + len(words)]
            masses.append(of_label.logsumexp(-1) if self.aggregation == "logsumexp" else of_label.mean(-1))
            start += len(words)
        return torch.stack(masses, dim=-1)

    def describe(self, answers: Sequence[Sequence[int]], tokenizer: Any, is_last: bool = True) -> tuple[str, ...]:
        """Describe the words' tokens, which `BoundTemplate.answers` gives and may end the text, one sentence each."""
        self.check_distinct(answers)
        how = "mean" if self.length_normalised else "sum"
        notes = []
        pairs = [(word, tuple(ids)) for word, ids in zip(self.flat, answers, strict=True)]
        for word, ids in pairs:
            if len(ids) > 1:
                parts = ", ".join(repr(tokenizer.decode([i])) for i in ids)
                scored = f"scored by the {how} of their log-probabilities"
                notes.append(f"{word!r} is {len(ids)} tokens ({parts}), {scored}.")
        for word, ids in pairs if is_last and not self.length_normalised else ():
            longer = [other for other, rest in pairs if len(ids) < len(rest) and rest[: len(ids)] == ids]
            if longer:
                notes.append(f"{word!r} begins {longer[0]!r} and can never be less probable than it.")
        return tuple(notes)

    def check_distinct(self, answers: Sequence[Sequence[int]]) -> None:
        """Refuse words of two labels that have the same tokens, so that the model cannot tell them apart."""
        owner: dict[tuple[int, ...], tuple[str, str]] = {}
        pairs = [(label, word) for label, words in self._pairs() for word in words]
        for (label, word), ids in zip(pairs, answers, strict=True):
            owning_label, other = owner.setdefault(tuple(ids), (label, word))
            if owning_label != label:
                problem = "stand for two labels, but are the same tokens to this model"
                raise UserError(f"{other!r} and {word!r} {problem}. Choose other words.")

    def _pairs(self) -> list[tuple[str, tuple[str, ...]]]:
        n_kept = 1 if self.aggregation == "first" else None
        return [(label, tuple(words)[:n_kept]) for label, words in self.words.items()]


def _check_words(label: str, words: tuple[str, ...], owner: dict[str, str]) -> None:
    if not words:
        raise UserError(f"the label {label!r} has no word, but one at least is needed. Add one to the verbalizer.")
    for word in words:
        if not isinstance(word, str):
            raise bad_value(
                f"a word of the label {label!r}", repr(word)[:40], "a text was expected", "Write it as one."
            )
        if not word.strip():
            raise UserError(f"a word of the label {label!r} is empty. Write a word, or remove it.")
        other = owner.setdefault(word.strip(), label)
        if other != label:
            raise UserError(f"the word {word!r} stands for {other!r} and {label!r}. Give each label words of its own.")
    if len({word.strip() for word in words}) < len(words):
        raise UserError(f"a word of the label {label!r} stands twice: {', '.join(map(repr, words))}. Write it once.")


def calibrate(log_probs: Tensor, content_free_masses: Tensor) -> Tensor:
    """Contextual calibration: divide by what the model answers to texts that say nothing (Zhao et al. 2021).

    There W = diag(p_cf)^-1 and b = 0, and the label is the largest of W p. As in their code, p_cf is the mean of the
    labels' probabilities among all answers, normalised once: a text to which none of the labels is a likely answer
    counts for little. The quotients are normalised here, which keeps their order. Domain-conditional PMI (Holtzman et
    al. 2021) is the same quotient with another reference: the answers after the end of the template alone.

    Of [N, C] log-probabilities, and the `label_masses` [K, C] of K texts such as `CONTENT_FREE` in the same template.
    """
    if len(content_free_masses) == 0:
        raise UserError('there are no content-free texts, but calibration needs one. Give one such as "N/A".')
    reference = content_free_masses.logsumexp(0)  # of the mean probability, up to a constant
    return (log_probs - reference).log_softmax(-1)


def ensemble(log_probs: Sequence[Tensor], weights: Sequence[float] | None = None, how: Ensemble = "mean-log") -> Tensor:
    """Join what several templates say of the same rows, [N, C] log-probabilities of each: the same of all together.

    Weights are 0 or more, finite and not all 0, equal by default. It is the mean of log-probabilities ("mean-log"), of
    probabilities ("mean-prob"), or the share of templates whose first choice a label is ("vote"; equal shares are
    parted by the mean probability).
    """
    if how not in get_args(Ensemble):
        raise unknown_name("way to join templates", str(how), get_args(Ensemble))
    if not log_probs:
        raise UserError("there are no templates to join, but one at least is needed. Give one.")
    given = [1.0] * len(log_probs) if weights is None else list(weights)
    if len(given) != len(log_probs) or min(given) < 0 or not 0 < sum(given) < math.inf:
        expected = f"{len(log_probs)} of 0 or more are needed, finite and not all 0"
        raise bad_value("weights", given, expected, "Give one for each template.")
    stacked = torch.stack([some.log_softmax(-1) for some in log_probs])  # [K, N, C]
    shares = torch.tensor(given, dtype=stacked.dtype, device=stacked.device) / sum(given)
    stacked, log_shares = stacked[shares > 0], shares[shares > 0].log()[:, None, None]
    if how == "mean-log":
        return (log_shares.exp() * stacked).sum(0).log_softmax(-1)
    mean = (log_shares + stacked).logsumexp(0)
    if how == "vote":
        votes = F.one_hot(stacked.argmax(-1), stacked.shape[-1])
        mean = torch.logaddexp((log_shares.exp() * votes).sum(0).log(), mean + _LOG_TIE)
    return mean.log_softmax(-1)
