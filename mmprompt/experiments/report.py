"""The report of a run: one HTML file that opens anywhere, and its figures as PNG files beside it.

It reads the run folder alone (`record.py`), says what was found in sentences, and leaves drawing to
`figures.py`. It never trains, evaluates or reaches for the network.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmprompt.data.images import read_image
from mmprompt.errors import UserError
from mmprompt.experiments import figures, sentences
from mmprompt.experiments.figures import DARK, LIGHT, Theme
from mmprompt.experiments.record import Record, Shown, read_record
from mmprompt.files import write_bytes

N_EXAMPLES = 8
THUMBNAIL = 240
N_CONFUSED = 10
INSTALL = 'pip install "mmprompt[report]"'


@dataclass(frozen=True)
class Example:
    """A test picture to show, already shrunk."""

    picture: Image.Image
    label: str
    predicted: str
    probability: str


def missing_extra() -> str | None:
    """One line on how to install what reports need, None where it is there."""
    absent = [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
    return f"no report was written, because {' and '.join(absent)} is missing: {INSTALL}" if absent else None


def write_report(folder: Path | str) -> Path:
    """Write `report.html` and the figures of a finished run into its folder.

    Args:
        folder: a run folder.
    Returns:
        The path of the HTML file.
    Raises:
        UserError: the folder holds no finished run, cannot be written, or the report extra is not installed.
    """
    problem = missing_extra()
    if problem:
        raise UserError(problem)
    record = read_record(folder)
    right, wrong, n_missing = choose_examples(record)
    light, dark = draw_charts(record, LIGHT), draw_charts(record, DARK)
    for name, data in {**light, **draw_sheets(right, wrong)}.items():
        write_bytes(record.folder / f"{name}.png", data)
    pages = {name: chart(data, dark[name], name) for name, data in light.items()}
    path = record.folder / "report.html"
    write_bytes(path, render(record, pages, right, wrong, n_missing).encode())
    return path


def draw_charts(record: Record, theme: Theme) -> dict[str, bytes]:
    """The charts of a run for one theme, as PNG bytes by file name; what there is no data for is left out."""
    rows = [
        figures.Row(row_label(record, m.key), m.accuracy, m.interval, m.key == "learned")
        for m in record.measured.values()
    ]
    drawn = {
        "accuracy": figures.draw_accuracy(rows, 1 / len(record.class_names), theme),
        "confusion": figures.draw_confusion(record.confusion.tolist(), record.class_names, theme),
    }
    if record.log:
        loss, accuracy, validation = (record.log_values(name) for name in ("loss", "accuracy", "val_accuracy"))
        epochs = range(1, len(record.log) + 1)
        drawn["learning_curve"] = figures.draw_learning_curve(epochs, loss, accuracy, validation, theme)
    return drawn


def draw_sheets(right: Sequence[Example], wrong: Sequence[Example]) -> dict[str, bytes]:
    """The example pictures as sheets, PNG bytes by file name."""
    sheets = {}
    for name, examples in (("examples_right", right), ("examples_wrong", wrong)):
        if examples:
            captions = [f"{e.predicted}, {e.probability}" + true_label(e) for e in examples]
            sheets[name] = figures.draw_examples([e.picture for e in examples], captions, LIGHT)
    return sheets


def true_label(example: Example) -> str:
    """The second line of a wrong picture's caption, nothing for a right one."""
    return f"\nreally {example.label}" if example.predicted != example.label else ""


def row_label(record: Record, key: str) -> str:
    """How a measured row is called, the template with its words."""
    return {"zero_shot_name": "bare class name", "learned": "learned prompt"}.get(key, f"template “{record.template}”")


def chart(light: bytes, dark: bytes, name: str) -> dict[str, Any]:
    """A figure for the page: both themes in base64; for the confusion matrix its natural width in CSS pixels."""
    width = None
    if name == "confusion":
        with Image.open(io.BytesIO(light)) as picture:
            width = round(96 * picture.width / picture.info["dpi"][0])
    return {"light": encode(light), "dark": encode(dark), "width": width}


def encode(data: bytes) -> str:
    """Bytes as base64 text."""
    return base64.b64encode(data).decode("ascii")


def choose_examples(record: Record) -> tuple[list[Example], list[Example], int]:
    """Pictures it got right (random, class after class) and wrong (surest first), and how many files were gone."""
    rng = random.Random(0)
    shuffled = rng.sample(record.shown, len(record.shown))
    right = one_class_after_another([s for s in shuffled if s.label == s.predicted])
    surest = sorted((s for s in record.shown if s.label != s.predicted), key=lambda s: -s.probability)
    wrong = [s for i, s in enumerate(surest) if sum(o.label == s.label for o in surest[:i]) < 2]
    chosen_right, gone_right = load_examples(record, right)
    chosen_wrong, gone_wrong = load_examples(record, wrong)
    return chosen_right, chosen_wrong, gone_right + gone_wrong


def one_class_after_another(pictures: Sequence[Shown]) -> list[Shown]:
    """The same pictures, the first of every class before the second of any."""
    seen: dict[int, int] = {}
    turns = []
    for picture in pictures:
        turns.append(seen.get(picture.label, 0))
        seen[picture.label] = turns[-1] + 1
    return [picture for _, picture in sorted(zip(turns, pictures, strict=True), key=lambda pair: pair[0])]


def load_examples(record: Record, pictures: Sequence[Shown]) -> tuple[list[Example], int]:
    """The first pictures that can still be read, and how many could not."""
    examples: list[Example] = []
    n_missing = 0
    for shown in pictures:
        if len(examples) == N_EXAMPLES or n_missing == N_EXAMPLES:
            break
        try:
            picture = read_image(shown.path)
        except UserError:
            n_missing += 1
            continue
        names = record.class_names
        picture = fit_square(picture)
        examples.append(
            Example(picture, names[shown.label], names[shown.predicted], f"{100 * shown.probability:.0f} %")
        )
    return examples, n_missing


def fit_square(picture: Image.Image) -> Image.Image:
    """The middle square of a picture at the size of a thumbnail."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return square.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)


def png_of(picture: Image.Image) -> str:
    """A picture as base64 PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return encode(buffer.getvalue())


def most_confused(record: Record) -> list[dict[str, Any]]:
    """The most frequent mistakes, as rows of a table."""
    counts = record.confusion * (1 - np.eye(len(record.class_names), dtype=int))
    totals = record.confusion.sum(axis=1)
    pairs = sorted(np.argwhere(counts > 0).tolist(), key=lambda p: (-counts[p[0], p[1]], p))
    return [
        {
            "label": record.class_names[true],
            "predicted": record.class_names[predicted],
            "count": int(counts[true, predicted]),
            "share": f"{100 * counts[true, predicted] / totals[true]:.0f} %",
        }
        for true, predicted in pairs[:N_CONFUSED]
    ]


def render(
    record: Record, pages: dict[str, Any], right: Sequence[Example], wrong: Sequence[Example], n_missing: int
) -> str:
    """The HTML of a report, every text in it escaped."""
    from jinja2 import Environment, StrictUndefined

    source = resources.files("mmprompt.experiments").joinpath("templates/report.html.jinja").read_text("utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(source)
    cells = [
        {"picture": png_of(e.picture), "label": e.label, "predicted": e.predicted, "probability": e.probability}
        for e in (*right, *wrong)
    ]
    return template.render(
        light=LIGHT,
        dark=DARK,
        figures={"learning_curve": None} | pages,
        right=cells[: len(right)],
        wrong=cells[len(right) :],
        confused=most_confused(record),
        missing_pictures=sentences.missing_pictures(n_missing),
        **sentences.of(record, {key: row_label(record, key) for key in record.measured}),
    )
