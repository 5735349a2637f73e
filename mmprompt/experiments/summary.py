"""Finished cells as lines of a comparison: over seeds, over data sets, with intervals and gains over zero-shot.

Numbers alone; how they are laid out is the business of `tables`, `curves` and the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from statistics import fmean, pstdev
from typing import Any

import numpy as np

from mmprompt.core.metrics import paired_bootstrap
from mmprompt.experiments.grid import Contender, Grid
from mmprompt.experiments.results import Finished, Score

ZERO_SHOT = "zero-shot"
NUMBERS = ("top5", "macro_f1", "calibration_error")


@dataclass(frozen=True)
class Line:
    """One method on one data set at one number of shots, over the seeds.

    Args:
        contender: what was compared.
        label: its name, with the backbone where several are compared.
        source: what it learned from.
        target: what it was tested on: a data set, or `base` or `new`.
        shots: training pictures a class; None for all, 0 where nothing was learned from.
        values: [S] accuracies, 0..1, one a seed.
        mean: their mean.
        std: their standard deviation, None for a single one.
        interval: 95 %, over pictures and seeds together.
        correct: [S, N] whether each test picture was right.
        first: the test of the first seed, for what is shown of a single run.
        numbers: means over seeds of further metrics.
        per_class: mean accuracy of each class over the seeds, 0..1.
        facts: of the first seed's cell; `seconds` is the mean.
    """

    contender: Contender
    label: str
    source: str
    target: str
    shots: int | None
    values: tuple[float, ...]
    mean: float
    std: float | None
    interval: tuple[float, float]
    correct: np.ndarray
    first: Score
    numbers: Mapping[str, float]
    per_class: Mapping[str, float]
    facts: Mapping[str, Any]

    @property
    def tested_on(self) -> str:
        """What it was tested on, after its source where that is another."""
        return self.target if self.source == self.target else f"{self.source}: {self.target}"


@dataclass(frozen=True)
class Gain:
    """A difference of accuracies and its paired 95 % interval."""

    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """A grid with what came out.

    Args:
        grid: what was asked for.
        lines: in the order of the grid; cells that failed or are missing are left out.
        failures: why cells failed, by what they were.
        official: names of the data sets that are divided as their makers did, not as the papers on prompts do.
    """

    grid: Grid
    lines: tuple[Line, ...]
    failures: Mapping[str, str]
    official: frozenset[str] = frozenset()

    def find(self, label: str, source: str, target: str, shots: int | None) -> Line | None:
        """Return the line of one method at some shots, None if it is missing; one that learned nothing serves all."""
        for line in self.lines:
            if (line.label, line.source, line.target) == (label, source, target) and line.shots in (shots, 0):
                return line
        return None

    @property
    def labels(self) -> tuple[str, ...]:
        """Short names of what is compared that differ: the method, with its backbone where several are compared."""
        several = len({contender.backbone for contender in self.grid.contenders}) > 1
        return tuple(f"{c.method} ({c.backbone})" if several else c.method for c in self.grid.contenders)

    @property
    def tests(self) -> tuple[tuple[str, str], ...]:
        """Each source with what was tested after learning from it, in order."""
        return tuple(dict.fromkeys((line.source, line.target) for line in self.lines))

    def average(self, label: str, tests: Sequence[tuple[str, str]], shots: int | None) -> float | None:
        """Return the average of one method over tests, each a source and a target."""
        return average([self.find(label, source, target, shots) for source, target in tests])

    def zero_shot_beside(self, line: Line) -> Line | None:
        """Return zero-shot of the same backbone on the same images; None for itself or where it is missing."""
        place = (line.source, line.target, line.contender.backbone)
        for other in self.lines:
            if other.contender.method == ZERO_SHOT and place == (other.source, other.target, other.contender.backbone):
                return None if other is line else other
        return None

    @cached_property
    def gains(self) -> tuple[Gain | None, ...]:
        """What each line gains over zero-shot of the same backbone on the same images; None without zero-shot."""
        gains: list[Gain | None] = []
        for line in self.lines:
            other = self.zero_shot_beside(line)
            if other is None:
                gains.append(None)
                continue
            before = np.broadcast_to(other.correct[:1], line.correct.shape)
            gains.append(Gain(line.mean - other.mean, paired_bootstrap(line.correct, before)))
        return tuple(gains)

    def to_json(self) -> dict[str, Any]:
        """Return all numbers, JSON-ready."""
        lines = [
            {
                "method": line.contender.method,
                "backbone": line.contender.backbone,
                "source": line.source,
                "target": line.target,
                "shots": line.shots,
                "accuracies": list(line.values),
                "mean": line.mean,
                "std": line.std,
                "interval": list(line.interval),
                "n_test": line.correct.shape[1],
                "gain_over_zero_shot": gain and {"gain": gain.value, "interval": list(gain.interval)},
                **line.numbers,
                "facts": {key: value for key, value in line.facts.items() if key != "nearest_words"},
            }
            for line, gain in zip(self.lines, self.gains, strict=True)
        ]
        return {"lines": lines, "failures": dict(self.failures)}


def average(lines: Sequence[Line | None]) -> float | None:
    """Return the mean over tests of each one's mean over seeds, as the papers do; None if one of them is missing."""
    means = [fmean(line.values) for line in lines if line is not None]
    return fmean(means) if means and len(means) == len(lines) else None


def compare_cells(
    grid: Grid,
    keys: Sequence[str],
    finished: Mapping[str, Finished],
    reasons: Mapping[str, str],
    official: frozenset[str] = frozenset(),
) -> Comparison:
    """Bring finished cells into lines.

    Args:
        grid: what was asked for.
        keys: of `grid.cells()`, in that order.
        finished: cells that are done, by key.
        reasons: why cells failed, by key.
        official: as in `Comparison`.
    """
    cells = grid.cells()
    failures = {
        f"{cell.method} on {cell.source.name}, {cell.shots} shots, seed {cell.seed}": reasons[key]
        for cell, key in zip(cells, keys, strict=True)
        if key in reasons
    }
    comparison = Comparison(grid, (), failures, official)
    lines: list[Line] = []
    for source in grid.sources:
        for contender, label in zip(grid.contenders, comparison.labels, strict=True):
            groups: dict[
                int | None, dict[str, None]
            ] = {}  # keys by shots: one a seed, a single one if nothing is learned
            for shots, seed in product(grid.shots, grid.seeds):
                cell = grid.cell(contender, source, shots, seed)
                groups.setdefault(cell.shots, {})[keys[cells.index(cell)]] = None
            for shots, group in groups.items():
                done = [finished[key] for key in group if key in finished]
                for target in dict.fromkeys(target for one in done for target in one.scores):
                    lines.append(_line(contender, label, source.name, target, shots, done))
    return replace(comparison, lines=tuple(lines))


def _line(
    contender: Contender, label: str, source: str, target: str, shots: int | None, done: Sequence[Finished]
) -> Line:
    """Return one test of the same cell with different seeds as a line."""
    scores = [cell.scores[target] for cell in done]
    values = tuple(float(score.numbers["accuracy"]) for score in scores)
    correct = np.stack([score.correct for score in scores])  # [S, N]
    numbers = {name: fmean(score.numbers[name] for score in scores) for name in NUMBERS}
    aurocs = [cell.facts["auroc_of_new_classes"] for cell in done if "auroc_of_new_classes" in cell.facts]
    return Line(
        contender=contender,
        label=label,
        source=source,
        target=target,
        shots=shots,
        values=values,
        mean=fmean(values),
        std=pstdev(values) if len(values) > 1 else None,  # divided by their number, as the released code of CoOp does
        interval=paired_bootstrap(correct, np.zeros_like(correct)),
        correct=correct,
        first=scores[0],
        numbers=numbers | ({"auroc_of_new_classes": fmean(aurocs)} if aurocs else {}),
        per_class={
            name: fmean(score.numbers["per_class"][name] for score in scores) for name in scores[0].numbers["per_class"]
        },
        facts={**done[0].facts, "seconds": fmean(cell.facts["seconds"] for cell in done)},
    )
