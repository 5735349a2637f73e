"""What was measured of prompts of language models, as tables of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmprompt.terminal.output import between, percent

if TYPE_CHECKING:
    from mmprompt.language.measure import LanguageScore


Table = tuple[list[str], list[list[str]]]


def score_table(scores: Sequence[LanguageScore]) -> Table:
    """Headers and rows: accuracy and macro F1 of labels, exact match and likeness of answers."""
    if scores[0].labels is not None:
        rows = [
            [score.name, percent(score.labels.accuracy), between(score.interval), percent(score.labels.macro_f1)]
            for score in scores
            if score.labels is not None
        ]
        return ["", "accuracy", "95 % interval", "macro F1"], rows
    rows = [
        [
            score.name,
            percent(score.texts.exact_match),
            between(score.interval),
            f"{score.texts.bleu:.1f}",
            f"{score.texts.chrf:.1f}",
            f"{100 * score.texts.rouge_l:.1f}",
        ]
        for score in scores
        if score.texts is not None
    ]
    return ["", "exact match", "95 % interval", "BLEU", "chrF", "ROUGE-L"], rows


def confusion_table(score: LanguageScore) -> Table:
    """How often each label, a row each, was taken for each other."""
    assert score.labels is not None, "texts have no confusion"
    names = list(score.labels.class_names)
    rows = [[name, *map(str, counts)] for name, counts in zip(names, score.labels.confusion.tolist(), strict=True)]
    return ["is \\ said", *names], rows
