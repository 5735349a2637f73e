"""The report of caption prompts: tables, the curve over strength, and images with what each prompt says of them.

It shows what was measured and computes nothing; the page opens anywhere and reaches for no network.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

from mmprompt.captioning.data import CaptionData
from mmprompt.captioning.measure import N_CURVE, CaptionMeasure
from mmprompt.captioning.report.figures import draw_adherence, draw_strength
from mmprompt.captioning.report.strip import choose_images, draw_captioned
from mmprompt.captioning.report.tables import focus_table, gain_rows, notes, speaker_table, strength_table
from mmprompt.files import make_folder, write_json
from mmprompt.reports.figures import LIGHT
from mmprompt.reports.pages import Draw, missing_extra, write_page
from mmprompt.reports.tables import Table, write_tables

N_IMAGES = 6


def write_caption_report(measure: CaptionMeasure, data: CaptionData, folder: Path, command: str) -> Path | None:
    """Write `metrics.json` and, with the report extra, `report.html`, its figures and the tables in four forms.

    Args:
        measure: what was measured.
        data: the set that it was measured on, whose images are shown.
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
