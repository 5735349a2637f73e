"""The report of a run: one HTML file that opens anywhere, and its figures as PNG files beside it.

It reads the run folder alone (`record.py`); its sentences are in `report.html.jinja`, every claim after an interval. It
never trains, evaluates or reaches for the network.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mmprompt.classification.report.examples import choose_examples, draw_sheets, most_confused
from mmprompt.classification.report.record import Record, read_record
from mmprompt.reports import figures
from mmprompt.reports.pages import Draw, require_extra, write_page
from mmprompt.reports.tables import percent
from mmprompt.settings import checked

FURTHER = {"top5": "right among the five most probable", "macro_f1": "macro F1"}
"""Measures that not every run kept."""


@checked
def write_report(folder: Path | str) -> Path:
    """Write `report.html` and the figures of a finished run into its folder.

    Args:
        folder: a run folder.
    Returns:
        The path of the HTML file.
    Raises:
        UserError: the folder holds no finished run, cannot be written, or the report extra is not installed.
    """
    require_extra()
    record = read_record(folder)
    labels = dict.fromkeys(record.measured, f"template “{record.template}”")
    labels |= {"zero_shot_name": "bare class name", "learned": "learned prompt"}
    before, after = (record.class_accuracies(key) for key in ("zero_shot_template", "learned"))
    changes = {name: after[name] - before[name] for name in after}  # of the classes with test images
    measures = record.metrics["learned"]
    bins = record.reliability
    right, wrong, n_missing = choose_examples(record.shown, record.class_names)
    return write_page(
        record.folder,
        "report",
        charts_of(record, labels, before, after),
        draw_sheets(right, wrong),
        record=record,
        labels=labels,
        further=[
            f"{text} {percent(measures[name])}" for name, text in FURTHER.items() if measures.get(name) is not None
        ],
        changes=list(changes.values()),
        most_gained=max(changes.items(), key=lambda change: change[1]),
        most_lost=min(changes.items(), key=lambda change: change[1]),
        confused=most_confused(record.confusion, record.class_names),
        is_surer=sum(n * (c - a) for n, c, a in zip(bins.counts, bins.confidence, bins.accuracy, strict=True)) > 0,
        right=right,
        wrong=wrong,
        n_missing=n_missing,
    )


def charts_of(
    record: Record, labels: dict[str, str], before: dict[str, float], after: dict[str, float]
) -> dict[str, Draw]:
    """Return how each chart of a run is drawn, by file name; those without data are left out.

    Args:
        record: the run.
        labels: what each measured classifier is called.
        before: accuracy by class, zero-shot with the template.
        after: accuracy by class, learned.
    """
    rows = [
        figures.Row(labels[key], measured.accuracy, measured.interval, key == "learned")
        for key, measured in record.measured.items()
    ]
    charts: dict[str, Draw] = {
        "accuracy": partial(figures.draw_accuracy, rows, 1 / len(record.class_names)),
        "classes": partial(figures.draw_classes, list(after), [before[name] for name in after], list(after.values())),
        "calibration": partial(figures.draw_reliability, record.reliability),
        "confusion": partial(figures.draw_confusion, record.confusion.tolist(), record.class_names),
    }
    if record.log:
        charts["learning_curve"] = partial(figures.draw_learning_curve, record.log)
    return charts
