"""What was measured of caption prompts, as tables of text."""

from __future__ import annotations

from collections.abc import Sequence

from mmprompt.captioning.measure import NO_PROMPT, CaptionMeasure, Point
from mmprompt.captioning.metrics.adherence import Lift
from mmprompt.reports.numbers import between, percent, signed

Table = tuple[list[str], list[list[str]], tuple[int, ...]]
"""Headers, rows, and which columns are numbers."""

SHOWN = {
    "adherence": "adherence",
    "grounded_precision_all": "grounded precision",
    "recall": "recall",
    "density": "items a caption",
    "mean_length": "words a caption",
    "distinct_ratio": "distinct captions",
}
"""How each measure in the table of gains is called."""
NUMBERS = {"density": 2, "mean_length": 1}
"""Measures that are no shares, and their decimals."""


def speaker_table(measure: CaptionMeasure) -> Table:
    """Who spoke of what: adherence to every focus in %, with length, variety and closeness to the references."""
    headers = ["captioner", *measure.confusion.focuses, "words", "distinct", "BLEU-4", "ROUGE-L", "CIDEr-D"]
    headers += ["CLIPScore"] if measure.clip_scores else []
    rows = []
    for speaker, row in zip(measure.speakers, measure.confusion.values, strict=True):
        text = measure.text_scores[speaker.name]
        cells = [f"{100 * value:.1f}" for value in row]
        cells += [
            f"{text.mean_length:.1f}",
            in_percent(text.distinct_ratio),
            in_percent(text.bleu[3]),
            in_percent(text.rouge_l),
        ]
        cells += [in_percent(text.cider_d)]
        if measure.clip_scores:
            cells.append(f"{measure.clip_scores[speaker.name].mean:.3f}")
        name = f'{speaker.name} ("{speaker.words}")' if speaker.words else speaker.name
        rows.append([name, *cells])
    return headers, rows, tuple(range(1, len(headers)))


def focus_table(measure: CaptionMeasure) -> Table:
    """What each learned prompt reaches and gains beside people, no prompt and words."""
    headers = ["focus", "measure", "learned", "people", "no prompt", "gained", "words", "gained over words"]
    rows = [[focus, *row] for focus in measure.focuses for row in gain_rows(measure, focus)]
    return headers, rows, tuple(range(2, len(headers)))


def gain_rows(measure: CaptionMeasure, focus: str) -> list[list[str]]:
    """The table of one focus: measure, learned prompt, people, no prompt, gained, words, gained."""
    learned = measure.focus_scores[focus][focus]
    bare, words = (measure.focus_scores[name][focus].values for name in (NO_PROMPT, f"words: {focus}"))
    lifts = measure.lifts[focus]
    return [
        [
            label,
            value_of(name, learned.values[name]),
            value_of(name, learned.human[name]),
            value_of(name, bare[name]),
            gain_of(lifts.get(f"{name} over none")),
            value_of(name, words[name]),
            gain_of(lifts.get(f"{name} over words")),
        ]
        for name, label in SHOWN.items()
    ]


def value_of(name: str, value: float | None) -> str:
    """A measure as the table shows it, a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:.{NUMBERS[name]}f}" if name in NUMBERS else percent(value)


def gain_of(lift: Lift | None) -> str:
    """Points with their 95 % interval, nothing where none was measured."""
    return "" if lift is None else f"{signed(lift.difference)} ({between(lift.interval, with_sign=True)})"


def strength_table(points: Sequence[Point]) -> Table:
    """One prompt over strength."""
    headers = ["strength", "adherence", "grounded", "CIDEr-D", "words", "distinct"]
    rows = [
        [
            f"{point.strength:g}",
            in_percent(point.adherence),
            in_percent(point.grounded_precision),
            in_percent(point.cider_d),
            f"{point.mean_length:.1f}",
            in_percent(point.distinct_ratio),
        ]
        for point in points
    ]
    return headers, rows, tuple(range(len(headers)))


def in_percent(value: float | None) -> str:
    """A share in %, its column says so; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.1f}"
