"""Whether captions keep to a focus, and whether what they name is there.

A judge tells what a caption names (`judges`). Every number has the human ceiling beside it: each reference of an image,
scored as if a captioner had written it, against the other references of that image. Nothing here chooses a prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

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
AGREED = 2
"""References that must name an item for it to count as agreed on."""


@dataclass(frozen=True)
class Tally:
    """A measure as a ratio of two sums over captions, so that captions can be resampled.

    Args:
        parts, wholes: [N] numbers of each caption.
    """

    parts: tuple[float, ...]
    wholes: tuple[float, ...]

    @property
    def value(self) -> float | None:
        """The sum of the parts over that of the wholes; None where there is nothing to divide by."""
        whole = sum(self.wholes)
        return sum(self.parts) / whole if whole else None


@dataclass(frozen=True)
class FocusScores:
    """How well captions of N images keep to one focus.

    The measures, by name:
    `adherence`: mean over captions of the share of named items that belong to the focus, 0 for a caption naming none.
    `density`: items of the focus a caption. `mention_rate`: share of captions that name at least one.
    `grounded_precision`: share of the named items of the focus that a reference of the image names too;
    `grounded_precision_all`: the same over items of every focus.
    `recall`: share of the items of the focus in an image's references that its caption names; `recall_agreed`: of those
    that two or more references name. `mean_length`: words a caption.

    Args:
        focus: its name.
        judge: who told what captions name.
        image_ids: [N] of the images.
        tallies: by measure.
        distinct_ratio: different captions over captions, 0..1.
        human: by measure, and `distinct_ratio`, what people reach; None where no image has two references.
        n_human: references that the ceiling is measured on.
        notes: what a careful reader should know, one sentence each.
    """

    focus: str
    judge: str
    image_ids: tuple[str, ...]
    tallies: Mapping[str, Tally]
    distinct_ratio: float
    human: Mapping[str, float | None]
    n_human: int
    notes: tuple[str, ...]

    @cached_property
    def values(self) -> dict[str, float | None]:
        """Every measure, and `distinct_ratio`; None where nothing was named."""
        return {name: tally.value for name, tally in self.tallies.items()} | {"distinct_ratio": self.distinct_ratio}

    def to_dict(self) -> dict[str, Any]:
        """The measures with their human ceilings, ready for JSON."""
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
    """Adherence of the captions of every prompt to every focus.

    Args:
        prompts: [P] their names; those that are a focus's name are meant to keep to it.
        focuses: [F] names.
        values: [P, F] adherence, 0..1; a row sums to the share of captions that name anything.
    """

    prompts: tuple[str, ...]
    focuses: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]

    @property
    def is_diagonal(self) -> bool:
        """Whether the prompt of every focus keeps to it more than to any other, and more than any other prompt does."""
        rows = {prompt: row for prompt, row in zip(self.prompts, self.values, strict=True) if prompt in self.focuses}
        for column, focus in enumerate(self.focuses):
            if focus not in rows:
                continue
            own = rows[focus][column]
            rivals = [value for place, value in enumerate(rows[focus]) if place != column]
            rivals += [row[column] for prompt, row in zip(self.prompts, self.values, strict=True) if prompt != focus]
            if any(rival >= own for rival in rivals):
                return False
        return bool(rows)

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "prompts": list(self.prompts),
            "focuses": list(self.focuses),
            "adherence": [list(row) for row in self.values],
            "is_diagonal": self.is_diagonal,
        }


@dataclass(frozen=True)
class Lift:
    """What one captioner gains over another on the same images.

    Args:
        focus, measure: what was compared.
        difference: of the two values, the first minus the second.
        interval: its 95 % interval.
        n_images: how many images both captioned.
    """

    focus: str
    measure: str
    difference: float
    interval: tuple[float, float]
    n_images: int

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "focus": self.focus,
            "measure": self.measure,
            "difference": self.difference,
            "interval": list(self.interval),
            "n_images": self.n_images,
        }


def score_focus(captions: Mapping[str, str], items: Iterable[CaptionItem], focus: str, judge: Judge) -> FocusScores:
    """How well captions keep to a focus, with the human ceiling.

    Args:
        captions: one of each image, by its id; at least one.
        items: these images with their references, perhaps among others.
        focus: one that the judge can tell of.
        judge: tells what captions and references name.
    Raises:
        UserError: there is no caption, an image is unknown or has no reference, or the judge does not know the focus.
    """
    _refuse_focus(focus, judge)
    known = {item.image_id: item for item in items}
    _refuse_images(captions, known)
    memory = _Memory(judge)
    rows = []
    for image_id, caption in captions.items():
        references = [memory.named(text) for text in known[image_id].of(None)]
        rows.append(_counts(caption, memory.named(caption), references, focus))
    human, firsts, source = _human_rows([known[image_id] for image_id in captions], focus, memory)
    ceiling = {name: tally.value for name, tally in _tallies(human).items()}
    return FocusScores(
        focus,
        judge.name,
        tuple(captions),
        _tallies(rows),
        distinct_ratio(captions.values()),
        ceiling | {"distinct_ratio": distinct_ratio(firsts) if firsts else None},
        len(human),
        (*judge.notes, *source),
    )


def confusion(
    captions_by_prompt: Mapping[str, Mapping[str, str]], judge: Judge, focuses: Sequence[str] | None = None
) -> Confusion:
    """Adherence of every prompt's captions to every focus.

    Args:
        captions_by_prompt: by the name of the prompt, one caption of each image; at least one caption each.
        judge: tells what captions name.
        focuses: the columns; by default all that the judge can tell of. Shares are of the items of all of the judge's.
    Raises:
        UserError: a prompt has no caption, or the judge does not know a focus.
    """
    columns = tuple(judge.focuses if focuses is None else focuses)
    for focus in columns:
        _refuse_focus(focus, judge)
    memory = _Memory(judge)
    values = []
    for prompt, captions in captions_by_prompt.items():
        if not captions:
            raise UserError(f"the prompt {prompt!r} has no caption to judge. Write some first.")
        named = [memory.named(caption) for caption in captions.values()]
        values.append(tuple(sum(_share(one, focus) for one in named) / len(named) for focus in columns))
    return Confusion(tuple(captions_by_prompt), columns, tuple(values))


def lift(a: FocusScores, b: FocusScores, measure: str = "adherence", seed: int = 0) -> Lift:
    """The difference of two captioners in one measure, with its 95 % paired bootstrap interval over images.

    The same images are drawn for both sides, so what makes an image easy cancels (Efron and Tibshirani 1993).

    Args:
        a: scores of the one captioner.
        b: of the other, for the same focus on the same images, by the same judge.
        measure: one of `MEASURES`.
        seed: of the resampling.
    Raises:
        UserError: focus, judge or images differ, there is no such measure, or one side has no value of it.
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
    sides = _sums(a, measure, a.image_ids), _sums(b, measure, a.image_ids)
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


def _sums(scores: FocusScores, measure: str, image_ids: Sequence[str]) -> np.ndarray:
    """Parts and wholes [2, N] of a measure, in the order of some image ids."""
    tally = scores.tallies[measure]
    place = {image_id: index for index, image_id in enumerate(scores.image_ids)}
    order = [place[image_id] for image_id in image_ids]
    return np.array([tally.parts, tally.wholes], dtype=float)[:, order]


class _Memory:
    """What a judge said of each text, asked once."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._said: dict[str, Named] = {}

    def named(self, text: str) -> Named:
        if text not in self._said:
            self._said[text] = self._judge.items(text)
        return self._said[text]


_Row = dict[str, tuple[float, float]]


def _counts(caption: str, named: Named, references: Sequence[Named], focus: str) -> _Row:
    """Part and whole of every measure for one caption."""
    votes = [sum(item in reference[focus] for reference in references) for item in _union(references, focus)]
    agreed = {item for item, n in zip(_union(references, focus), votes, strict=True) if n >= AGREED}
    grounded = {name: items & set(_union(references, name)) for name, items in named.items()}
    own, right = named[focus], grounded[focus]
    return {
        "adherence": (_share(named, focus), 1),
        "density": (len(own), 1),
        "mention_rate": (bool(own), 1),
        "grounded_precision": (len(right), len(own)),
        "grounded_precision_all": (_total(grounded), _total(named)),
        "recall": (len(right), len(votes)),
        "recall_agreed": (len(own & agreed), len(agreed)),
        "mean_length": (len(tokenize(caption)), 1),
    }


def _union(references: Sequence[Named], focus: str) -> list[str]:
    return sorted(set().union(*(reference[focus] for reference in references)))


def _total(named: Mapping[str, Iterable[str]]) -> int:
    return sum(len(list(items)) for items in named.values())


def _share(named: Named, focus: str) -> float:
    total = _total(named)
    return len(named[focus]) / total if total else 0.0


def _tallies(rows: Sequence[_Row]) -> dict[str, Tally]:
    return {
        name: Tally(tuple(float(row[name][0]) for row in rows), tuple(float(row[name][1]) for row in rows))
        for name in MEASURES
    }


def _human_rows(
    items: Sequence[CaptionItem], focus: str, memory: _Memory
) -> tuple[list[_Row], list[str], tuple[str, ...]]:
    """Each reference against the others of its image, the first reference of each image, and what these are.

    Captions of the focus are the ceiling where there are any, else all references are. A caption that is the only one
    of its image is left out.
    """
    has_focus = any(item.of(focus) for item in items)
    rows, firsts = [], []
    for item in items:
        ceiling = tuple(dict.fromkeys(item.of(focus))) if has_focus else item.of(None)
        for index, text in enumerate(ceiling):
            others = [memory.named(other) for other in item.of(None) if other != text]
            if others:
                rows.append(_counts(text, memory.named(text), others, focus))
                firsts += [text] if index == 0 else []
    if not rows:
        return rows, firsts, ("There is no human ceiling: no image has two different references.",)
    if not has_focus:
        note = f"The human ceiling is of references of any focus, for there are none of {focus}: people reach more."
        return rows, firsts, (note,)
    return rows, firsts, ()


def _refuse_focus(focus: str, judge: Judge) -> None:
    if focus not in judge.focuses:
        raise unknown_name("focus", focus, judge.focuses, f"These are what the {judge.name} can tell of.")


def _refuse_images(captions: Mapping[str, str], known: Mapping[str, CaptionItem]) -> None:
    if not captions:
        raise UserError("there is no caption to judge. Write some first.")
    unknown = [image_id for image_id in captions if image_id not in known or not known[image_id].of(None)]
    if unknown:
        raise UserError(f"no reference for the images {shortened(unknown)}. Give the data that they are from.")
