"""The figures of comparisons and searches: accuracy over shots, classes beside zero-shot, calibration, sensitivity.

They know numbers and names only, and share type and colours with `figures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmprompt.core.confidence import Reliability
from mmprompt.reports.figures import Theme, drawing, mark_percent, png, prepare, short

# after the accent: hues that stay apart for colour-blind readers on paper and on a dark page alike
HUES = ("#d9822b", "#4a7fd6", "#b0568f", "#8a8f2a", "#7a6bd1", "#c4504a")
MARKERS = "osD^vPX"
MAX_CLASSES = 30


@dataclass(frozen=True)
class Curve:
    """One method over shots.

    Args:
        label: its name.
        points: shots (None for all there are, last) to the mean accuracy and its standard deviation, both 0..1.
        is_flat: it learns nothing, so that its one value, at 0 shots, holds for all.
    """

    label: str
    points: Mapping[int | None, tuple[float, float | None]]
    is_flat: bool


def draw_shots(curves: Sequence[Curve], title: str, theme: Theme) -> bytes:
    """Draw accuracy over shots, one line a method; one that learns nothing is a star at 0 shots and a dotted line.

    Args:
        curves: what is compared; the first one that learns has the accent.
        title: the data set.
        theme: the page's colours.
    """

    def order(shots: int | None) -> float:
        return float("inf") if shots is None else shots

    shots = sorted({at for curve in curves if not curve.is_flat for at in curve.points}, key=order)
    places = {at: position for position, at in enumerate([0, *shots])}
    ranked = sorted(curves, key=lambda curve: curve.is_flat)
    with drawing(theme, 4.6, 4.0) as figure:  # two beside each other on a page, one on a phone
        axes = figure.add_subplot()
        prepare(axes, theme)
        for index, curve in enumerate(ranked):
            colour = theme.accent if index == 0 else HUES[(index - 1) % len(HUES)]
            at = sorted(curve.points, key=order)
            heights = np.array([100 * curve.points[k][0] for k in at])
            if curve.is_flat:
                axes.axhline(heights[0], color=colour, linewidth=0.9, linestyle=(0, (2, 3)), zorder=1)
                axes.plot([0], heights[:1], "*", color=colour, markersize=13, label=curve.label, zorder=3)
                continue
            x, marker = [places[k] for k in at], MARKERS[index % len(MARKERS)]
            axes.plot(x, heights, color=colour, linewidth=1.8, marker=marker, markersize=5, label=curve.label, zorder=2)
            spread = np.array([100 * (curve.points[k][1] or 0.0) for k in at])
            axes.fill_between(x, heights - spread, heights + spread, color=colour, alpha=0.15, linewidth=0)
        axes.set_xticks(range(len(places)), ["all" if k is None else str(k) for k in places])
        axes.set(xlim=(-0.35, len(places) - 0.65), xlabel="training pictures of each class", ylabel="accuracy, %")
        axes.set_title(title, loc="left", fontsize=11, color=theme.ink)
        place = {"loc": "outside lower left", "ncols": min(len(ranked), 2)}
        figure.legend(**place, frameon=False, fontsize=9, labelcolor=theme.ink)
        return png(figure)


def draw_classes(names: Sequence[str], before: Sequence[float], after: Sequence[float], theme: Theme) -> bytes:
    """Draw the accuracy of each class from zero-shot to learned, the largest change first.

    Args:
        names: C class names.
        before: [C] zero-shot accuracies, 0..1.
        after: [C] those of the learned prompt.
        theme: the page's colours.
    """
    change = np.subtract(after, before)
    order = np.argsort(-change, kind="stable")
    if len(order) > MAX_CLASSES:  # both ends, where something happened
        order = np.concatenate([order[: MAX_CLASSES // 2], order[-(MAX_CLASSES // 2) :]])
    with drawing(theme, 7.6, 1.0 + 0.24 * len(order)) as figure:
        axes = figure.add_subplot()
        prepare(axes, theme)
        axes.yaxis.grid(visible=False)
        axes.xaxis.grid(visible=True, color=theme.line, linewidth=0.6)
        for height, c in enumerate(reversed(order)):
            colour = theme.accent if change[c] >= 0 else HUES[0]
            axes.plot([100 * before[c], 100 * after[c]], [height, height], color=colour, linewidth=2, alpha=0.6)
            axes.plot(100 * before[c], height, "o", markersize=5, color=theme.paper, markeredgecolor=theme.soft)
            axes.plot(100 * after[c], height, "o", markersize=6, color=colour)
        axes.set_yticks(range(len(order)), [short(names[c]) for c in reversed(order)], fontsize=8.5)
        axes.set(xlim=(-2, 102), ylim=(-0.7, len(order) - 0.3))
        mark_percent(axes.xaxis)
        axes.set_title("zero-shot (open) to learned (filled)", loc="left", fontsize=9.5, color=theme.soft)
        return png(figure)


def draw_reliability(bins: Reliability, theme: Theme) -> bytes:
    """Draw accuracy against confidence, with the number of predictions below (Guo et al. 2017).

    Args:
        bins: the reliability diagram.
        theme: the page's colours.
    """
    with drawing(theme, 4.6, 4.4) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
        for axes in (upper, lower):
            prepare(axes, theme)
        confidence, accuracy = (100 * np.array(values) for values in (bins.confidence, bins.accuracy))
        upper.plot([0, 100], [0, 100], color=theme.soft, linewidth=0.9, linestyle=(0, (2, 3)))
        upper.plot(confidence, accuracy, color=theme.accent, linewidth=1.6, marker="o", markersize=5)
        upper.set(xlim=(0, 101), ylim=(0, 103), ylabel="right, %")
        lower.bar(confidence, bins.counts, width=4.5, color=theme.accent, alpha=0.5)
        lower.set(xlabel="probability it gave, %", ylabel="pictures")
        return png(figure)


@dataclass(frozen=True)
class Trial:
    """One trial of a search.

    Args:
        settings: by name.
        accuracy: on validation, 0..1.
        is_pruned: it was stopped early, so that its accuracy is that of its last epoch.
    """

    settings: Mapping[str, float]
    accuracy: float
    is_pruned: bool


def draw_sensitivity(trials: Sequence[Trial], names: Mapping[str, bool], best: Trial, theme: Theme) -> bytes:
    """Draw validation accuracy against each setting, side by side, the chosen trial in the accent.

    Args:
        trials: all that have an accuracy.
        names: the settings, and whether each has a logarithmic axis.
        best: the chosen one.
        theme: the page's colours.
    """
    from matplotlib.ticker import NullFormatter

    with drawing(theme, max(3.2, 2.55 * len(names)), 3.2) as figure:
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for axes, (name, is_log) in zip(panels, names.items(), strict=True):
            prepare(axes, theme)
            for is_pruned, look in ((True, {"facecolors": "none", "edgecolors": theme.soft}), (False, {})):
                shown = [trial for trial in trials if trial.is_pruned == is_pruned and name in trial.settings]
                x = [trial.settings[name] for trial in shown]
                y = [100 * trial.accuracy for trial in shown]
                axes.scatter(x, y, s=20, color=None if look else theme.soft, **look)
            axes.scatter([best.settings[name]], [100 * best.accuracy], s=60, color=theme.accent, zorder=3)
            if is_log:  # with plain numbers: powers of two for counts, of ten for the rest
                is_count = all(float(trial.settings[name]).is_integer() for trial in trials if name in trial.settings)
                axes.set_xscale("log", base=2 if is_count else 10)
                axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
                axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(name)
        panels[0].set_ylabel("validation accuracy, %")
        return png(figure)
