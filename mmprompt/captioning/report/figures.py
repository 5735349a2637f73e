"""The figures of caption prompts: who spoke of what, and what focus costs as strength rises."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmprompt.captioning.measure import Point
from mmprompt.captioning.metrics.adherence import Confusion
from mmprompt.reports.figures import HUES, Theme, drawing, png, prepare, short

MAX_UPRIGHT = 5
"""Columns whose names still fit beside each other."""


def draw_adherence(confusion: Confusion, theme: Theme) -> bytes:
    """Adherence of every captioner to every focus, in %, shaded.

    Args:
        confusion: prompts down; the focuses across come in the order of their prompts, so that what is meant to be
            high lies on a diagonal.
        theme: the page's colours.
    """
    from matplotlib.colors import LinearSegmentedColormap

    learned = [prompt for prompt in confusion.prompts if prompt in confusion.focuses]
    focuses = learned + [focus for focus in confusion.focuses if focus not in learned]
    values = np.array(confusion.values)[:, [confusion.focuses.index(focus) for focus in focuses]]
    is_upright = len(focuses) <= MAX_UPRIGHT
    names = [short(focus) for focus in focuses]
    cell = max(0.85, 0.085 * max(map(len, names))) if is_upright else 0.62
    width = 0.3 + 0.08 * max(len(short(prompt)) for prompt in confusion.prompts) + cell * len(focuses)
    with drawing(theme, width, 0.45 + 0.36 * len(values) + (0 if is_upright else 1.4)) as figure:
        axes = figure.add_subplot()
        shades = LinearSegmentedColormap.from_list("shades", [theme.paper, theme.accent])
        axes.imshow(values, cmap=shades, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.xaxis.tick_top()
        axes.set_xticks(range(len(focuses)), names, rotation=0 if is_upright else 90)
        axes.set_yticks(range(len(values)), [short(prompt) for prompt in confusion.prompts])
        for label, prompt in zip(axes.get_yticklabels(), confusion.prompts, strict=True):
            label.set_color(theme.ink if prompt in learned else theme.soft)
            label.set_weight("bold" if prompt in learned else "normal")
        borders = [row + 0.5 for row, prompt in enumerate(confusion.prompts[:-1]) if row == 0 or prompt in learned]
        axes.hlines(borders, -0.5, len(focuses) - 0.5, color=theme.line, linewidth=0.8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(True)
        for (row, column), value in np.ndenumerate(values):
            colour = theme.paper if value > 0.55 else theme.ink
            axes.text(column, row, f"{100 * value:.1f}", ha="center", va="center", fontsize=9, color=colour)
        return png(figure)


def draw_strength(points: Sequence[Point], focus: str, theme: Theme) -> bytes:
    """Adherence and grounded precision over strength, and CIDEr-D below.

    Args:
        points: of one prompt, at least one.
        focus: its name.
        theme: the page's colours.
    """
    strengths = [point.strength for point in points]
    grounded = [np.nan if point.grounded_precision is None else point.grounded_precision for point in points]
    with drawing(theme, 4.6, 4.3) as figure:  # two beside each other on a page, one on a phone
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1.6, 1))
        for axes in (upper, lower):
            prepare(axes, theme)
            axes.axvline(1, color=theme.soft, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
        adherence = [100 * point.adherence for point in points]
        upper.plot(strengths, adherence, color=theme.accent, marker="o", markersize=5, label="adherence")
        upper.plot(strengths, 100 * np.array(grounded), color=HUES[1], marker="s", markersize=4, label="grounded")
        upper.set_ylim(-3, 105)
        upper.set_ylabel("%")
        upper.set_title(short(focus), loc="left", fontsize=11, color=theme.ink)
        place = {"loc": "lower right", "bbox_to_anchor": (1.01, 0.98), "ncols": 2}  # above, where no curve runs
        upper.legend(**place, frameon=False, fontsize=9, labelcolor=theme.ink, columnspacing=1.2)
        cider = [100 * point.cider_d for point in points]
        lower.plot(strengths, cider, color=HUES[0], marker="D", markersize=4)
        lower.set_ylim(0, 1.12 * max(max(cider), 1))
        lower.set_ylabel("CIDEr-D")
        lower.set_xlabel("strength; 0 is no prompt, 1 the plain prompt")
        lower.set_xticks(strengths, [f"{strength:g}" for strength in strengths])
        return png(figure)
