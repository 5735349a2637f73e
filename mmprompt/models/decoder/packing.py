"""Questions to a decoder laid out in rows: several texts in one row, each of which sees its own past alone.

Texts of different lengths in a padded batch waste slots, and answers to the same text read it again. Packed, a row is a
forest of slots: what its texts or answers begin with alike is read once, and it holds as many texts as it has room for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import chain

import numpy as np
import torch
from torch import Tensor

ROW_SLOTS = 256
"""Slots of a row that several texts share; attention costs the square of it."""


@dataclass(frozen=True)
class Question:
    """What is read, and the answers whose tokens are to be predicted after it.

    Args:
        slots: token ids; the m-th vector of `lm.input` is written as -1 - m. One or more.
        answers: token ids of one or more answers, each of at least one token; vectors among them are written as in
            `slots`, are read like tokens, and are not predicted.
    """

    slots: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    @property
    def n_read(self) -> int:
        """Count the slots that are read: the last token of an answer is predicted and never read."""
        return len(self.slots) + sum(len(answer) - 1 for answer in self.answers)


@dataclass(frozen=True)
class Packed:
    """Questions in rows.

    Args:
        slots: [N, L] int64, as in `Question`; 0 where nothing stands.
        places: [N, L] int64, positions.
        visible: [N, L, L] bool, whether the first slot sees the second; None where all see all before them.
        used: [T] int64, the slots (flat) where something stands, in order.
        read: [S] int64, the slots (flat, row * L + column) that something is predicted after, each once.
        at: [K] int64, for each token of each answer in order the one of `read` that predicts it.
        tokens: [K] int64, these tokens.
        lengths: of each answer in order, in tokens that are predicted.
    """

    slots: Tensor
    places: Tensor
    visible: Tensor | None
    used: Tensor
    read: Tensor
    at: Tensor
    tokens: Tensor
    lengths: tuple[int, ...]


def pack_bins(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Decide which items share a row: first fit, longest first; one larger than `room` has a row of its own."""
    rows: list[list[int]] = []
    free: list[int] = []
    for item in sorted(range(len(sizes)), key=lambda item: -sizes[item]):
        row = next((row for row, left in enumerate(free) if sizes[item] <= left), None)
        if row is None:
            rows.append([])
            free.append(room)
            row = len(rows) - 1
        rows[row].append(item)
        free[row] -= sizes[item]
    return rows


def share_rows(questions: Sequence[Question]) -> list[list[int]]:
    """Decide which questions share a row of `ROW_SLOTS` slots, or of as many as the longest takes."""
    sizes = [question.n_read for question in questions]
    return pack_bins(sizes, max(ROW_SLOTS, *sizes))


@dataclass(frozen=True)
class _Row:
    """Some questions in one row.

    Attributes:
        slots: token ids; places: their positions; parents: the column before each, -1 at the beginning of a text.
        before: of each question in order, the columns that predict its answers' tokens.
    """

    slots: tuple[int, ...]
    places: tuple[int, ...]
    parents: tuple[int, ...]
    before: tuple[tuple[int, ...], ...]

    @property
    def visible(self) -> np.ndarray:
        """Build [L, L] bool: a slot sees itself and all that its parent sees."""
        visible = np.eye(len(self.slots), dtype=bool)
        for column, parent in enumerate(self.parents):
            if parent >= 0:
                visible[column] |= visible[parent]
        return visible

    @property
    def is_chain(self) -> bool:
        """Return whether every slot stands behind the one before it."""
        return self.parents == tuple(range(-1, len(self.slots) - 1))


@lru_cache(maxsize=1024)
def _row(questions: tuple[Question, ...], start: int) -> _Row:
    """Lay some questions out; a slot is known by the slot before it and its token, so equal beginnings are shared."""
    columns: dict[tuple[int, int], int] = {}
    parents: list[int] = []
    places: list[int] = []

    def put(token: int, parent: int) -> int:
        """Return the column of a token behind another slot."""
        column = columns.setdefault((parent, token), len(parents))
        if column == len(parents):
            parents.append(parent)
            places.append(start if parent < 0 else places[parent] + 1)
        return column

    before = []
    for question in questions:
        last = reduce(lambda column, token: put(token, column), question.slots, -1)
        mine: list[int] = []
        for answer in question.answers:
            mine.append(last)
            for token in answer[:-1]:
                mine.append(put(token, mine[-1]))
        before.append(tuple(mine))
    return _Row(tuple(token for _, token in columns), tuple(places), tuple(parents), tuple(before))


def pack(questions: Sequence[Question], rows: Sequence[Sequence[int]], start: int, device: torch.device) -> Packed:
    """Lay questions out in rows, every question once; `start` slots were read before each."""
    built = [_row(tuple(questions[item] for item in row), start) for row in rows]
    length = max(len(row.slots) for row in built)
    where: list[list[int]] = [[] for _ in questions]  # of each question, the flat slots before its answers' tokens
    for number, (row, laid) in enumerate(zip(rows, built, strict=True)):
        for item, columns in zip(row, laid.before, strict=True):
            where[item] = [number * length + column for column in columns]
    answers = [answer for question in questions for answer in question.answers]
    pairs = zip(chain.from_iterable(where), chain.from_iterable(answers), strict=True)
    asked = [(place, token) for place, token in pairs if token >= 0]
    read = {place: n for n, place in enumerate(dict.fromkeys(place for place, _ in asked))}

    def padded(values: Sequence[tuple[int, ...]]) -> Tensor:
        return torch.tensor([row + (0,) * (length - len(row)) for row in values], device=device)

    visible = None
    if not all(row.is_chain for row in built):
        visible = torch.eye(length, dtype=torch.bool).repeat(len(built), 1, 1)
        for mine, laid in zip(visible, built, strict=True):
            mine[: len(laid.slots), : len(laid.slots)] = torch.from_numpy(laid.visible)
        visible = visible.to(device)
    return Packed(
        padded([row.slots for row in built]),
        padded([row.places for row in built]),
        visible,
        torch.tensor([n * length + c for n, row in enumerate(built) for c in range(len(row.slots))], device=device),
        torch.tensor(list(read), device=device),
        torch.tensor([read[place] for place, _ in asked], device=device),
        torch.tensor([token for _, token in asked], device=device),
        tuple(sum(token >= 0 for token in answer) for answer in answers),
    )
