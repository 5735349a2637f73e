"""Test pictures to show in a report: which ones, shrunk, what they were taken for, and the most frequent mistakes."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mmprompt.classification.report.record import Shown
from mmprompt.data.images import read_image
from mmprompt.errors import UserError
from mmprompt.reports import figures
from mmprompt.reports.figures import LIGHT
from mmprompt.reports.pages import encode

N_EXAMPLES = 8
THUMBNAIL = 240
N_CONFUSED = 10


@dataclass(frozen=True)
class Example:
    """A test picture to show, already shrunk."""

    picture: Image.Image
    label: str
    predicted: str
    probability: str


def choose_examples(shown: Sequence[Shown], class_names: Sequence[str]) -> tuple[list[Example], list[Example], int]:
    """Pictures it got right (random, class after class) and wrong (surest first), and how many files were gone.

    Args:
        shown: the test pictures.
        class_names: C names.
    """
    rng = random.Random(0)
    shuffled = rng.sample(shown, len(shown))
    right = one_class_after_another([s for s in shuffled if s.label == s.predicted])
    surest = sorted((s for s in shown if s.label != s.predicted), key=lambda s: -s.probability)
    wrong = [s for i, s in enumerate(surest) if sum(o.label == s.label for o in surest[:i]) < 2]
    chosen_right, gone_right = load_examples(right, class_names)
    chosen_wrong, gone_wrong = load_examples(wrong, class_names)
    return chosen_right, chosen_wrong, gone_right + gone_wrong


def one_class_after_another(pictures: Sequence[Shown]) -> list[Shown]:
    """The same pictures, the first of every class before the second of any."""
    seen: dict[int, int] = {}
    turns = []
    for picture in pictures:
        turns.append(seen.get(picture.label, 0))
        seen[picture.label] = turns[-1] + 1
    return [picture for _, picture in sorted(zip(turns, pictures, strict=True), key=lambda pair: pair[0])]


def load_examples(pictures: Sequence[Shown], class_names: Sequence[str]) -> tuple[list[Example], int]:
    """The first pictures that can still be read, and how many could not."""
    examples: list[Example] = []
    n_missing = 0
    for shown in pictures:
        if len(examples) == N_EXAMPLES or n_missing == N_EXAMPLES:
            break
        try:
            picture = fit_square(read_image(shown.path))
        except UserError:
            n_missing += 1
            continue
        names = (class_names[shown.label], class_names[shown.predicted])
        examples.append(Example(picture, *names, f"{100 * shown.probability:.0f} %"))
    return examples, n_missing


def fit_square(picture: Image.Image) -> Image.Image:
    """The middle square of a picture at the size of a thumbnail."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return square.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)


def in_page(examples: Sequence[Example]) -> list[dict[str, str]]:
    """Examples as a template takes them, the pictures as base64 PNG."""
    return [
        {"picture": png_of(e.picture), "label": e.label, "predicted": e.predicted, "probability": e.probability}
        for e in examples
    ]


def png_of(picture: Image.Image) -> str:
    """A picture as base64 PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return encode(buffer.getvalue())


def draw_sheets(right: Sequence[Example], wrong: Sequence[Example]) -> dict[str, bytes]:
    """The examples as sheets, PNG bytes by file name."""
    sheets = {}
    for name, examples in (("examples_right", right), ("examples_wrong", wrong)):
        if examples:
            captions = [f"{e.predicted}, {e.probability}" + true_label(e) for e in examples]
            sheets[name] = figures.draw_examples([e.picture for e in examples], captions, LIGHT)
    return sheets


def true_label(example: Example) -> str:
    """The second line of a wrong picture's caption, nothing for a right one."""
    return f"\nreally {example.label}" if example.predicted != example.label else ""


def most_confused(confusion: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The most frequent mistakes, as rows of a table.

    Args:
        confusion: [C, C] counts, true class by predicted class.
        class_names: C names.
    """
    counts = confusion * (1 - np.eye(len(class_names), dtype=int))
    totals = confusion.sum(axis=1)
    pairs = sorted(np.argwhere(counts > 0).tolist(), key=lambda p: (-counts[p[0], p[1]], p))
    return [
        {
            "label": class_names[true],
            "predicted": class_names[predicted],
            "count": int(counts[true, predicted]),
            "share": f"{100 * counts[true, predicted] / totals[true]:.0f} %",
        }
        for true, predicted in pairs[:N_CONFUSED]
    ]
