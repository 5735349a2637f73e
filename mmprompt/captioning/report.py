"""The report of caption prompts: tables, the curve over strength, and images with what each prompt says of them.

It shows what was measured and computes nothing; the page opens anywhere and reaches for no network.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mmprompt.captioning.data import CaptionData
from mmprompt.captioning.measure import N_CURVE, NO_PROMPT, CaptionMeasure, Point
from mmprompt.captioning.metrics.adherence import Confusion
from mmprompt.data.images import read_image
from mmprompt.errors import UserError
from mmprompt.files import make_folder, write_json
from mmprompt.reports.figures import HUES, LIGHT, Theme, drawing, png, prepare, short
from mmprompt.reports.pages import Draw, missing_extra, write_page
from mmprompt.reports.tables import Table, between, percent, signed, write_tables
from mmprompt.settings import Count, check

N_IMAGES = 6
SIDE = 288
"""Pixels that a shown image is wide: four times a drawn scene."""
WIDTH, LABELS, GAP = 7.6, 0.85, 0.14
"""Inches: of the strip, of the column that says who spoke, and between images."""
SIZE, LINE = 8.0, 0.145
"""Of the captions: points, and inches from line to line."""
MAX_LINES = 8
MAX_UPRIGHT = 5
"""Columns whose names still fit beside each other."""
Columns = tuple[list[str], list[list[str]], tuple[int, ...]]
"""Headers, rows, and which columns are numbers."""

SHOWN = {
    "adherence": "adherence",
    "grounded_precision_all": "grounded precision",
    "recall": "recall",
    "density": "items a caption",
    "mean_length": "words a caption",
    "distinct_ratio": "distinct captions",
}
"""How each measure in the table of gains is called."""
NUMBERS = {"density": 2, "mean_length": 1}
"""Measures that are no shares, and their decimals."""


def write_caption_report(measure: CaptionMeasure, data: CaptionData, folder: Path, command: str) -> Path | None:
    """Write `metrics.json` and, with the report extra, `report.html`, its figures and the tables in four forms.

    `command` is how to repeat it. Return the path of the HTML file, None without the extra.
    """
    make_folder(folder)
    write_json(folder / "metrics.json", measure.to_dict())
    if missing_extra():
        return None
    for name, (headers, rows, numbers) in (("captioners", speaker_table(measure)), ("focuses", focus_table(measure))):
        write_tables(Table(tuple(headers), tuple(map(tuple, rows)), min(numbers)), folder, name)
    charts: dict[str, Draw] = {"confusion": partial(draw_adherence, measure.confusion)}
    curves = {focus: points for focus, points in measure.strengths.items() if points}
    for number, (focus, points) in enumerate(curves.items(), 1):  # a focus may have any name, a file may not
        charts[f"strength_{number}"] = partial(draw_strength, points, focus)
    chosen, n_missing = choose_images(measure, data, N_IMAGES)
    return write_page(
        folder,
        "captions",
        charts,
        {"strip": draw_captioned(chosen, LIGHT)} if chosen else {},
        measure=measure,
        data=data,
        decoding=asdict(measure.decoding),
        command=command,
        n_curve=N_CURVE,
        own=[measure.focus_scores[focus][focus] for focus in measure.focuses],
        gains={focus: gain_rows(measure, focus) for focus in measure.focuses},
        speakers=speaker_table(measure),
        curves=curves,
        strengths={focus: strength_table(points) for focus, points in curves.items()},
        chosen=chosen,
        n_missing=n_missing,
        notes=notes(measure, data),
    )


def speaker_table(measure: CaptionMeasure) -> Columns:
    """Tabulate every captioner: adherence to every focus in %, length, variety and closeness to the references."""
    headers = ["captioner", *measure.confusion.focuses, "words", "distinct", "BLEU-4", "ROUGE-L", "CIDEr-D"]
    rows = []
    for speaker, adherence in zip(measure.speakers, measure.confusion.values, strict=True):
        text = measure.text_scores[speaker.name]
        shares = map(in_percent, (text.distinct_ratio, text.bleu[3], text.rouge_l, text.cider_d))
        name = f'{speaker.name} ("{speaker.words}")' if speaker.words else speaker.name
        rows.append([name, *map(in_percent, adherence), f"{text.mean_length:.1f}", *shares])
    if measure.clip_scores:
        headers.append("CLIPScore")
        for row, speaker in zip(rows, measure.speakers, strict=True):
            row.append(f"{measure.clip_scores[speaker.name].mean:.3f}")
    return headers, rows, tuple(range(1, len(headers)))


def focus_table(measure: CaptionMeasure) -> Columns:
    """Tabulate what each learned prompt reaches and gains beside people, no prompt and words."""
    headers = ["focus", "measure", "learned", "people", "no prompt", "gained", "words", "gained over words"]
    rows = [[focus, *row] for focus in measure.focuses for row in gain_rows(measure, focus)]
    return headers, rows, tuple(range(2, len(headers)))


def gain_rows(measure: CaptionMeasure, focus: str) -> list[list[str]]:
    """Return the rows of one focus: measure, learned prompt, people, no prompt, gained, words, gained.

    The last is how improbable the captions that people wrote of the focus are, where there are some.
    """

    def write(name: str, value: float | None) -> str:
        if value is None:
            return "-"
        return f"{value:.{NUMBERS[name]}f}" if name in NUMBERS else percent(value)

    def write_gain(name: str) -> str:
        lift = measure.lifts[focus].get(name)
        return "" if lift is None else f"{signed(lift.difference)} ({between(lift.interval, with_sign=True)})"

    names = focus, NO_PROMPT, f"words: {focus}"
    learned, bare, words = (measure.focus_scores[name][focus] for name in names)
    rows = [
        [
            label,
            *(write(name, values[name]) for values in (learned.values, learned.human, bare.values)),
            write_gain(f"{name} over none"),
            write(name, words.values[name]),
            write_gain(f"{name} over words"),
        ]
        for name, label in SHOWN.items()
    ]
    if measure.losses[focus]:
        own, none, hard = (f"{measure.losses[focus][name]:.2f}" for name in names)
        rows.append(["nats a token of the references", own, "-", none, "", hard, ""])
    return rows


def strength_table(points: Sequence[Point]) -> Columns:
    """Tabulate one prompt over strength."""
    headers = ["strength", "adherence", "grounded", "CIDEr-D", "words", "distinct"]
    rows = [
        [
            f"{point.strength:g}",
            *map(in_percent, (point.adherence, point.grounded_precision, point.cider_d)),
            f"{point.mean_length:.1f}",
            in_percent(point.distinct_ratio),
        ]
        for point in points
    ]
    return headers, rows, tuple(range(len(headers)))


def notes(measure: CaptionMeasure, data: CaptionData) -> list[str]:
    """Return what a careful reader should know, each once: of the data, the measures and the human ceiling."""
    ceilings = [note for focus in measure.focuses for note in measure.focus_scores[focus][focus].notes]
    return list(dict.fromkeys([*data.notes, *measure.notes, *ceilings]))


def in_percent(value: float | None) -> str:
    """Return a share in %, which its column says; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.1f}"


def draw_adherence(confusion: Confusion, theme: Theme) -> bytes:
    """Draw the adherence of every captioner to every focus, in %, shaded.

    The focuses across come in the order of their prompts, so that what is meant to be high is on a diagonal.
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
    """Draw adherence and grounded precision of one prompt over strength, and CIDEr-D below."""
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
        upper.set(ylim=(-3, 105), ylabel="%")
        upper.set_title(short(focus), loc="left", fontsize=11, color=theme.ink)
        place = {"loc": "lower right", "bbox_to_anchor": (1.01, 0.98), "ncols": 2}  # above, where no curve runs
        upper.legend(**place, frameon=False, fontsize=9, labelcolor=theme.ink, columnspacing=1.2)
        cider = [100 * point.cider_d for point in points]
        lower.plot(strengths, cider, color=HUES[0], marker="D", markersize=4)
        xlabel = "strength; 0 is no prompt, 1 the plain prompt"
        lower.set(ylim=(0, 1.12 * max(max(cider), 1)), ylabel="CIDEr-D", xlabel=xlabel)
        lower.set_xticks(strengths, [f"{strength:g}" for strength in strengths])
        return png(figure)


@dataclass(frozen=True)
class Captioned:
    """An image to show, as a square, and what was said of it, by speaker."""

    image: Image.Image
    image_id: str
    said: dict[str, str]


def choose_images(measure: CaptionMeasure, data: CaptionData, n_images: int) -> tuple[list[Captioned], int]:
    """Choose images at even distances over those that were captioned; return how many can no longer be read, too."""
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
    """Draw 4 to 6 images in a row as PNG, and under each what is said without a prompt and with each learned one."""
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
