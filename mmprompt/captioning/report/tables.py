"""What was measured of caption prompts, as tables of text."""

from __future__ import annotations

from collections.abc import Sequence

from mmprompt.captioning.data import CaptionData
from mmprompt.captioning.measure import NO_PROMPT, CaptionMeasure, Point
from mmprompt.reports.tables import between, percent, signed

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
    """Tabulate every captioner: adherence to every focus in %, length, variety and closeness to the references."""
    headers = ["captioner", *measure.confusion.focuses, "words", "distinct", "BLEU-4", "ROUGE-L", "CIDEr-D"]
    rows = []
    for speaker, adherence in zip(measure.speakers, measure.confusion.values, strict=True):
        text = measure.text_scores[speaker.name]
        shares = map(in_percent, (text.distinct_ratio, text.bleu[3], text.rouge_l, text.cider_d))
        name = f'{speaker.name} ("{speaker.words}")' if speaker.words else speaker.name
        rows.append([name, *map(in_percent, adherence), f"{text.mean_length:.1f}", *shares])
    if measure.clip_scores:
        headers.append("CLIPScore")
        for row, speaker in zip(rows, measure.speakers, strict=True):
            row.append(f"{measure.clip_scores[speaker.name].mean:.3f}")
    return headers, rows, tuple(range(1, len(headers)))


def focus_table(measure: CaptionMeasure) -> Table:
    """Tabulate what each learned prompt reaches and gains beside people, no prompt and words."""
    headers = ["focus", "measure", "learned", "people", "no prompt", "gained", "words", "gained over words"]
    rows = [[focus, *row] for focus in measure.focuses for row in gain_rows(measure, focus)]
    return headers, rows, tuple(range(2, len(headers)))


def gain_rows(measure: CaptionMeasure, focus: str) -> list[list[str]]:
    """Return the rows of one focus: measure, learned prompt, people, no prompt, gained, words, gained."""

    def write(name: str, value: float | None) -> str:
        if value is None:
            return "-"
        return f"{value:.{NUMBERS[name]}f}" if name in NUMBERS else percent(value)

    def write_gain(name: str) -> str:
        lift = measure.lifts[focus].get(name)
        return "" if lift is None else f"{signed(lift.difference)} ({between(lift.interval, with_sign=True)})"

    learned, bare, words = (measure.focus_scores[name][focus] for name in (focus, NO_PROMPT, f"words: {focus}"))
    return [
        [
            label,
            *(write(name, values[name]) for values in (learned.values, learned.human, bare.values)),
            write_gain(f"{name} over none"),
            write(name, words.values[name]),
            write_gain(f"{name} over words"),
        ]
        for name, label in SHOWN.items()
    ]


def strength_table(points: Sequence[Point]) -> Table:
    """Tabulate one prompt over strength."""
    headers = ["strength", "adherence", "grounded", "CIDEr-D", "words", "distinct"]
    rows = [
        [
            f"{point.strength:g}",
            *map(in_percent, (point.adherence, point.grounded_precision, point.cider_d)),
            f"{point.mean_length:.1f}",
            in_percent(point.distinct_ratio),
        ]
        for point in points
    ]
    return headers, rows, tuple(range(len(headers)))


def notes(measure: CaptionMeasure, data: CaptionData) -> list[str]:
    """Return what a careful reader should know, each once: of the data, the measures and the human ceiling."""
    ceilings = [note for focus in measure.focuses for note in measure.focus_scores[focus][focus].notes]
    return list(dict.fromkeys([*data.notes, *measure.notes, *ceilings]))


def in_percent(value: float | None) -> str:
    """Return a share in %, which its column says; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.1f}"
