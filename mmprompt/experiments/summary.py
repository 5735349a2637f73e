"""Finished cells as lines of a comparison: over seeds, over data sets, with intervals and gains over zero-shot.

Numbers alone; how they are laid out is the business of `tables`, `curves` and the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from mmprompt.core.metrics import paired_bootstrap
from mmprompt.experiments.averages import mean_and_std, mean_of_means
from mmprompt.experiments.cells import Origin
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
    def where(self) -> str:
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
        """The line of one method at some shots; one that learned nothing serves all shots."""
        for line in self.lines:
            if (line.label, line.source, line.target) == (label, source, target) and line.shots in (shots, 0):
                return line
        return None

    @property
    def labels(self) -> tuple[str, ...]:
        """What is compared, in the order of the grid."""
        return tuple(labels_of(self.grid.contenders))

    @property
    def tests(self) -> tuple[tuple[str, str], ...]:
        """Each source with what was tested after learning from it, in order."""
        return tuple(dict.fromkeys((line.source, line.target) for line in self.lines))

    def average(self, label: str, tests: Sequence[tuple[str, str]], shots: int | None) -> float | None:
        """Mean over tests of each one's mean over seeds, as the papers do; None if one of them is missing."""
        lines = [self.find(label, source, target, shots) for source, target in tests]
        if not lines or any(line is None for line in lines):
            return None
        return mean_of_means([line.values for line in lines if line is not None])

    def zero_shot_beside(self, line: Line) -> Line | None:
        """Zero-shot with the same backbone on the same pictures; None for zero-shot itself or where it is missing."""
        for other in self.lines:
            is_twin = (other.source, other.target, other.contender.backbone) == (
                line.source,
                line.target,
                line.contender.backbone,
            )
            if other.contender.method == ZERO_SHOT and is_twin:
                return None if other is line else other
        return None

    @cached_property
    def gains(self) -> tuple[Gain | None, ...]:
        """What each line gains over zero-shot of the same backbone on the same pictures; None without zero-shot."""
        return tuple(self._gain(line) for line in self.lines)

    def _gain(self, line: Line) -> Gain | None:
        other = self.zero_shot_beside(line)
        if other is None:
            return None
        before = np.broadcast_to(other.correct[:1], line.correct.shape)
        return Gain(line.mean - other.mean, paired_bootstrap(line.correct, before))

    def to_json(self) -> dict[str, Any]:
        """All numbers, JSON-ready."""
        lines = [self._line_to_json(line, gain) for line, gain in zip(self.lines, self.gains, strict=True)]
        return {"lines": lines, "failures": dict(self.failures)}

    def _line_to_json(self, line: Line, gain: Gain | None) -> dict[str, Any]:
        return {
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
            "gain_over_zero_shot": None if gain is None else {"gain": gain.value, "interval": list(gain.interval)},
            **line.numbers,
            "facts": {key: value for key, value in line.facts.items() if key != "nearest_words"},
        }


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
    lines: list[Line] = []
    for source in grid.sources:
        for contender, label in zip(grid.contenders, labels_of(grid.contenders), strict=True):
            for shots, mine in _by_shots(grid, contender, source).items():
                done = [finished[keys[i]] for i in mine if keys[i] in finished]
                lines += _lines(contender, label, source.name, shots, done)
    failures = {
        f"{cell.method} on {cell.source.name}, {cell.shots} shots, seed {cell.seed}": reasons[key]
        for cell, key in zip(cells, keys, strict=True)
        if key in reasons
    }
    return Comparison(grid, tuple(lines), failures, official)


def labels_of(contenders: Sequence[Contender]) -> list[str]:
    """Short names that differ: the method, with its backbone where several are compared."""
    several = len({contender.backbone for contender in contenders}) > 1
    return [f"{c.method} ({c.backbone})" if several else c.method for c in contenders]


def _by_shots(grid: Grid, contender: Contender, source: Origin) -> dict[int | None, list[int]]:
    """The numbers of the cells of each line: one a seed, by shots; a single one where nothing is learned."""
    cells = grid.cells()
    groups: dict[int | None, list[int]] = {}
    for shots in grid.shots:
        for seed in grid.seeds:
            number = cells.index(grid.cell(contender, source, shots, seed))
            group = groups.setdefault(cells[number].shots, [])
            if number not in group:
                group.append(number)
    return groups


def _lines(contender: Contender, label: str, source: str, shots: int | None, done: Sequence[Finished]) -> list[Line]:
    """A line for each test of the same cell with different seeds."""
    lines = []
    for target in dict.fromkeys(target for one in done for target in one.scores):
        scores = [one.scores[target] for one in done]
        values = tuple(float(score.numbers["accuracy"]) for score in scores)
        mean, std = mean_and_std(values)
        right = np.stack([score.correct for score in scores])  # [S, N]
        numbers = {name: fmean(score.numbers[name] for score in scores) for name in NUMBERS}
        aurocs = [one.facts["auroc_of_new_classes"] for one in done if "auroc_of_new_classes" in one.facts]
        classes = scores[0].numbers["per_class"]
        lines.append(
            Line(
                contender,
                label,
                source,
                target,
                shots,
                values,
                mean,
                std,
                paired_bootstrap(right, np.zeros_like(right)),
                right,
                scores[0],
                numbers | ({"auroc_of_new_classes": fmean(aurocs)} if aurocs else {}),
                {name: fmean(score.numbers["per_class"][name] for score in scores) for name in classes},
                {**done[0].facts, "seconds": fmean(one.facts["seconds"] for one in done)},
            )
        )
    return lines
