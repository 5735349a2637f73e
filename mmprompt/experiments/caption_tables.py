"""What was measured of caption prompts, as tables of text."""

from __future__ import annotations

from collections.abc import Sequence

from mmprompt.evaluation.adherence import Lift
from mmprompt.tasks.caption_measure import NO_PROMPT, CaptionMeasure, Point

Table = tuple[list[str], list[list[str]], tuple[int, ...]]
"""Headers, rows, and which columns are numbers."""


def speaker_table(measure: CaptionMeasure) -> Table:
    """Who spoke of what: adherence to every focus in %, with length, variety and closeness to the references."""
    headers = ["captioner", *measure.confusion.focuses, "words", "distinct", "BLEU-4", "ROUGE-L", "CIDEr-D"]
    headers += ["CLIPScore"] if measure.clip_scores else []
    rows = []
    for speaker, row in zip(measure.speakers, measure.confusion.values, strict=True):
        text = measure.text_scores[speaker.name]
        cells = [f"{100 * value:.1f}" for value in row]
        cells += [f"{text.mean_length:.1f}", percent(text.distinct_ratio), percent(text.bleu[3]), percent(text.rouge_l)]
        cells += [percent(text.cider_d)]
        if measure.clip_scores:
            cells.append(f"{measure.clip_scores[speaker.name].mean:.3f}")
        name = f'{speaker.name} ("{speaker.words}")' if speaker.words else speaker.name
        rows.append([name, *cells])
    return headers, rows, tuple(range(1, len(headers)))


def focus_table(measure: CaptionMeasure) -> Table:
    """What each learned prompt gains, whether what it names is there, and what people reach."""
    headers = ["focus", "adherence", "people", "over no prompt", "over words", "grounded", "people", "without a prompt"]
    headers += ["recall", "people", "per caption", "people"]
    rows = []
    for focus in measure.focuses:
        scores, bare = measure.focus_scores[focus][focus], measure.focus_scores[NO_PROMPT][focus]
        values, human, lifts = scores.values, scores.human, measure.lifts[focus]
        rows.append(
            [
                focus,
                percent(values["adherence"]),
                percent(human["adherence"]),
                gain(lifts.get("adherence over none")),
                gain(lifts.get("adherence over words")),
                percent(values["grounded_precision_all"]),
                percent(human["grounded_precision_all"]),
                percent(bare.values["grounded_precision_all"]),
                percent(values["recall"]),
                percent(human["recall"]),
                number(values["density"]),
                number(human["density"]),
            ]
        )
    return headers, rows, tuple(range(1, len(headers)))


def strength_table(points: Sequence[Point]) -> Table:
    """One prompt over strength."""
    headers = ["strength", "adherence", "grounded", "CIDEr-D", "words", "distinct"]
    rows = [
        [
            f"{point.strength:g}",
            percent(point.adherence),
            percent(point.grounded_precision),
            percent(point.cider_d),
            f"{point.mean_length:.1f}",
            percent(point.distinct_ratio),
        ]
        for point in points
    ]
    return headers, rows, tuple(range(len(headers)))


def gain(lift: Lift | None) -> str:
    """Points with their 95 % interval."""
    if lift is None:
        return "-"
    low, high = lift.interval
    return f"{100 * lift.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def percent(value: float | None) -> str:
    """A share in %, a dash where there is none."""
    return "-" if value is None else f"{100 * value:.1f}"


def number(value: float | None) -> str:
    """A number, a dash where there is none."""
    return "-" if value is None else f"{value:.2f}"
