"""The report of a run: one HTML file that opens anywhere, and its figures as PNG files beside it.

It reads the run folder alone (`record.py`), says what was found in sentences, and leaves drawing to
`figures.py`. It never trains, evaluates or reaches for the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmprompt.classification.report import sentences
from mmprompt.classification.report.examples import Example, choose_examples, draw_sheets, in_page, most_confused
from mmprompt.classification.report.record import Record, read_record
from mmprompt.errors import UserError
from mmprompt.files import write_bytes
from mmprompt.reports import curves, figures
from mmprompt.reports.figures import Theme
from mmprompt.reports.numbers import missing_pictures
from mmprompt.reports.pages import chart, missing_extra, render_page


def write_report(folder: Path | str) -> Path:
    """Write `report.html` and the figures of a finished run into its folder.

    Args:
        folder: a run folder.
    Returns:
        The path of the HTML file.
    Raises:
        UserError: the folder holds no finished run, cannot be written, or the report extra is not installed.
    """
    problem = missing_extra()
    if problem:
        raise UserError(problem)
    record = read_record(folder)
    right, wrong, n_missing = choose_examples(record.shown, record.class_names)
    charts = {name: chart(draw) for name, draw in charts_of(record).items()}
    drawn = {name: light for name, (light, _) in charts.items()}
    for name, data in {**drawn, **draw_sheets(right, wrong)}.items():
        write_bytes(record.folder / f"{name}.png", data)
    pages = {name: shown for name, (_, shown) in charts.items()}
    path = record.folder / "report.html"
    write_bytes(path, render(record, pages, right, wrong, n_missing).encode())
    return path


def charts_of(record: Record) -> dict[str, Callable[[Theme], bytes]]:
    """How each chart of a run is drawn in a theme, by file name; what there is no data for is left out."""
    rows = [
        figures.Row(row_label(record, m.key), m.accuracy, m.interval, m.key == "learned")
        for m in record.measured.values()
    ]
    names, before, after = classes_of(record)
    charts: dict[str, Callable[[Theme], bytes]] = {
        "accuracy": lambda theme: figures.draw_accuracy(rows, 1 / len(record.class_names), theme),
        "classes": lambda theme: curves.draw_classes(names, before, after, theme),
        "calibration": lambda theme: curves.draw_reliability(record.reliability, theme),
        "confusion": lambda theme: figures.draw_confusion(record.confusion.tolist(), record.class_names, theme),
    }
    if record.log:
        loss, accuracy, validation = (record.log_values(name) for name in ("loss", "accuracy", "val_accuracy"))
        epochs = range(1, len(record.log) + 1)
        charts["learning_curve"] = lambda theme: figures.draw_learning_curve(epochs, loss, accuracy, validation, theme)
    return charts


def classes_of(record: Record) -> tuple[list[str], list[float], list[float]]:
    """The classes with test pictures: their names, zero-shot with the template, and learned, in shares right."""
    before, after = (record.class_accuracies(key) for key in ("zero_shot_template", "learned"))
    return list(after), [before[name] for name in after], list(after.values())


def row_label(record: Record, key: str) -> str:
    """How a measured row is called, the template with its words."""
    return {"zero_shot_name": "bare class name", "learned": "learned prompt"}.get(key, f"template “{record.template}”")


def render(
    record: Record, pages: dict[str, Any], right: Sequence[Example], wrong: Sequence[Example], n_missing: int
) -> str:
    """The HTML of a report, every text in it escaped."""
    return render_page(
        "report",
        figures={"learning_curve": None} | pages,
        right=in_page(right),
        wrong=in_page(wrong),
        confused=most_confused(record.confusion, record.class_names),
        missing_pictures=missing_pictures(n_missing),
        **sentences.of(record, {key: row_label(record, key) for key in record.measured}),
    )
