"""Whether captions keep to a focus, and whether what they name is there; a judge tells what that is.

Every number has the human ceiling beside it: each reference of an image, scored as if a captioner had written it,
against the other references of that image. Nothing here chooses a prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

import mmprompt.display as display
from mmprompt.captioning.data import CaptionItem
from mmprompt.captioning.metrics.caption_metrics import distinct_ratio
from mmprompt.captioning.metrics.judges import Judge, Named
from mmprompt.captioning.metrics.tokens import tokenize
from mmprompt.core.metrics import N_RESAMPLES
from mmprompt.data.class_names import shortened
from mmprompt.errors import UserError, unknown_name

MEASURES = (
    "adherence",
    "density",
    "mention_rate",
    "grounded_precision",
    "grounded_precision_all",
    "recall",
    "recall_agreed",
    "mean_length",
)
OF_THINGS = ("grounded_precision", "grounded_precision_all", "recall", "recall_agreed")
"""Measures of what is named and may be in an image or not."""
AGREED = 2
"""References that must name an item for it to count as agreed on."""


@dataclass(frozen=True)
class FocusScores:
    """How well captions of N images keep to one focus.

    The measures, by name, as sums of parts and wholes [2, N] in `counts`, so that captions can be resampled:
    `adherence`: mean over captions of the share of named items that belong to the focus, 0 for a caption naming none.
    `density`: items of the focus a caption. `mention_rate`: share of captions that name at least one.
    `grounded_precision`: share of the named items of the focus that a reference of the image names too;
    `grounded_precision_all`: the same over items of every focus.
    `recall`: share of the items of the focus in an image's references that its caption names; `recall_agreed`: of those
    that two or more references name. `mean_length`: words a caption. `distinct_ratio`: share of different captions.

    `human` is by measure what people reach, None where no image has two references; it is measured on `n_human`.
    """

    focus: str
    judge: str
    image_ids: tuple[str, ...]
    counts: Mapping[str, np.ndarray]
    distinct_ratio: float
    human: Mapping[str, float | None]
    n_human: int
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name} {value:.3g}" for name, value in self._named().items())
        return f"<FocusScores: {self.focus}, {len(self.image_ids)} images, {numbers}>"

    def _repr_html_(self) -> str:
        rows = [
            (name, f"{value:.3g}", "" if self.human.get(name) is None else f"{self.human[name]:.3g}")
            for name, value in self._named().items()
        ]
        title = f"{self.focus}: captions of {len(self.image_ids)} images, judged by the {self.judge}"
        return display.section(title, display.table(("", "captions", "people"), rows))

    def _named(self) -> dict[str, float]:
        return {name: value for name, value in self.values.items() if value is not None}

    @cached_property
    def values(self) -> dict[str, float | None]:
        """Return every measure, and `distinct_ratio`; None where nothing was named."""
        return {name: _ratio(counts) for name, counts in self.counts.items()} | {"distinct_ratio": self.distinct_ratio}

    def to_dict(self) -> dict[str, Any]:
        """Return the measures with their human ceilings, ready for JSON."""
        return {
            "focus": self.focus,
            "judge": self.judge,
            "n_images": len(self.image_ids),
            "values": self.values,
            "human": dict(self.human),
            "n_human": self.n_human,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Confusion:
    """Adherence [P, F] of the captions of every prompt to every focus, 0..1.

    A row sums to the share of captions that name anything; prompts of a focus's name are meant to keep to it.
    """

    prompts: tuple[str, ...]
    focuses: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]

    @property
    def is_diagonal(self) -> bool:
        """Whether the prompt of every focus keeps to it more than to any other, and more than any other prompt does."""
        rows = dict(zip(self.prompts, self.values, strict=True))
        own = {focus: column for column, focus in enumerate(self.focuses) if focus in rows}
        for focus, column in own.items():
            rivals = [value for place, value in enumerate(rows[focus]) if place != column]
            rivals += [row[column] for prompt, row in rows.items() if prompt != focus]
            if any(rival >= rows[focus][column] for rival in rivals):
                return False
        return bool(own)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return {
            "prompts": list(self.prompts),
            "focuses": list(self.focuses),
            "adherence": [list(row) for row in self.values],
            "is_diagonal": self.is_diagonal,
        }


@dataclass(frozen=True)
class Lift:
    """What one captioner gains over another on the same images in one measure, with the 95 % interval."""

    focus: str
    measure: str
    difference: float
    interval: tuple[float, float]
    n_images: int


def score_focus(captions: Mapping[str, str], items: Iterable[CaptionItem], focus: str, judge: Judge) -> FocusScores:
    """Measure how well captions, one of each image by its id, keep to a focus, with the human ceiling.

    The items are these images with their references, perhaps among others.
    """
    if focus not in judge.focuses:
        raise unknown_name("focus", focus, judge.focuses, f"These are what the {judge.name} can tell of.")
    if not captions:
        raise UserError("there is no caption to judge. Write some first.")
    known = {item.image_id: item for item in items}
    unknown = [image_id for image_id in captions if image_id not in known or not known[image_id].of(None)]
    if unknown:
        raise UserError(f"no reference for the images {shortened(unknown)}. Give the data that they are from.")
    name_items = cache(judge.items)
    rows = []
    for image_id, caption in captions.items():
        references = [name_items(text) for text in known[image_id].of(None)]
        rows.append(_counts(caption, name_items(caption), references, focus))
    own_items = [known[image_id] for image_id in captions]
    human, firsts, notes = _score_references(own_items, focus, name_items, judge.names_things)
    counts, ceiling_counts = _by_measure(rows), _by_measure(human)
    for name in () if judge.names_things else OF_THINGS:
        counts[name], ceiling_counts[name] = (np.zeros_like(some[name]) for some in (counts, ceiling_counts))
    ceiling = {name: _ratio(some) for name, some in ceiling_counts.items()}
    return FocusScores(
        focus,
        judge.name,
        tuple(captions),
        counts,
        distinct_ratio(captions.values()),
        ceiling | {"distinct_ratio": distinct_ratio(firsts) if firsts else None},
        len(human),
        (*judge.notes, *notes),
    )


def confusion(captions_by_prompt: Mapping[str, Mapping[str, str]], judge: Judge) -> Confusion:
    """Measure the adherence of every prompt's captions, one of each image, to every focus of the judge."""
    name_items = cache(judge.items)
    values = []
    for prompt, captions in captions_by_prompt.items():
        if not captions:
            raise UserError(f"the prompt {prompt!r} has no caption to judge. Write some first.")
        named = [name_items(caption) for caption in captions.values()]
        values.append(tuple(sum(_share(items, focus) for items in named) / len(named) for focus in judge.focuses))
    return Confusion(tuple(captions_by_prompt), judge.focuses, tuple(values))


def lift(a: FocusScores, b: FocusScores, measure: str = "adherence", seed: int = 0) -> Lift:
    """Return the difference of two captioners in one measure, with its 95 % paired bootstrap interval over images.

    The same images are drawn for both sides, so what makes an image easy cancels (Efron and Tibshirani 1993). Both must
    be scores for the same focus on the same images, by the same judge.
    """
    if measure not in MEASURES:
        raise unknown_name("measure", measure, MEASURES)
    if (a.focus, a.judge) != (b.focus, b.judge):
        raise UserError(
            f"scores of {a.focus} by the {a.judge} are compared with those of {b.focus} by the {b.judge}. "
            "Compare the same focus and judge."
        )
    if set(a.image_ids) != set(b.image_ids):
        raise UserError("the two sets of captions are of other images. Compare captions of the same images.")
    places = {image_id: place for place, image_id in enumerate(b.image_ids)}
    sides = a.counts[measure], b.counts[measure][:, [places[image_id] for image_id in a.image_ids]]
    values = [side.sum(1) for side in sides]
    if not all(whole for _, whole in values):
        raise UserError(f"one of the two captioners has no {measure}, for it names no item. Compare another measure.")
    n_images = len(a.image_ids)
    rng = np.random.default_rng(seed)
    differences = []
    for _ in range(N_RESAMPLES):
        drawn = np.bincount(rng.integers(n_images, size=n_images), minlength=n_images)  # how often each was drawn
        (part, whole), (other_part, other_whole) = (side @ drawn for side in sides)
        if whole and other_whole:
            differences.append(part / whole - other_part / other_whole)
    low, high = np.percentile(differences, [2.5, 97.5])
    difference = values[0][0] / values[0][1] - values[1][0] / values[1][1]
    return Lift(a.focus, measure, float(difference), (float(low), float(high)), n_images)


_Row = dict[str, tuple[float, float]]
"""Part and whole of every measure for one caption."""


def _counts(caption: str, named: Named, references: Sequence[Named], focus: str) -> _Row:
    votes = Counter(item for reference in references for item in reference[focus])
    agreed = {item for item, n_votes in votes.items() if n_votes >= AGREED}
    grounded = {
        name: {item for item in items if any(item in reference[name] for reference in references)}
        for name, items in named.items()
    }
    own, right = named[focus], grounded[focus]
    return {
        "adherence": (_share(named, focus), 1),
        "density": (len(own), 1),
        "mention_rate": (bool(own), 1),
        "grounded_precision": (len(right), len(own)),
        "grounded_precision_all": (sum(map(len, grounded.values())), sum(map(len, named.values()))),
        "recall": (len(right), len(votes)),
        "recall_agreed": (len(own & agreed), len(agreed)),
        "mean_length": (len(tokenize(caption)), 1),
    }


def _share(named: Named, focus: str) -> float:
    return len(named[focus]) / (sum(map(len, named.values())) or 1)


def _by_measure(rows: Sequence[_Row]) -> dict[str, np.ndarray]:
    return {name: np.array([row[name] for row in rows], dtype=float).reshape(-1, 2).T for name in MEASURES}


def _ratio(counts: np.ndarray) -> float | None:
    part, whole = counts.sum(1).tolist()
    return part / whole if whole else None


def _score_references(
    items: Sequence[CaptionItem], focus: str, name_items: Callable[[str], Named], needs_others: bool
) -> tuple[list[_Row], list[str], tuple[str, ...]]:
    """Score each reference against the others of its image; return the first reference of each image and notes, too.

    Captions of the focus are the ceiling where there are any, else all references are. Where it is asked what the
    others name, a caption that is the only one of its image is left out.
    """
    has_focus = any(item.of(focus) for item in items)
    rows, firsts = [], []
    for item in items:
        ceiling = tuple(dict.fromkeys(item.of(focus))) if has_focus else item.of(None)
        for index, text in enumerate(ceiling):
            others = [name_items(other) for other in item.of(None) if other != text]
            if others or not needs_others:
                rows.append(_counts(text, name_items(text), others, focus))
                firsts += [text] if index == 0 else []
    notes = []
    if not rows:
        notes.append("There is no human ceiling: no image has two different references.")
    elif not has_focus:
        notes.append(
            f"The human ceiling is of references of any focus, for there are none of {focus}: people reach more."
        )
    return rows, firsts, tuple(notes)
