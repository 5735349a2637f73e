"""How close generated texts are to the expected ones: exact match, BLEU, chrF and ROUGE-L, each by its usual library.

Where classes are told apart instead, `metrics.evaluate_probabilities` gives accuracy and macro F1, and captions have
the numbers of COCO in `caption_metrics`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmprompt.core.metrics import bootstrap_interval
from mmprompt.errors import UserError


@dataclass(frozen=True)
class TextScores:
    """How well N generated texts fit the expected ones.

    Args:
        is_exact: [N] whether each text is the expected one.
        interval: 95 % bootstrap interval of the exact match over texts.
        bleu: of the whole corpus, 0..100 (Papineni et al. 2002); 0 where no text has four words in a row, so read chrF
            of short answers.
        chrf: of the whole corpus, 0..100 (Popović 2015).
        rouge_l: mean F measure of the longest common subsequence of words, 0..1 (Lin 2004).
        signatures: how sacrebleu computed `bleu` and `chrf`, to be printed beside the numbers.
    """

    is_exact: tuple[bool, ...]
    interval: tuple[float, float]
    bleu: float
    chrf: float
    rouge_l: float
    signatures: Mapping[str, str]

    @property
    def n(self) -> int:
        """Number of texts."""
        return len(self.is_exact)

    @property
    def exact_match(self) -> float:
        """Share of texts that are the expected ones, 0..1."""
        return sum(self.is_exact) / self.n


def score_texts(texts: Sequence[str], expected: Sequence[str]) -> TextScores:
    """Compare generated texts with the expected ones.

    A text is exact if it is the expected one but for blanks at its ends and the Unicode form of its letters; case and
    punctuation count.

    Args:
        texts: [N] as generated, N at least 1; may be empty strings.
        expected: [N] one reference each.
    Raises:
        UserError: there are none, the numbers differ, or sacrebleu or rouge-score is not installed.
    """
    if not texts or len(texts) != len(expected):
        raise UserError(
            f"there are {len(texts)} texts and {len(expected)} expected ones, but at least one of each and as many of "
            "both were expected. Give one expected text for each."
        )
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError as error:
        raise UserError(
            f"BLEU, chrF and ROUGE-L need sacrebleu and rouge-score, and {error.name} is not installed. "
            'Install them: pip install "mmprompt[llm]".'
        ) from None
    written, wanted = ([unicodedata.normalize("NFC", text.strip()) for text in each] for each in (texts, expected))
    is_exact = tuple(text == other for text, other in zip(written, wanted, strict=True))
    bleu, chrf = BLEU(), CHRF()
    rouge = RougeScorer(["rougeL"], tokenizer=_Words())
    rouge_l = [rouge.score(other, text)["rougeL"].fmeasure for text, other in zip(written, wanted, strict=True)]
    bleu_score, chrf_score = (metric.corpus_score(written, [wanted]).score for metric in (bleu, chrf))
    return TextScores(
        is_exact,
        bootstrap_interval(np.array(is_exact)),
        float(bleu_score),
        float(chrf_score),
        float(np.mean(rouge_l)),
        {"bleu": str(bleu.get_signature()), "chrf": str(chrf.get_signature())},
    )


class _Words:
    """The words of ROUGE in any script; rouge-score's own drops every letter beyond a to z."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())
