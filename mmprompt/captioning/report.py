"""The report of caption prompts: tables, the curve over strength, and images with what each prompt says of them.

It shows what was measured and computes nothing; the page opens anywhere and reaches for no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from mmprompt.captioning.data import CaptionData
from mmprompt.captioning.figures import choose_images, draw_adherence, draw_captioned, draw_strength
from mmprompt.captioning.measure import N_CURVE, NO_PROMPT, CaptionMeasure, Point
from mmprompt.files import make_folder, write_json
from mmprompt.reports.figures import LIGHT
from mmprompt.reports.numbers import between, percent, signed
from mmprompt.reports.pages import Draw, missing_extra, write_page
from mmprompt.reports.tables import Table, write_tables

N_IMAGES = 6
Columns = tuple[list[str], list[list[str]], tuple[int, ...]]
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


def write_caption_report(measure: CaptionMeasure, data: CaptionData, folder: Path, command: str) -> Path | None:
    """Write `metrics.json` and, with the report extra, `report.html`, its figures and the tables in four forms.

    Files of an earlier report in the folder are replaced; `command` is how to repeat it. Return the path of the HTML
    file, None without the extra.
    """
    make_folder(folder)
    write_json(folder / "metrics.json", measure.to_dict())
    if missing_extra():
        return None
    for name, (headers, rows, numbers) in (("captioners", speaker_table(measure)), ("focuses", focus_table(measure))):
        write_tables(Table(tuple(headers), tuple(map(tuple, rows)), min(numbers)), folder, name)
    charts: dict[str, Draw] = {"confusion": partial(draw_adherence, measure.confusion)}
    curves = {focus: points for focus, points in measure.strengths.items() if points}
    for number, (focus, points) in enumerate(curves.items(), 1):  # a focus may have any name, a file may not
        charts[f"strength_{number}"] = partial(draw_strength, points, focus)
    chosen, n_missing = choose_images(measure, data, N_IMAGES)
    return write_page(
        folder,
        "captions",
        charts,
        {"strip": draw_captioned(chosen, LIGHT)} if chosen else {},
        measure=measure,
        data=data,
        decoding=asdict(measure.decoding),
        command=command,
        n_curve=N_CURVE,
        own=[measure.focus_scores[focus][focus] for focus in measure.focuses],
        gains={focus: gain_rows(measure, focus) for focus in measure.focuses},
        speakers=speaker_table(measure),
        curves=curves,
        strengths={focus: strength_table(points) for focus, points in curves.items()},
        chosen=chosen,
        n_missing=n_missing,
        notes=notes(measure, data),
    )


def speaker_table(measure: CaptionMeasure) -> Columns:
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


def focus_table(measure: CaptionMeasure) -> Columns:
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


def strength_table(points: Sequence[Point]) -> Columns:
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
