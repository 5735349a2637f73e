"""The figures of a report, drawn with matplotlib on paper or on a dark page; they know numbers and names only.

A figure is a function of data and a `Theme` to PNG bytes. Nothing touches matplotlib's global state,
so a figure looks the same whatever the caller has set.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

DPI = 200
LARGE_DPI = 150  # a hundred classes make a large figure as it is
MAX_NAMED = 120  # classes: beyond, a matrix with names would be metres wide
MAX_LETTERS = 26
FONTS = ("Inter", "Helvetica Neue", "Segoe UI", "Arial", "Liberation Sans", "Noto Sans", "DejaVu Sans")


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
    with mpl.rc_context(settings):
        yield Figure(figsize=(width, height), facecolor=theme.paper, layout="constrained")


def png(figure: Any, dpi: int = DPI) -> bytes:
    """A figure as PNG bytes, without the version that would make equal runs differ."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None}, pil_kwargs={"compress_level": 4})
    return buffer.getvalue()


def prepare(axes: Any, theme: Theme) -> None:
    """Give axes the look of all curves: hairlines across, no ticks, no line at the left."""
    axes.set_facecolor(theme.paper)
    axes.yaxis.grid(visible=True, color=theme.line, linewidth=0.6)
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
    """Draw accuracies as bars from zero with 95 % intervals, the learned prompt in the accent.

    Args:
        rows: what is compared, top to bottom.
        chance: the share right by guessing, in 0..1.
        theme: the page's colours.
    """
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


def draw_learning_curve(
    log: Sequence[Mapping[str, Any]], theme: Theme, learned_from: str = "training pictures"
) -> bytes:
    """Draw loss and accuracy over epochs, side by side; the loss alone where no accuracy was counted.

    Args:
        log: a record of each epoch, at least one: `loss`, and where there are some `accuracy` and `val_accuracy`, the
            shares of training and validation items right.
        theme: the page's colours.
        learned_from: what the training items are called.
    """
    loss, accuracy, validation = (
        [float(entry[name]) for entry in log if entry.get(name) is not None]
        for name in ("loss", "accuracy", "val_accuracy")
    )
    epochs = range(1, len(log) + 1)
    titles = ["loss", f"accuracy on the {learned_from}" + (" (grey: validation)" if validation else "")]
    n_panels = 2 if accuracy else 1
    with drawing(theme, 7.6, 2.5) as figure:
        panels = figure.subplots(1, n_panels, squeeze=False)[0]
        marker = "o" if len(log) == 1 else None
        panels[0].plot(epochs, loss, color=theme.accent, linewidth=1.7, marker=marker)
        panels[0].set_ylim(0, 1.08 * max(loss))
        for axes in panels[1:]:
            axes.plot(epochs, [100 * share for share in accuracy], color=theme.accent, linewidth=1.7, marker=marker)
            if validation:
                axes.plot(epochs, [100 * share for share in validation], color=theme.soft, linewidth=1.4)
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
    """Draw a confusion matrix, each row in shares of its true class; counts and names are written where they fit.

    Args:
        confusion: [C, C] counts, true classes down, predictions across.
        class_names: C names.
        theme: the page's colours.
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
    """Draw a sheet of images, four to a row, each with its caption below.

    Args:
        images: at least one.
        captions: one an image, of one or two lines.
        theme: the page's colours.
    """
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
