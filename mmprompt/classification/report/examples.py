"""Test images to show in a report: which ones, shrunk, what they were taken for, and the most frequent mistakes."""

from __future__ import annotations

import random
from collections import Counter
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

N_EXAMPLES = 8
THUMBNAIL = 240
N_CONFUSED = 10


@dataclass(frozen=True)
class Example:
    """A test image to show: its middle square, already shrunk."""

    image: Image.Image
    label: str
    predicted: str
    probability: str


def choose_examples(shown: Sequence[Shown], class_names: Sequence[str]) -> tuple[list[Example], list[Example], int]:
    """Return images it got right (random, class after class) and wrong (surest first), and how many files were gone.

    Args:
        shown: the test images.
        class_names: C names.
    """
    shuffled = random.Random(0).sample(shown, len(shown))
    right = one_class_after_another([s for s in shuffled if s.label == s.predicted])
    surest = sorted((s for s in shown if s.label != s.predicted), key=lambda s: -s.probability)
    wrong = [s for i, s in enumerate(surest) if sum(o.label == s.label for o in surest[:i]) < 2]
    chosen_right, gone_right = load_examples(right, class_names)
    chosen_wrong, gone_wrong = load_examples(wrong, class_names)
    return chosen_right, chosen_wrong, gone_right + gone_wrong


def one_class_after_another(shown: Sequence[Shown]) -> list[Shown]:
    """Return the same images, the first of every class before the second of any."""
    n_before: Counter[int] = Counter()
    turns = []
    for image in shown:
        turns.append(n_before[image.label])
        n_before[image.label] += 1
    return [image for _, image in sorted(zip(turns, shown, strict=True), key=lambda pair: pair[0])]


def load_examples(shown: Sequence[Shown], class_names: Sequence[str]) -> tuple[list[Example], int]:
    """Return the first images that can still be read, and how many could not."""
    examples: list[Example] = []
    n_missing = 0
    for answer in shown:
        if len(examples) == N_EXAMPLES or n_missing == N_EXAMPLES:
            break
        try:
            image = read_image(answer.path)
        except UserError:
            n_missing += 1
            continue
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        small = square.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        names = (class_names[answer.label], class_names[answer.predicted])
        examples.append(Example(small, *names, f"{100 * answer.probability:.0f} %"))
    return examples, n_missing


def draw_sheets(right: Sequence[Example], wrong: Sequence[Example]) -> dict[str, bytes]:
    """Return the examples as sheets, PNG bytes by file name."""
    sheets = {}
    for name, examples in (("examples_right", right), ("examples_wrong", wrong)):
        captions = [
            f"{e.predicted}, {e.probability}" + (f"\nreally {e.label}" if e.predicted != e.label else "")
            for e in examples
        ]
        if examples:
            sheets[name] = figures.draw_examples([e.image for e in examples], captions, LIGHT)
    return sheets


def most_confused(confusion: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the most frequent mistakes, as rows of a table.

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
