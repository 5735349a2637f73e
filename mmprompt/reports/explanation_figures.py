"""The figures that only an explanation has; see `reports.figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from mmprompt.reports.figures import HUES, Theme, drawing, png, prepare, short

MOST_BARS = 32
MOST_LABELS = 30
LETTERS, MARGIN, MOST_LINES, MOST_PIECES = 84, 14, 3, 8
"""Of a text in a figure: letters in a line and beside it, lines, and tokens of a word that is not broken."""
MONO_WIDTH = 0.602 * 9 / 72
"""Inches of a letter of 9 points in the font that comes with matplotlib."""
SIDE = 1.15
"""Inches of an image in a row of maps."""


def draw_worth(names: Sequence[str], loss: Sequence[float], theme: Theme) -> bytes:
    """Draw by how much the loss grows without each vector, in their own order; the ends of a long list alone."""
    places = np.arange(len(loss))
    if len(places) > MOST_BARS:
        order = np.argsort(-np.array(loss), kind="stable")
        places = np.sort(np.concatenate([order[: MOST_BARS // 2], order[-MOST_BARS // 2 :]]))
    with drawing(theme, 7.6, 0.7 + 0.22 * len(places)) as figure:
        axes = figure.add_subplot()
        prepare(axes, theme, "x")
        for height, place in enumerate(reversed(places)):
            colour = theme.accent if loss[place] > 0 else HUES[0]
            axes.barh(height, loss[place], height=0.6, color=colour, alpha=0.85)
        axes.axvline(0, color=theme.soft, linewidth=0.8)
        axes.set_yticks(range(len(places)), [short(names[place]) for place in reversed(places)], fontsize=8.5)
        axes.set_ylim(-0.7, len(places) - 0.3)
        axes.set_xlabel("nats that the loss grows by without it")
        return png(figure)


def draw_moves(names: Sequence[str], before: np.ndarray, after: np.ndarray, theme: Theme) -> bytes:
    """Draw where class features went on a map: from open to filled, [C, 2] each."""
    with drawing(theme, 7.6, 5.6) as figure:
        axes = figure.add_subplot()
        prepare(axes, theme, "both")
        for start, end in zip(before, after, strict=True):
            axes.plot(*zip(start, end, strict=True), color=theme.accent, linewidth=1.1, alpha=0.45, zorder=1)
        axes.scatter(*before.T, s=22, facecolors=theme.paper, edgecolors=theme.soft, linewidths=1.0, zorder=2)
        axes.scatter(*after.T, s=26, color=theme.accent, zorder=3)
        if len(names) <= MOST_LABELS:
            for name, place in zip(names, after, strict=True):
                offset = {"xytext": (5, 4), "textcoords": "offset points"}
                axes.annotate(short(name), place, fontsize=8, color=theme.ink, **offset)
        axes.set_xticklabels([])
        axes.set_yticklabels([])
        axes.margins(0.1)
        axes.set_title("zero-shot (open) to learned (filled)", loc="left", fontsize=9.5, color=theme.soft)
        return png(figure)


def draw_maps(
    images: Sequence[Image.Image], captions: Sequence[str], maps: Sequence[tuple[str, np.ndarray]], theme: Theme
) -> bytes:
    """Draw images in a row, and below each where the model looked, one row of maps [N, G, G] a name."""
    n_images, n_rows = len(images), 1 + len(maps)
    with drawing(theme, 0.95 + (SIDE + 0.08) * max(n_images, 4), 0.32 + (SIDE + 0.08) * n_rows) as figure:
        panels = figure.subplots(n_rows, max(n_images, 4), squeeze=False)
        for panel in panels.flat:
            panel.set_axis_off()
        for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
            panels[0, place].imshow(np.asarray(image.convert("RGB")))
            panels[0, place].set_title(short(caption, 18), fontsize=8.5, color=theme.ink)
            grey = np.asarray(image.convert("L"))
            for row, (_, each) in enumerate(maps, 1):
                heat = each[place] / max(float(each[place].max()), 1e-12)
                panels[row, place].imshow(grey, cmap="gray", extent=(0, 1, 0, 1))
                panels[row, place].imshow(
                    heat, cmap="inferno", alpha=0.6, extent=(0, 1, 0, 1), interpolation="bicubic", vmin=0, vmax=1
                )
        for row, name in enumerate(["image", *(name for name, _ in maps)]):
            panels[row, 0].text(
                -0.08,
                0.5,
                name,
                transform=panels[row, 0].transAxes,
                ha="right",
                va="center",
                fontsize=8.5,
                color=theme.soft,
            )
        return png(figure)


def draw_tokens(texts: Sequence[tuple[str, Mapping[str, Sequence[tuple[str, float]]]]], theme: Theme) -> bytes:
    """Draw texts with shaded tokens: in the accent what speaks for something, in red what speaks against it.

    Each text has a title and, by name, one or more lists of its tokens with numbers in -1..1.
    """
    from matplotlib.patches import Rectangle

    lines: list[tuple[str, Sequence[tuple[str, float | None]]]] = []
    for title, ways in texts:
        lines.append(("", [(short(title, LETTERS), None)]))
        for name, tokens in ways.items():
            rows = wrapped(tokens)
            lines += zip([name] + [""] * (len(rows) - 1), rows, strict=True)
        lines.append(("", []))
    with drawing(theme, MONO_WIDTH * (LETTERS + MARGIN), 0.2 * len(lines)) as figure:
        figure.set_layout_engine("none")  # the text lays itself out
        axes = figure.add_axes((0, 0, 1, 1), xlim=(-MARGIN, LETTERS), ylim=(len(lines), 0))
        axes.set_axis_off()
        for top, (name, row) in enumerate(lines):
            axes.text(-1.5, top + 0.5, name, ha="right", va="center", fontsize=8.5, color=theme.soft)
            at = 0
            for text, number in row:
                colour = theme.soft if number is None else theme.ink
                axes.text(at, top + 0.5, text, va="center", fontsize=9, family="DejaVu Sans Mono", color=colour)
                if number:
                    shade = theme.accent if number > 0 else HUES[5]
                    axes.add_patch(
                        Rectangle((at, top + 0.06), len(text), 0.88, color=shade, alpha=0.6 * abs(number), lw=0)
                    )
                at += len(text)
        return png(figure)


def wrapped(tokens: Sequence[tuple[str, float]]) -> list[list[tuple[str, float]]]:
    """Lay tokens out in lines, broken between words; what is beyond the last line is left away."""
    lines: list[list[tuple[str, float]]] = [[]]
    word: list[tuple[str, float]] = []
    for place, token in enumerate(tokens):
        word.append(token)
        is_last = place + 1 == len(tokens) or tokens[place + 1][0][:1].isspace() or len(word) > MOST_PIECES
        if is_last:
            if sum(len(text) for text, _ in lines[-1] + word) > LETTERS - 1 and lines[-1]:
                lines.append([])
            lines[-1] += word
            word = []
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], [*lines[MOST_LINES - 1], ("…", 0.0)]]
    return lines
