"""The report of a comparison: tables in four forms, figures as PNG files, and one HTML file that opens anywhere.

It shows what `summary` found, in the layout of a protocol. It computes nothing and reaches for no network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmprompt.classification.report.examples import choose_examples, draw_sheets, in_page, most_confused
from mmprompt.classification.report.record import Shown
from mmprompt.core.confidence import reliability
from mmprompt.errors import UserError
from mmprompt.experiments import comparison_sentences as sentences
from mmprompt.experiments.layouts import LAYOUTS
from mmprompt.experiments.summary import Comparison, Line
from mmprompt.files import make_folder, write_bytes, write_json
from mmprompt.reports import curves, figures
from mmprompt.reports.curves import Curve
from mmprompt.reports.figures import Theme
from mmprompt.reports.pages import chart, missing_extra, render_page
from mmprompt.reports.tables import write_tables

Drawers = dict[str, Callable[[Theme], bytes]]


def write_comparison(comparison: Comparison, folder: Path, protocol: str, command: str) -> Path:
    """Write `report.html`, the figures, the table as text, Markdown, CSV and LaTeX, and `comparison.json`.

    Args:
        comparison: what is shown; at least one line.
        folder: where it goes; files of an earlier report of the same comparison are replaced.
        protocol: which layout the table has.
        command: how to repeat it.
    Returns:
        The path of the HTML file.
    Raises:
        UserError: the folder cannot be written, or the report extra is not installed.
    """
    problem = missing_extra()
    if problem:
        raise UserError(problem)
    make_folder(folder)
    table = LAYOUTS[protocol](comparison)
    write_tables(table, folder, "table")
    write_json(folder / "comparison.json", comparison.to_json())
    shots = {name: chart(draw) for name, draw in shots_figures(comparison).items()}
    shown = shown_line(comparison)
    names, pictures = pictures_of(comparison, shown)
    single = {name: chart(draw) for name, draw in single_figures(comparison, shown, names, pictures).items()}
    right, wrong, n_missing = choose_examples(pictures, names)
    drawn = {name: light for name, (light, _) in (shots | single).items()}
    for name, data in (drawn | draw_sheets(right, wrong)).items():
        write_bytes(folder / f"{name}.png", data)
    html = render_page(
        "comparison",
        **sentences.of(comparison, shown, protocol, command, n_missing),
        table=table,
        shots=[(name, page) for name, (_, page) in shots.items()],
        figures={"classes": None} | {name: page for name, (_, page) in single.items()},
        confused=most_confused(confusion_of(pictures, len(names)), names),
        right=in_page(right),
        wrong=in_page(wrong),
    )
    path = folder / "report.html"
    write_bytes(path, html.encode())
    return path


def shots_figures(comparison: Comparison) -> Drawers:
    """Accuracy over shots for each data set, and averaged if there are several; none for one number of shots."""
    shots = comparison.grid.shots
    if len(shots) < 2:
        return {}
    sets = [test for test in comparison.tests if test[0] == test[1]]
    drawn: Drawers = {}
    if len(sets) > 1:
        averaged = [c for label in comparison.labels if (c := curve_of(comparison, label, sets)).points]
        title = f"average over {len(sets)} data sets"
        drawn["curve_average"] = lambda theme: curves.draw_shots(averaged, title, theme)
    for test in sets:
        found = [c for label in comparison.labels if (c := curve_of(comparison, label, [test])).points]
        drawn[f"curve_{test[0]}"] = _shots_drawer(found, test[0])
    return drawn


def _shots_drawer(found: Sequence[Curve], title: str) -> Callable[[Theme], bytes]:
    return lambda theme: curves.draw_shots(found, title, theme)


def curve_of(comparison: Comparison, label: str, tests: Sequence[tuple[str, str]]) -> Curve:
    """One method over shots, averaged over tests; a spread only where there is one test."""
    points: dict[int | None, tuple[float, float | None]] = {}
    is_flat = False
    for shots in comparison.grid.shots:
        lines = [comparison.find(label, source, target, shots) for source, target in tests]
        mean = comparison.average(label, tests, shots)
        if mean is None or lines[0] is None:
            continue
        is_flat = lines[0].shots == 0
        points[lines[0].shots] = (mean, lines[0].std if len(tests) == 1 else None)
    return Curve(label, points, is_flat)


def shown_line(comparison: Comparison) -> Line:
    """The line whose mistakes are shown: the first method that learned a prompt, else any, at the most shots."""
    first = comparison.tests[0]
    lines = [line for line in comparison.lines if (line.source, line.target) == first]
    learned = [line for line in lines if "recipe" in line.facts] or lines
    return [line for line in learned if line.label == learned[0].label][-1]


def pictures_of(comparison: Comparison, line: Line) -> tuple[tuple[str, ...], list[Shown]]:
    """The class names and test pictures of a line, with what the run of its first seed took them for."""
    grid = comparison.grid
    source = next(origin for origin in grid.sources if origin.name == line.source)
    seed = grid.seeds[0] if line.shots != 0 else 0
    cell = grid.cell(line.contender, source, line.shots if line.shots != 0 else grid.shots[0], seed)
    data = cell.load()[1][line.target]
    answers = zip(data.test, line.first.predictions, line.first.probabilities, strict=True)
    return data.class_names, [Shown(item.path, item.label, int(p), float(q)) for item, p, q in answers]


def confusion_of(pictures: Sequence[Shown], n_classes: int) -> np.ndarray:
    """[C, C] counts, true class by predicted class."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix([s.label for s in pictures], [s.predicted for s in pictures], labels=range(n_classes))


def single_figures(comparison: Comparison, line: Line, names: Sequence[str], pictures: Sequence[Shown]) -> Drawers:
    """Classes beside zero-shot, calibration and confusion of the line that is shown."""
    bins = reliability([s.probability for s in pictures], [s.label == s.predicted for s in pictures])
    confusion = confusion_of(pictures, len(names)).tolist()
    drawn: Drawers = {
        "calibration": lambda theme: curves.draw_reliability(bins, theme),
        "confusion": lambda theme: figures.draw_confusion(confusion, names, theme),
    }
    before = comparison.zero_shot_beside(line)
    if before is not None:
        pairs: Mapping[str, Any] = {n: (before.per_class[n], line.per_class[n]) for n in line.per_class}
        old, new = ([pair[i] for pair in pairs.values()] for i in (0, 1))
        drawn["classes"] = lambda theme: curves.draw_classes(list(pairs), old, new, theme)
    return drawn
