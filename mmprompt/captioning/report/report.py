"""The report of caption prompts: tables, the curve over strength, and pictures with what each prompt says of them.

It shows what was measured and computes nothing; the page opens anywhere and reaches for no network.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mmprompt.captioning.data import CaptionData
from mmprompt.captioning.measure import CaptionMeasure
from mmprompt.captioning.report import sentences
from mmprompt.captioning.report.figures import draw_adherence, draw_strength
from mmprompt.captioning.report.strip import choose_pictures, draw_captioned, draw_strip, in_strip
from mmprompt.captioning.report.tables import focus_table, speaker_table, strength_table
from mmprompt.files import make_folder, write_bytes, write_json
from mmprompt.reports.figures import LIGHT, Theme
from mmprompt.reports.pages import chart, missing_extra, render_page
from mmprompt.reports.tables import Table, write_tables

__all__ = ["draw_strip", "write_caption_report"]

N_PICTURES = 6


def write_caption_report(measure: CaptionMeasure, data: CaptionData, folder: Path, command: str) -> Path | None:
    """Write `metrics.json` and, with the report extra, `report.html`, its figures and the tables in four forms.

    Args:
        measure: what was measured.
        data: the set that it was measured on, whose pictures are shown.
        folder: where it goes; files of an earlier report are replaced.
        command: how to repeat it.
    Returns:
        The path of the HTML file, None without the extra.
    Raises:
        UserError: the folder cannot be written.
    """
    make_folder(folder)
    write_json(folder / "metrics.json", measure.to_dict())
    if missing_extra():
        return None
    for name, (headers, rows, numbers) in (("captioners", speaker_table(measure)), ("focuses", focus_table(measure))):
        write_tables(Table(tuple(headers), tuple(map(tuple, rows)), min(numbers)), folder, name)
    charts = {name: chart(draw) for name, draw in figures_of(measure).items()}
    chosen, n_missing = choose_pictures(measure, data, N_PICTURES)
    strip = {"strip": draw_captioned(chosen, LIGHT)} if chosen else {}
    for name, drawn in ({name: light for name, (light, _) in charts.items()} | strip).items():
        write_bytes(folder / f"{name}.png", drawn)
    page = render_page(
        "captions",
        **sentences.of(measure, data, command, n_missing),
        confusion=charts.pop("confusion")[1],
        curves=[shown for _, shown in charts.values()],
        pictures=in_strip(chosen),
        speakers=speaker_table(measure),
        focuses=measure.focuses,
        strengths={focus: strength_table(points) for focus, points in measure.strengths.items() if points},
    )
    path = folder / "report.html"
    write_bytes(path, page.encode())
    return path


def figures_of(measure: CaptionMeasure) -> dict[str, Callable[[Theme], bytes]]:
    """How each chart is drawn in a theme, by file name; curves are numbered, for a focus may be named anyhow."""
    drawn: dict[str, Callable[[Theme], bytes]] = {"confusion": partial(draw_adherence, measure.confusion)}
    for number, (focus, points) in enumerate(measure.strengths.items(), 1):
        if points:
            drawn[f"strength_{number}"] = partial(draw_strength, points, focus)
    return drawn
