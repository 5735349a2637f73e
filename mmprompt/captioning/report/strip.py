"""Images with what each prompt says of them, and a strip of them in one PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from mmprompt.captioning.data import CaptionData
from mmprompt.captioning.measure import NO_PROMPT, CaptionMeasure
from mmprompt.data.images import read_image
from mmprompt.errors import UserError
from mmprompt.reports.figures import Theme, drawing, png
from mmprompt.settings import Count, check

SIDE = 288
"""Pixels that a shown image is wide: four times a drawn scene."""
WIDTH, LABELS, GAP = 7.6, 0.85, 0.14
"""Inches: of the strip, of the column that says who spoke, and between images."""
SIZE, LINE = 8.0, 0.145
"""Of the captions: points, and inches from line to line."""
MAX_LINES = 8


@dataclass(frozen=True)
class Captioned:
    """An image to show, as a square, and what was said of it, by speaker."""

    image: Image.Image
    image_id: str
    said: dict[str, str]


def choose_images(measure: CaptionMeasure, data: CaptionData, n_images: int) -> tuple[list[Captioned], int]:
    """Choose images at even distances over those that were captioned; return how many can no longer be read, too.

    Args:
        measure: what was said.
        data: the set that was measured on.
        n_images: at least 1; fewer are shown where there are fewer.
    Raises:
        UserError: `n_images` is below 1.
    """
    check("n_images", n_images, Count, "Use `n_images=6`.")
    shown = [one for one in measure.speakers if one.name in (NO_PROMPT, *measure.focuses)]
    files = {item.image_id: item.image for item in data.items}
    image_ids = list(measure.speakers[0].said)
    places = np.linspace(0, len(image_ids) - 1, min(n_images, len(image_ids))).round().astype(int)
    chosen: list[Captioned] = []
    for image_id in (image_ids[place] for place in places):
        try:
            image = whole_in_square(read_image(files[image_id]))
        except UserError:
            continue
        chosen.append(Captioned(image, image_id, {one.name: one.said[image_id] for one in shown}))
    return chosen, len(places) - len(chosen)


def whole_in_square(image: Image.Image) -> Image.Image:
    """Return all of an image in a square with clear borders, for a caption may speak of any part of it."""
    return ImageOps.pad(image.convert("RGBA"), (SIDE, SIDE), Image.Resampling.BICUBIC, (0, 0, 0, 0))


def draw_strip(measure: CaptionMeasure, data: CaptionData, n_images: int, theme: Theme) -> bytes:
    """Draw images in a row, and under each what the captioner says without a prompt and with each learned one.

    Args:
        measure: what was said.
        data: the set that was measured on.
        n_images: how many; 4 to 6 are readable.
        theme: the page's colours.
    Returns:
        PNG bytes.
    Raises:
        UserError: `n_images` is below 1, or no image can be read any more.
    """
    chosen, _ = choose_images(measure, data, n_images)
    if not chosen:
        raise UserError(f"no image of {data.name} can be read any more. Put them back where they were.")
    return draw_captioned(chosen, theme)


def draw_captioned(chosen: Sequence[Captioned], theme: Theme) -> bytes:
    """Draw a strip of images, at least one; a row of captions is as high as its longest."""
    column = (WIDTH - LABELS) / max(len(chosen), 4) - GAP
    speakers = list(chosen[0].said)
    with drawing(theme, 1, 1) as figure:  # the size follows from the captions, which this font sets
        figure.set_layout_engine("none")
        cells = [[wrap(one.said[name], column) for one in chosen] for name in speakers]
        labels = [wrap(name, LABELS - GAP) for name in speakers]
        n_lines = [max(map(len, [label, *row])) for label, row in zip(labels, cells, strict=True)]
        height = column + sum(n * LINE + GAP for n in n_lines) + 2 * GAP
        width = LABELS + len(chosen) * (column + GAP)
        figure.set_size_inches(width, height)
        top = height - GAP
        lefts = [LABELS + number * (column + GAP) for number in range(len(chosen))]
        for left, one in zip(lefts, chosen, strict=True):
            place = (left / width, (top - column) / height, column / width, column / height)
            axes = figure.add_axes(place)
            axes.set_axis_off()
            axes.imshow(np.asarray(one.image), interpolation="antialiased")
        top -= column + GAP
        for name, label, row, n in zip(speakers, labels, cells, n_lines, strict=True):
            colour = theme.soft if name == NO_PROMPT else theme.accent
            columns = [
                (GAP / 2, label, colour),
                *((left, lines, theme.ink) for left, lines in zip(lefts, row, strict=True)),
            ]
            for left, lines, ink in columns:
                for number, line in enumerate(lines):  # line by line, so that all rows stand on one baseline
                    height_of_line = top - (number + 0.75) * LINE
                    figure.text(left / width, height_of_line / height, line, color=ink, fontsize=SIZE)
            top -= n * LINE + GAP
        return png(figure)


def wrap(text: str, width: float) -> list[str]:
    """Break a text into the lines of a column of some inches, in the current font; at least one, cut after eight."""
    from matplotlib.textpath import TextPath

    if not text.strip():
        return ["-"]
    wide = TextPath((0, 0), text, size=SIZE).get_extents().width / 72
    n_characters = len(text) if wide <= width else int(0.9 * len(text) * width / wide)  # some lines have wide letters
    return textwrap.wrap(text, max(4, n_characters), max_lines=MAX_LINES, placeholder=" …")
