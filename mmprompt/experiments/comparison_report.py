"""The report of a comparison: tables in four forms, figures as PNG files, and one HTML file that opens anywhere.

It shows what `summary` found, in the layout of a protocol; what is said of it is in `comparison.html.jinja`. It
computes nothing and reaches for no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mmprompt.classification.report import N_CONFUSED, Shown, choose_examples, draw_sheets
from mmprompt.core.confidence import reliability
from mmprompt.core.metrics import most_confused
from mmprompt.experiments.grid import TEXTS
from mmprompt.experiments.paper_tables import LAYOUTS, cost_table
from mmprompt.experiments.summary import Comparison, Line
from mmprompt.files import make_folder, write_json
from mmprompt.reports import figures
from mmprompt.reports.figures import Curve
from mmprompt.reports.pages import Draw, require_extra, write_page
from mmprompt.reports.tables import write_tables

NO_IMAGE = Path()
MEASURES = {
    "top5": "top 5",
    "macro_f1": "macro F1",
    "calibration_error": "calibration error",
    "exact_match": "exact match",
    "rouge_l": "ROUGE-L",
}
"""Shares that are shown beside accuracy."""


def write_comparison(comparison: Comparison, folder: Path, protocol: str, command: str) -> Path:
    """Write `report.html`, the figures, the tables as text, Markdown, CSV and LaTeX, and `comparison.json`.

    Return the path of the page; files of an earlier report are replaced. The comparison has at least one line.
    """
    from sklearn.metrics import confusion_matrix

    require_extra()
    make_folder(folder)
    table = LAYOUTS[protocol](comparison)
    costs = cost_table(comparison)
    write_tables(table, folder, "table")
    write_tables(costs, folder, "costs")
    write_json(folder / "comparison.json", comparison.to_json())
    shown = shown_line(comparison)
    names, answers = answers_of(comparison, shown)
    charts = shots_charts(comparison)
    curve_names, confused, error = list(charts), [], None
    if answers:
        true, found = [a.label for a in answers], [a.predicted for a in answers]
        confusion = confusion_matrix(true, found, labels=range(len(names)))
        bins = reliability([a.probability for a in answers], [a.label == a.predicted for a in answers])
        charts["calibration"] = partial(figures.draw_reliability, bins)
        charts["confusion"] = partial(figures.draw_confusion, confusion.tolist(), names)
        confused, error = most_confused(confusion, names)[:N_CONFUSED], bins.error
    before = comparison.baseline_beside(shown)
    if before is not None and shown.per_class:
        old = [before.per_class[name] for name in shown.per_class]
        charts["classes"] = partial(figures.draw_classes, list(shown.per_class), old, list(shown.per_class.values()))
    right, wrong, n_missing = choose_examples([one for one in answers if one.path != NO_IMAGE], names)
    last = comparison.grid.shots[-1]
    means = [(comparison.average(label, comparison.tests, last), label) for label in comparison.labels]
    ranking = sorted(((mean, label) for mean, label in means if mean is not None), key=lambda pair: -pair[0])
    return write_page(
        folder,
        "comparison",
        charts,
        draw_sheets(right, wrong),
        comparison=comparison,
        shown=shown,
        protocol=protocol,
        command=command,
        ranking=ranking,
        lead=comparison.lead(ranking[0][1], ranking[1][1], last) if len(ranking) > 1 else None,
        table=table,
        costs=costs,
        curve_names=curve_names,
        gains=[(line, gain) for line, gain in zip(comparison.lines, comparison.gains, strict=True) if gain is not None],
        error=error,
        confused=confused,
        baseline="the best instruction" if protocol == TEXTS else "zero-shot",
        items="texts" if protocol == TEXTS else "images",
        measures={
            name: what for name, what in MEASURES.items() if any(name in line.numbers for line in comparison.lines)
        },
        right=right,
        wrong=wrong,
        n_missing=n_missing,
    )


def shots_charts(comparison: Comparison) -> dict[str, Draw]:
    """Return accuracy over shots for each data set, and averaged if there are several; none for one number of shots."""
    sets = [test for test in comparison.tests if test[0] == test[1]]
    charts: dict[str, Draw] = {}
    if len(comparison.grid.shots) < 2:
        return charts
    groups = {"average": sets} if len(sets) > 1 else {}
    for name, tests in {**groups, **{test[0]: [test] for test in sets}}.items():
        found = [curve for label in comparison.labels if (curve := curve_of(comparison, label, tests)).points]
        title = name if len(tests) == 1 else f"average over {len(tests)} data sets"
        charts[f"curve_{name}"] = partial(figures.draw_shots, found, title)
    return charts


def curve_of(comparison: Comparison, label: str, tests: Sequence[tuple[str, str]]) -> Curve:
    """Return one method over shots, averaged over tests; a spread only where there is one test."""
    points: dict[int | None, tuple[float, float | None]] = {}
    is_flat = False
    for shots in comparison.grid.shots:
        line = comparison.find(label, *tests[0], shots)
        mean = comparison.average(label, tests, shots)
        if mean is not None and line is not None:
            is_flat = line.shots == 0
            points[line.shots] = (mean, line.std if len(tests) == 1 else None)
    return Curve(label, points, is_flat)


def shown_line(comparison: Comparison) -> Line:
    """Return the line whose mistakes are shown: the first that learned a prompt, else any, at the most shots."""
    lines = [line for line in comparison.lines if (line.source, line.target) == comparison.tests[0]]
    learned = [line for line in lines if "recipe" in line.facts] or lines
    return [line for line in learned if line.label == learned[0].label][-1]


def answers_of(comparison: Comparison, line: Line) -> tuple[tuple[str, ...], list[Shown]]:
    """Return the classes and test items of a line, with what the run of its first seed took them for.

    Nothing where texts are generated.
    """
    grid = comparison.grid
    source = next(origin for origin in grid.sources if origin.name == line.source)
    test = grid.cell(line.contender, source, line.shots, line.seeds[0]).load()[1][line.target]
    answers = zip(test.items, line.scores[0].predictions, line.scores[0].probabilities, strict=False)
    if source.kind != "language":
        return test.data.class_names, [Shown(item.path, item.label, int(p), float(q)) for item, p, q in answers]
    names = test.data.labels
    return names, [Shown(NO_IMAGE, names.index(row.label), int(p), float(q)) for row, p, q in answers] if names else []
