"""The figures of a report, drawn with matplotlib on paper or on a dark page; they know numbers and names only.

A figure is a function of data and a `Theme` to PNG bytes. Nothing touches matplotlib's global state,
so a figure looks the same whatever the caller has set.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mmprompt.quiet import quiet

if TYPE_CHECKING:
    from mmprompt.core.confidence import Reliability

DPI = 200
LARGE_DPI = 150  # a hundred classes make a large figure as it is
MAX_NAMED = 120  # classes: beyond, a matrix with names would be metres wide
MAX_LETTERS = 26
# after the accent: hues that stay apart for colour-blind readers on paper and on a dark page alike
HUES = ("#d9822b", "#4a7fd6", "#b0568f", "#8a8f2a", "#7a6bd1", "#c4504a")
MARKERS = "osD^vPX"
MAX_CLASSES = 30
FONTS = ("Inter", "Helvetica Neue", "Segoe UI", "Arial", "Liberation Sans", "Noto Sans", "DejaVu Sans")
_one_at_a_time = threading.RLock()
"""Of the figures that are drawn: matplotlib's settings are those of the whole process."""


@dataclass(frozen=True)
class Theme:
    """The five colours of a page: paper, ink, softer ink, hairlines, and the one accent."""

    name: str
    paper: str
    ink: str
    soft: str
    line: str
    accent: str


LIGHT = Theme("light", "#ffffff", "#1b1d1f", "#686e75", "#e4e5e2", "#0b7a6f")
DARK = Theme("dark", "#17191b", "#e9eae8", "#989da3", "#33373a", "#4cc9b8")


@dataclass(frozen=True)
class Row:
    """One line of the accuracy figure: what was measured, the share right, its interval, and whether it is ours."""

    label: str
    accuracy: float
    interval: tuple[float, float]
    is_learned: bool


@contextmanager
def drawing(theme: Theme, width: float, height: float) -> Iterator[Any]:
    """A figure of a size in inches, with the type and colours of a theme in force."""
    import matplotlib as mpl
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    known = set(font_manager.get_font_names())
    settings = {
        "font.family": [name for name in FONTS if name in known] or ["sans-serif"],
        "font.size": 9.5,
        "text.parse_math": False,
        "text.color": theme.ink,
        "axes.labelcolor": theme.soft,
        "axes.edgecolor": theme.line,
        "xtick.color": theme.line,
        "ytick.color": theme.line,
        "xtick.labelcolor": theme.soft,
        "ytick.labelcolor": theme.soft,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    # of a glyph that is missing a box is drawn; people read the page
    with _one_at_a_time, mpl.rc_context(settings), quiet("Glyph .* missing from"):
        yield Figure(figsize=(width, height), facecolor=theme.paper, layout="constrained")


def png(figure: Any, dpi: int = DPI) -> bytes:
    """A figure as PNG bytes, without the version that would make equal runs differ."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None}, pil_kwargs={"compress_level": 4})
    return buffer.getvalue()


def prepare(axes: Any, theme: Theme, hairlines: str = "y") -> None:
    """Give axes the look of all curves: hairlines across an axis or both, no ticks, no line at the left."""
    axes.set_facecolor(theme.paper)
    axes.grid(axis=hairlines, color=theme.line, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, which="both")
    axes.spines["left"].set_visible(False)


def mark_percent(axis: Any) -> None:
    """Mark an axis over 0..100 at every quarter."""
    axis.set_ticks(range(0, 101, 25), [f"{tick} %" for tick in range(0, 101, 25)])


def short(name: str, length: int = MAX_LETTERS) -> str:
    """Return a name cut so that it fits beside a figure."""
    return name if len(name) <= length else name[: length - 1] + "…"


def draw_accuracy(rows: Sequence[Row], chance: float, theme: Theme) -> bytes:
    """Draw accuracies as bars from zero with 95 % intervals, the learned prompt in the accent."""
    with drawing(theme, 7.6, 0.55 + 0.46 * len(rows)) as figure:
        axes = figure.add_subplot()
        axes.set_facecolor(theme.paper)
        axes.set_yticks(range(len(rows)), [row.label for row in reversed(rows)])
        for height, (row, label) in enumerate(zip(reversed(rows), axes.get_yticklabels(), strict=True)):
            colour, alpha, weight = (theme.accent, 0.9, "bold") if row.is_learned else (theme.soft, 0.4, "normal")
            low, high = (100 * bound for bound in row.interval)
            axes.barh(height, 100 * row.accuracy, height=0.5, color=colour, alpha=alpha)
            axes.plot([low, high], [height, height], color=theme.ink, linewidth=1.1, solid_capstyle="butt")
            text = f"{100 * row.accuracy:.1f} %"
            axes.text(max(high, 100 * row.accuracy) + 1.2, height, text, va="center", weight=weight)
            label.set(color=theme.ink, weight=weight)
        axes.axvline(100 * chance, color=theme.ink, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.text(100 * chance + 0.8, len(rows) - 0.42, "chance", color=theme.soft, fontsize=8, va="bottom")
        axes.set(xlim=(0, 108), ylim=(-0.5, len(rows) - 0.1))
        mark_percent(axes.xaxis)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        return png(figure)


def draw_learning_curve(log: Sequence[Mapping[str, Any]], theme: Theme, learned_from: str = "training images") -> bytes:
    """Draw loss and accuracy over epochs, side by side; the loss alone where no accuracy was counted.

    Each epoch's record holds `loss`, and where there are some `accuracy` and `val_accuracy`, 0..1.
    """

    def points(name: str, scale: float = 1) -> list[tuple[int, float]]:
        values = ((epoch, entry.get(name)) for epoch, entry in enumerate(log, 1))
        return [(epoch, scale * value) for epoch, value in values if isinstance(value, int | float)]

    loss, accuracy, validation = points("loss"), points("accuracy", 100), points("val_accuracy", 100)
    titles = ["loss", f"accuracy on the {learned_from}" + (" (grey: validation)" if validation else "")]
    n_panels = 2 if accuracy else 1
    with drawing(theme, 7.6, 2.5) as figure:
        panels = figure.subplots(1, n_panels, squeeze=False)[0]
        marker = "o" if len(log) == 1 else None
        panels[0].plot(*zip(*loss, strict=True), color=theme.accent, linewidth=1.7, marker=marker)
        panels[0].set_ylim(0, 1.08 * max(value for _, value in loss))
        for axes in panels[1:]:
            axes.plot(*zip(*accuracy, strict=True), color=theme.accent, linewidth=1.7, marker=marker)
            axes.plot(*zip(*validation, strict=True), color=theme.soft, linewidth=1.4)
            axes.set_ylim(0, 103)
            mark_percent(axes.yaxis)
        for axes, title in zip(panels, titles, strict=False):
            prepare(axes, theme)
            axes.set_title(title, loc="left", fontsize=9.5, color=theme.soft)
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
            axes.margins(x=0.01)
        return png(figure)


def draw_confusion(confusion: Sequence[Sequence[int]], class_names: Sequence[str], theme: Theme) -> bytes:
    """Draw a confusion matrix [C, C] of counts, true classes down, each row in shares of its true class.

    Counts and names are written where they fit.
    """
    from matplotlib.colors import LinearSegmentedColormap

    counts = np.asarray(confusion, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    n_classes = len(class_names)
    is_named = n_classes <= MAX_NAMED  # else shades alone, as wide as a page
    cell = 0.62 if n_classes <= 6 else 0.42 if n_classes <= 14 else 0.25 if n_classes <= 40 else 0.16
    size = 9.5 if n_classes <= 14 else 7.5 if n_classes <= 40 else 6.5
    names = [short(name, 24) for name in class_names]
    margin = 0.55 + 0.0085 * size * max(map(len, names))
    side = margin + n_classes * cell + 0.06
    with drawing(theme, *((side, side) if is_named else (7.6, 7.4))) as figure:
        if is_named:
            figure.set_layout_engine("none")
            axes = figure.add_axes((margin / side, margin / side, n_classes * cell / side, n_classes * cell / side))
            axes.set_xticks(range(n_classes), names, rotation=90, fontsize=size)
            axes.set_yticks(range(n_classes), names, fontsize=size)
        else:
            axes = figure.add_subplot()
        shades = LinearSegmentedColormap.from_list("shades", [theme.paper, theme.accent])
        axes.imshow(shares, cmap=shades, vmin=0, vmax=1, interpolation="nearest" if is_named else None)
        axes.tick_params(length=0)
        axes.set(xlabel="predicted" if is_named else "predicted, in the order of the class names", ylabel="true")
        axes.spines[:].set_visible(True)
        if n_classes <= 40:
            borders, ends = np.arange(0.5, n_classes - 1), (-0.5, n_classes - 0.5)
            axes.hlines(borders, *ends, color=theme.line, linewidth=0.5)
            axes.vlines(borders, *ends, color=theme.line, linewidth=0.5)
        if n_classes <= 25:
            for row, column in np.argwhere(counts > 0):
                colour = theme.paper if shares[row, column] > 0.55 else theme.ink
                text = f"{int(counts[row, column])}"
                axes.text(column, row, text, ha="center", va="center", fontsize=size - 1, color=colour)
        return png(figure, LARGE_DPI if is_named and n_classes > 40 else DPI)


def draw_examples(images: Sequence[Image.Image], captions: Sequence[str], theme: Theme) -> bytes:
    """Draw a sheet of images, four to a row, each with its caption of one or two lines below."""
    columns = 4
    n_rows = -(-len(images) // columns)
    with drawing(theme, 7.6, 2.4 * n_rows) as figure:
        grid = figure.subplots(n_rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, image, caption in zip(grid.flat, images, captions, strict=False):
            axes.imshow(np.asarray(image))
            axes.set_title(caption, y=-0.02, va="top", fontsize=8, color=theme.ink)
        return png(figure)


@dataclass(frozen=True)
class Curve:
    """One method over shots: mean accuracy and its standard deviation, 0..1; None shots, for all there are, come last.

    One that is flat learns nothing, so that its one value, at 0 shots, holds for all.
    """

    label: str
    points: Mapping[int | None, tuple[float, float | None]]
    is_flat: bool


def draw_shots(curves: Sequence[Curve], title: str, theme: Theme) -> bytes:
    """Draw accuracy over shots, one line a method; one that learns nothing is a star at 0 shots and a dotted line.

    The first curve that learns has the accent.
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
        axes.set(xlim=(-0.35, len(places) - 0.65), xlabel="training images of each class", ylabel="accuracy, %")
        axes.set_title(title, loc="left", fontsize=11, color=theme.ink)
        place = {"loc": "outside lower left", "ncols": min(len(ranked), 2)}
        figure.legend(**place, frameon=False, fontsize=9, labelcolor=theme.ink)
        return png(figure)


def draw_classes(
    names: Sequence[str], before: Sequence[float], after: Sequence[float], theme: Theme, beside: str = "zero-shot"
) -> bytes:
    """Draw accuracies [C] of the classes from `beside` to learned, 0..1, the largest change first."""
    change = np.subtract(after, before)
    order = np.argsort(-change, kind="stable")
    if len(order) > MAX_CLASSES:  # both ends, where something happened
        order = np.concatenate([order[: MAX_CLASSES // 2], order[-(MAX_CLASSES // 2) :]])
    with drawing(theme, 7.6, 1.0 + 0.24 * len(order)) as figure:
        axes = figure.add_subplot()
        prepare(axes, theme, "x")
        for height, c in enumerate(reversed(order)):
            colour = theme.accent if change[c] >= 0 else HUES[0]
            axes.plot([100 * before[c], 100 * after[c]], [height, height], color=colour, linewidth=2, alpha=0.6)
            axes.plot(100 * before[c], height, "o", markersize=5, color=theme.paper, markeredgecolor=theme.soft)
            axes.plot(100 * after[c], height, "o", markersize=6, color=colour)
        axes.set_yticks(range(len(order)), [short(names[c]) for c in reversed(order)], fontsize=8.5)
        axes.set(xlim=(-2, 102), ylim=(-0.7, len(order) - 0.3))
        mark_percent(axes.xaxis)
        axes.set_title(f"{beside} (open) to learned (filled)", loc="left", fontsize=9.5, color=theme.soft)
        return png(figure)


def draw_reliability(bins: Reliability, theme: Theme) -> bytes:
    """Draw accuracy against confidence, with the number of predictions below (Guo et al. 2017)."""
    with drawing(theme, 4.6, 4.4) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
        for axes in (upper, lower):
            prepare(axes, theme)
        confidence, accuracy = (100 * np.array(values) for values in (bins.confidence, bins.accuracy))
        upper.plot([0, 100], [0, 100], color=theme.soft, linewidth=0.9, linestyle=(0, (2, 3)))
        upper.plot(confidence, accuracy, color=theme.accent, linewidth=1.6, marker="o", markersize=5)
        upper.set(xlim=(0, 101), ylim=(0, 103), ylabel="right, %")
        lower.bar(confidence, bins.counts, width=4.5, color=theme.accent, alpha=0.5)
        lower.set(xlabel="probability it gave, %", ylabel="images")
        return png(figure)


@dataclass(frozen=True)
class Trial:
    """One trial of a search, its accuracy on validation, 0..1; of a pruned one it is that of its last epoch."""

    settings: Mapping[str, float]
    accuracy: float
    is_pruned: bool


def draw_sensitivity(trials: Sequence[Trial], names: Sequence[str], best: Trial, theme: Theme) -> bytes:
    """Draw validation accuracy against each setting, side by side, the chosen trial in the accent."""
    from matplotlib.ticker import NullFormatter

    with drawing(theme, max(3.2, 2.55 * len(names)), 3.2) as figure:
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            prepare(axes, theme)
            for is_pruned, look in ((True, {"facecolors": "none", "edgecolors": theme.soft}), (False, {})):
                shown = [trial for trial in trials if trial.is_pruned == is_pruned and name in trial.settings]
                x = [trial.settings[name] for trial in shown]
                y = [100 * trial.accuracy for trial in shown]
                axes.scatter(x, y, s=20, color=None if look else theme.soft, **look)
            axes.scatter([best.settings[name]], [100 * best.accuracy], s=60, color=theme.accent, zorder=3)
            # logarithms with plain numbers: powers of two for counts, of ten for the rest
            is_count = all(float(trial.settings[name]).is_integer() for trial in trials if name in trial.settings)
            axes.set_xscale("log", base=2 if is_count else 10)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(name)
        panels[0].set_ylabel("validation accuracy, %")
        return png(figure)
