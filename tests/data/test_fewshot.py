from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmprompt.data.fewshot import draw_dataset, few_shot_train_val, sample_few_shot
from mmprompt.data.splits import Item, Splits
from mmprompt.errors import UserError


def items_of(labels: list[int], name: str = "p") -> list[Item]:
    return [Item(Path(f"/{name}{index}.png"), label) for index, label in enumerate(labels)]


def by_the_rule(train: list[Item], val: list[Item], shots: int, seed: int) -> tuple[list[Item], list[Item]]:
    """The rule as the papers' code has it, on the global stream, with plain loops and no code of ours."""
    state = random.getstate()
    random.seed(seed)
    results = []
    for part, k in ((train, shots), (val, 4 if shots > 4 else shots)):
        order: list[int] = []
        for item in part:
            if item.label not in order:
                order.append(item.label)
        picked: list[Item] = []
        for label in order:
            group = [item for item in part if item.label == label]
            picked.extend(group if len(group) < k else random.sample(group, k))
        results.append(picked)
    random.setstate(state)
    return results[0], results[1]


labels = st.lists(st.integers(0, 6), max_size=60)


@given(labels, labels, st.integers(1, 17), st.integers(0, 2**32))
def test_picks_are_those_of_the_written_rule(train: list[int], val: list[int], shots: int, seed: int) -> None:
    a, b = items_of(train, "train"), items_of(val, "val")
    picked_train, picked_val = few_shot_train_val(a, b, shots, seed)
    assert (list(picked_train), list(picked_val)) == by_the_rule(a, b, shots, seed)


def test_the_picks_of_seed_one_never_change() -> None:
    train = items_of([2] * 20 + [0] * 20 + [1] * 3)
    picked, _ = few_shot_train_val(train, [], 4, 1)
    # random.Random(1).sample(range(20), 4) twice, then the short class whole
    rng = random.Random(1)
    expected = rng.sample(range(20), 4) + [20 + i for i in rng.sample(range(20), 4)] + [40, 41, 42]
    assert [train.index(item) for item in picked] == expected
    assert expected[:4] == [4, 18, 2, 8]


def test_classes_come_in_order_of_first_appearance() -> None:
    picked = sample_few_shot(items_of([5, 3, 5, 3, 4]), 1, random.Random(0))
    assert [item.label for item in picked] == [5, 3, 4]


def test_a_short_class_uses_no_random_number() -> None:
    rng = random.Random(0)
    sample_few_shot(items_of([0, 0]), 3, rng)
    assert rng.random() == random.Random(0).random()


def test_validation_has_at_most_four_shots() -> None:
    _, val = few_shot_train_val(items_of([0] * 20), items_of([0] * 20), 16, 1)
    assert len(val) == 4


def test_the_global_random_state_is_left_alone() -> None:
    before = random.getstate()
    few_shot_train_val(items_of([0] * 9), items_of([1] * 9), 2, 3)
    assert random.getstate() == before


@pytest.mark.parametrize("shots", [0, -1])
def test_shots_below_one_are_refused(shots: int) -> None:
    with pytest.raises(UserError, match=f"shots is {shots}, but at least 1 picture a class is needed. Use --shots"):
        sample_few_shot(items_of([0]), shots, random.Random(0))


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(UserError, match="seed is -1, but 0 or more was expected"):
        few_shot_train_val([], [], 1, -1)


def splits_of(train: list[int]) -> Splits:
    names = tuple(f"kind {label}" for label in range(max(train) + 1))
    return Splits(
        Path("/"), names, tuple(items_of(train, "a")), tuple(items_of([0], "b")), tuple(items_of([0, 1], "c"))
    )


def test_the_test_part_stays_whole() -> None:
    splits = splits_of([0, 0, 1, 1])
    assert draw_dataset(splits, "toy", shots=1, seed=1).test == splits.test


def test_no_shots_means_all_and_no_seed() -> None:
    splits = splits_of([0, 0, 1, 1])
    dataset = draw_dataset(splits, "toy", shots=None, seed=1)
    assert (dataset.train, dataset.val, dataset.seed, dataset.notes) == (splits.train, splits.val, None, ())


def test_short_classes_are_named_once_and_not_all_of_them() -> None:
    dataset = draw_dataset(splits_of([*range(9), 0, 1]), "toy", shots=2, seed=1)
    assert dataset.notes == (
        "Classes with fewer than 2 training pictures, taken whole: kind 2, kind 3, kind 4, kind 5, kind 6 and 2 more.",
    )


def test_nothing_is_drawn_from_a_set_of_test_pictures_alone() -> None:
    splits = replace(splits_of([0, 1]), train=(), val=())
    dataset = draw_dataset(splits, "toy", shots=16, seed=1)
    assert (dataset.shots, dataset.seed, dataset.notes, dataset.test) == (None, None, (), splits.test)


def test_a_bad_template_is_refused_before_the_draw() -> None:
    with pytest.raises(UserError, match=r"exactly one \{\} is needed"):
        draw_dataset(splits_of([0, 1]), "toy", shots=1, seed=1, template="a photo")
