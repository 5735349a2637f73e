"""Questions in rows: nothing is lost, and each slot sees exactly its own past."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmprompt.models.decoder.packing import Packed, Question, pack, pack_bins

CPU = torch.device("cpu")
SLOTS = st.lists(st.sampled_from([-2, -1, 0, 5, 6]), min_size=1, max_size=5).map(tuple)
ANSWERS = st.lists(st.lists(st.sampled_from([0, 5, 6]), min_size=1, max_size=4).map(tuple), min_size=1, max_size=3)
QUESTIONS = st.lists(st.builds(Question, SLOTS, ANSWERS.map(tuple)), min_size=1, max_size=6)
SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def paths(question: Question) -> list[tuple[int, ...]]:
    """What is read before each token of each answer, in order."""
    return [question.slots + answer[:n] for answer in question.answers for n in range(len(answer))]


def seen(packed: Packed, row: int, column: int) -> list[tuple[int, int]]:
    """The places and slots that a slot sees, by place."""
    if packed.visible is None:
        columns = list(range(column + 1))
    else:
        columns = packed.visible[row, column].nonzero()[:, 0].tolist()
    return sorted((int(packed.places[row, other]), int(packed.slots[row, other])) for other in columns)


def check(questions: Sequence[Question], rows: Sequence[Sequence[int]], start: int) -> Packed:
    packed = pack(questions, rows, start, CPU)
    length = packed.slots.shape[1]
    read = packed.read.tolist()
    assert len(set(read)) == len(read), "each slot is read once"
    row_of = {item: number for number, row in enumerate(rows) for item in row}
    wanted = [(item, path) for item, question in enumerate(questions) for path in paths(question)]
    assert len(packed.at) == len(wanted)
    for (item, path), at in zip(wanted, packed.at.tolist(), strict=True):
        row, column = divmod(read[at], length)
        assert row == row_of[item]
        assert seen(packed, row, column) == list(enumerate(path, start))
    answers = [answer for question in questions for answer in question.answers]
    assert packed.tokens.tolist() == [token for answer in answers for token in answer]
    assert packed.lengths == tuple(map(len, answers))
    # no slot stands in a row twice, and none is there that nobody asked for
    needed = [
        {path[:n] for item in row for path in paths(questions[item]) for n in range(1, len(path) + 1)} for row in rows
    ]
    assert length == max(map(len, needed))
    for row, some in enumerate(needed):
        for column in range(len(some)):
            (*_, (place, slot)) = seen(packed, row, column)
            assert (place, slot) == (packed.places[row, column], packed.slots[row, column]), "it is the last it sees"
        assert {tuple(slot for _, slot in seen(packed, row, column)) for column in range(len(some))} == some
    return packed


@settings(max_examples=60)
@given(QUESTIONS, st.integers(0, 7), st.integers(1, 12))
def test_each_slot_sees_its_own_past_and_no_token_of_an_answer_is_lost(
    questions: list[Question], start: int, room: int
) -> None:
    check(questions, pack_bins([question.n_read for question in questions], room), start)


def test_a_text_that_shares_nothing_needs_no_mask() -> None:
    questions = [Question((5, 6, 7), ((8, 9),)), Question((5,), ((6,),))]
    packed = check(questions, [[0], [1]], 3)
    assert packed.visible is None
    assert packed.slots.tolist() == [[5, 6, 7, 8], [5, 0, 0, 0]]
    assert packed.places.tolist() == [[3, 4, 5, 6], [3, 0, 0, 0]]
    assert packed.read.tolist() == [2, 3, 4]


def test_what_texts_and_answers_of_a_row_begin_with_alike_is_read_once() -> None:
    questions = [Question((5, 6), ((7, 8), (7, 9))), Question((5, 7), ((8,),))]
    packed = check(questions, [[0, 1]], 0)
    assert packed.slots.tolist() == [[5, 6, 7, 7]]
    assert packed.places.tolist() == [[0, 1, 2, 1]]
    assert packed.at.tolist() == [0, 1, 0, 1, 2]


def test_slots_beside_the_texts_see_themselves_alone() -> None:
    packed = pack([Question((5, 6), ((7,), (8,))), Question((5,), ((6, 7), (8, 9)))], [[0], [1]], 0, CPU)
    assert packed.visible is not None
    assert packed.slots.tolist() == [[5, 6, 0], [5, 6, 8]]
    assert packed.visible[0, 2].tolist() == [False, False, True]


def test_the_last_token_of_an_answer_is_not_read() -> None:
    assert Question((5, 6), ((7, 8, 9), (7,))).n_read == 4


@given(SIZES, st.integers(1, 50))
def test_every_item_has_one_row_and_a_row_its_room(sizes: list[int], room: int) -> None:
    rows = pack_bins(sizes, room)
    assert sorted(item for row in rows for item in row) == list(range(len(sizes)))
    loads = [sum(sizes[item] for item in row) for row in rows]
    assert all(load <= room or len(row) == 1 for load, row in zip(loads, rows, strict=True))
    # no row could have gone into an earlier one
    assert sum(2 * load <= room for load in loads) <= 1


@pytest.mark.parametrize(("room", "rows"), [(1, [[1], [2], [0]]), (8, [[1], [2, 0]]), (100, [[1, 2, 0]])])
def test_rows_are_filled_to_the_last_slot_longest_first(room: int, rows: list[list[int]]) -> None:
    assert pack_bins([3, 9, 5], room) == rows
