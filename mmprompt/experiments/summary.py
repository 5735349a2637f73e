"""Finished cells as lines of a comparison: over seeds, over data sets, with intervals and gains over a baseline, which
is zero-shot for images, and for texts the best of the instructions.

Numbers alone; how they are laid out is the business of `tables`, `curves` and the report.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

import numpy as np

import mmprompt.display as display
from mmprompt.core.metrics import paired_bootstrap
from mmprompt.experiments.grid import INSTRUCTION, Contender, Grid
from mmprompt.experiments.results import Outcome, Score

if TYPE_CHECKING:
    from pandas import DataFrame

BASELINE = re.compile(rf"zero-shot|{INSTRUCTION}( \d+)?")
"""What gains are measured from, by its name."""
COSTS = ("seconds", "cpu_seconds", "peak_bytes")
"""Facts that differ from seed to seed."""


@dataclass(frozen=True)
class Line:
    """One method on one data set, or on its `base` or `new` classes, at one number of shots, over the seeds.

    The label names the backbone too where several are compared. `shots` is None for all, 0 where nothing was learned
    from. There is a cell for each of the `seeds`; their folders are run folders, which `load` takes.
    """

    contender: Contender
    label: str
    source: str
    target: str
    shots: int | None
    cells: tuple[Outcome, ...]
    seeds: tuple[int, ...]

    @property
    def tested_on(self) -> str:
        """What it was tested on, after its source where that is another."""
        return self.target if self.source == self.target else f"{self.source}: {self.target}"

    @cached_property
    def scores(self) -> tuple[Score, ...]:
        """The tests, one a seed."""
        return tuple(cell.scores[self.target] for cell in self.cells)

    @cached_property
    def values(self) -> tuple[float, ...]:
        """[S] accuracies, 0..1, one a seed."""
        return tuple(score.accuracy for score in self.scores)

    @property
    def mean(self) -> float:
        """The mean of the accuracies."""
        return fmean(self.values)

    @property
    def std(self) -> float | None:
        """Their standard deviation, divided by their number as CoOp's released code does; None for a single one."""
        return pstdev(self.values) if len(self.values) > 1 else None

    @cached_property
    def correct(self) -> np.ndarray:
        """[S, N] how right each test item was answered, 0..1."""
        return np.stack([score.correct for score in self.scores])

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 %, over items and seeds together."""
        return paired_bootstrap(self.correct, np.zeros_like(self.correct))

    @cached_property
    def numbers(self) -> dict[str, float]:
        """Means over seeds of further metrics."""
        auroc = "auroc_of_new_classes"
        rows = [
            {**score.numbers, **{name: cell.facts[name] for name in (auroc,) if name in cell.facts}}
            for score, cell in zip(self.scores, self.cells, strict=True)
        ]
        return {name: fmean(row[name] for row in rows) for name in rows[0] if all(name in row for row in rows)}

    @cached_property
    def per_class(self) -> dict[str, float]:
        """Mean accuracy of each class over the seeds, 0..1."""
        return {name: fmean(score.per_class[name] for score in self.scores) for name in self.scores[0].per_class}

    @property
    def facts(self) -> dict[str, Any]:
        """Those of the first seed's cell; costs are means."""
        costs = [name for name in COSTS if all(name in cell.facts for cell in self.cells)]
        times = {name: fmean(cell.facts[name] for cell in self.cells) for name in costs}
        return {**self.cells[0].facts, **times}


@dataclass(frozen=True)
class Gain:
    """A difference of accuracies, its paired 95 % interval, and what it is over."""

    value: float
    interval: tuple[float, float]
    over: str


@dataclass(frozen=True)
class Comparison:
    """A grid with what came out: lines in its order, and why cells failed, which have no line, by what they were.

    `official` names the data sets that are divided as their makers did, not as the papers on prompts do.
    """

    grid: Grid
    lines: tuple[Line, ...]
    failures: Mapping[str, str]
    official: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"<Comparison: {len(self.lines)} lines, {len(self.failures)} failed>"

    def _repr_html_(self) -> str:
        rows = [
            (
                line.label,
                line.tested_on,
                "all" if line.shots is None else line.shots,
                f"{line.mean:.1%}",
                f"{line.interval[0]:.1%} to {line.interval[1]:.1%}",
                len(line.cells),
            )
            for line in self.lines
        ]
        return display.section("comparison", display.table(("", "on", "shots", "accuracy", "95 %", "seeds"), rows))

    def to_frame(self) -> DataFrame:
        """Return a row for each method, data set and number of shots, as a DataFrame; pandas must be installed."""
        lines = self.lines
        return display.frame(
            {
                "method": [line.label for line in lines],
                "source": [line.source for line in lines],
                "target": [line.target for line in lines],
                "shots": [line.shots for line in lines],
                "accuracy": [line.mean for line in lines],
                "low": [line.interval[0] for line in lines],
                "high": [line.interval[1] for line in lines],
                "seeds": [len(line.cells) for line in lines],
            }
        )

    def find(self, label: str, source: str, target: str, shots: int | None) -> Line | None:
        """Return the line of one method at some shots, None if it is missing; one that learned nothing serves all."""
        for line in self.lines:
            if (line.label, line.source, line.target) == (label, source, target) and line.shots in (shots, 0):
                return line
        return None

    @property
    def labels(self) -> tuple[str, ...]:
        """Short names of what is compared that differ: the method's, with its backbone where it is on several."""
        names = [contender.name for contender in self.grid.contenders]
        several = len(set(names)) < len(names)
        return tuple(f"{c.name} ({c.backbone})" if several else c.name for c in self.grid.contenders)

    @property
    def tests(self) -> tuple[tuple[str, str], ...]:
        """Each source with what was tested after learning from it, in order."""
        return tuple(dict.fromkeys((line.source, line.target) for line in self.lines))

    def average(self, label: str, tests: Sequence[tuple[str, str]], shots: int | None) -> float | None:
        """Return the average of one method over tests, each a source and a target."""
        return average([self.find(label, source, target, shots) for source, target in tests])

    def lead(self, label: str, other: str, shots: int | None) -> tuple[float, float] | None:
        """95 % interval of what one method gains over another on the only test; None where there are several."""
        if len(self.tests) > 1:
            return None
        lines = [self.find(name, *self.tests[0], shots) for name in (label, other)]
        correct = [line.correct for line in lines if line is not None]
        n_seeds = max(map(len, correct))
        if len(correct) < 2 or any(len(one) not in (1, n_seeds) for one in correct):
            return None
        first, second = (np.broadcast_to(one, (n_seeds, one.shape[1])) for one in correct)
        return paired_bootstrap(first, second)

    def baseline_beside(self, line: Line) -> Line | None:
        """Return zero-shot of the same backbone on the same images, or of instructions the one that is best on the same
        texts; None for a baseline itself or where there is none.
        """
        place = (line.source, line.target, line.contender.backbone)
        found = [
            other
            for other in self.lines
            if BASELINE.fullmatch(other.contender.name)
            and place == (other.source, other.target, other.contender.backbone)
            and other.shots in (line.shots, 0)
        ]
        return None if line in found else max(found, key=lambda other: other.mean, default=None)

    @cached_property
    def gains(self) -> tuple[Gain | None, ...]:
        """What each line gains over its baseline, on the same items; None where there is none."""
        gains: list[Gain | None] = []
        for line in self.lines:
            other = self.baseline_beside(line)
            if other is None or len(other.correct) not in (1, len(line.correct)):
                gains.append(None)
                continue
            before = np.broadcast_to(other.correct, line.correct.shape)
            gains.append(Gain(line.mean - other.mean, paired_bootstrap(line.correct, before), other.contender.name))
        return tuple(gains)

    def __str__(self) -> str:
        from mmprompt.experiments.paper_tables import few_shot_table
        from mmprompt.reports.tables import render

        return render(few_shot_table(self), "text")

    def to_json(self) -> dict[str, Any]:
        """Return all numbers, JSON-ready."""
        lines = [
            {
                "method": line.contender.name,
                "backbone": line.contender.backbone,
                "source": line.source,
                "target": line.target,
                "shots": line.shots,
                "accuracies": list(line.values),
                "mean": line.mean,
                "std": line.std,
                "interval": list(line.interval),
                "n_test": line.correct.shape[1],
                "gain": gain and {"over": gain.over, "gain": gain.value, "interval": list(gain.interval)},
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
    outcomes: Sequence[Outcome | None],
    reasons: Sequence[str | None] = (),
    official: frozenset[str] = frozenset(),
) -> Comparison:
    """Bring finished cells into lines.

    `outcomes` and `reasons` (why a cell failed) are those of `grid.cells()`, in that order; None where there is none.
    """
    cells = grid.cells()
    comparison = Comparison(grid, (), {}, official)
    labels = {(c.name, c.backbone): label for c, label in zip(grid.contenders, comparison.labels, strict=True)}
    failures = {
        f"{labels[cell.name, cell.backbone]} on {cell.source.name}, {cell.shots} shots, seed {cell.seed}": reason
        for cell, reason in zip(cells, reasons, strict=False)
        if reason is not None
    }
    lines: list[Line] = []
    for source in grid.sources:
        for contender, label in zip(grid.contenders, comparison.labels, strict=True):
            groups: dict[int | None, dict[int, Outcome]] = {}  # by shots and seed: one if nothing is learned
            for shots, seed in product(grid.shots, grid.seeds):
                cell = grid.cell(contender, source, shots, seed)
                if (outcome := outcomes[cells.index(cell)]) is not None:
                    groups.setdefault(cell.shots, {})[cell.seed] = outcome
            for shots, group in groups.items():
                done, seeds = tuple(group.values()), tuple(group)
                targets = dict.fromkeys(target for outcome in done for target in outcome.scores)
                lines += [Line(contender, label, source.name, target, shots, done, seeds) for target in targets]
    return replace(comparison, lines=tuple(lines), failures=failures)
