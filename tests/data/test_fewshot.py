from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmprompt.data.fewshot import base_new, draw_dataset, draw_shots, sample_groups
from mmprompt.data.splits import Item, Splits, by_label
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


def drawn(train: list[Item], val: list[Item], shots: int, seed: int) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    names = tuple(f"class {label}" for label in range(7))
    return draw_shots(Splits(Path("/"), names, tuple(train), tuple(val), ()), shots, seed)


@given(labels, labels, st.integers(1, 17), st.integers(0, 2**32))
def test_picks_are_those_of_the_written_rule(train: list[int], val: list[int], shots: int, seed: int) -> None:
    a, b = items_of(train, "train"), items_of(val, "val")
    picked_train, picked_val = drawn(a, b, shots, seed)
    assert (list(picked_train), list(picked_val)) == by_the_rule(a, b, shots, seed)


def test_the_picks_of_seed_one_never_change() -> None:
    train = items_of([2] * 20 + [0] * 20 + [1] * 3)
    picked, _ = drawn(train, [], 4, 1)
    # random.Random(1).sample(range(20), 4) twice, then the short class whole
    rng = random.Random(1)
    expected = rng.sample(range(20), 4) + [20 + i for i in rng.sample(range(20), 4)] + [40, 41, 42]
    assert [train.index(item) for item in picked] == expected
    assert expected[:4] == [4, 18, 2, 8]


def test_classes_come_in_order_of_first_appearance() -> None:
    picked = drawn(items_of([5, 3, 5, 3, 4]), [], 1, 0)[0]
    assert [item.label for item in picked] == [5, 3, 4]


def test_a_short_class_uses_no_random_number() -> None:
    rng = random.Random(0)
    sample_groups(by_label(items_of([0, 0])).values(), 3, rng)
    assert rng.random() == random.Random(0).random()


def test_validation_has_at_most_four_shots() -> None:
    _, val = drawn(items_of([0] * 20), items_of([0] * 20), 16, 1)
    assert len(val) == 4


def test_the_global_random_state_is_left_alone() -> None:
    before = random.getstate()
    drawn(items_of([0] * 9), items_of([1] * 9), 2, 3)
    assert random.getstate() == before


@pytest.mark.parametrize("shots", [0, -1])
def test_shots_below_one_are_refused(shots: int) -> None:
    with pytest.raises(UserError, match=f"shots is {shots}, but at least 1 image a class is needed. Use `shots=1`"):
        drawn(items_of([0]), [], shots, 0)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(UserError, match="seed is -1, but 0 or more was expected"):
        drawn([], [], 1, -1)


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
        "Classes with fewer than 2 training images, taken whole: kind 2, kind 3, kind 4, kind 5, kind 6 and 2 more.",
    )


def test_nothing_is_drawn_from_a_set_of_test_pictures_alone() -> None:
    splits = replace(splits_of([0, 1]), train=(), val=())
    dataset = draw_dataset(splits, "toy", shots=16, seed=1)
    assert (dataset.shots, dataset.seed, dataset.notes, dataset.test) == (None, None, (), splits.test)


def test_a_bad_template_is_refused_before_the_draw() -> None:
    with pytest.raises(UserError, match=r"exactly one \{\} is needed"):
        draw_dataset(splits_of([0, 1]), "toy", shots=1, seed=1, template="a photo")


def clip_lora_by_the_rule(train: list[Item], val: list[Item], shots: int, seed: int) -> tuple[list[Item], list[Item]]:
    """CLIP-LoRA's order on the global stream: val first, then train, short classes drawn with repetition."""
    state = random.getstate()
    random.seed(seed)
    results = []
    for part, k in ((val, min(shots, 4)), (train, shots)):
        groups: dict[int, list[Item]] = {}
        for item in part:
            groups[item.label] = [*groups.get(item.label, []), item]
        picked: list[Item] = []
        for group in groups.values():
            picked += random.sample(group, k) if len(group) >= k else random.choices(group, k=k)
        results.append(picked)
    random.setstate(state)
    return results[1], results[0]


some_labels = st.lists(st.integers(0, 6), min_size=1, max_size=60)


@given(some_labels, some_labels, st.integers(1, 17), st.integers(0, 2**32))
def test_clip_lora_draws_validation_first_and_fills_short_classes_up(
    train: list[int], val: list[int], shots: int, seed: int
) -> None:
    a, b = items_of(train, "train"), items_of(val, "val")
    picked = draw_shots(splits_from(a, b), shots, seed, "clip-lora")
    assert (list(picked[0]), list(picked[1])) == clip_lora_by_the_rule(a, b, shots, seed)


def splits_from(train: list[Item], val: list[Item]) -> Splits:
    names = tuple(f"class {label}" for label in range(7))
    return Splits(Path("/"), names, tuple(train), tuple(val), ())


@given(st.permutations([label for label in range(4) for _ in range(9)]), st.integers(1, 5), st.integers(0, 2**32))
def test_clip_lora_without_a_validation_part_divides_one_draw(labels: list[int], shots: int, seed: int) -> None:
    items = items_of(labels)
    train, val = draw_shots(splits_from(items, []), shots, seed, "clip-lora")
    rng, expected = random.Random(seed), ([], [])
    for label in dict.fromkeys(labels):
        both = rng.sample([item for item in items if item.label == label], shots + min(shots, 4))
        expected[0].extend(both[:shots])
        expected[1].extend(both[shots:])
    assert (list(train), list(val)) == expected


def test_clip_lora_without_validation_refuses_a_class_that_is_too_small() -> None:
    with pytest.raises(UserError, match=r"the class 'class 1' has 3 training images, .* draws 2 \+ 2"):
        draw_shots(splits_from(items_of([0] * 9 + [1] * 3), []), 2, 1, "clip-lora")


def test_tip_adapter_draws_what_coop_draws_and_keeps_the_validation_part_whole() -> None:
    train, val = items_of([3, 1, 2] * 8), items_of([1, 2, 3] * 3, "val")
    picked = draw_shots(splits_from(train, val), 4, 1, "tip-adapter")
    assert picked == (drawn(train, val, 4, 1)[0], tuple(val))


@given(some_labels, st.integers(1, 17), st.integers(0, 2**32))
def test_tip_adapter_fills_short_classes_up(labels: list[int], shots: int, seed: int) -> None:
    items, rng = items_of(labels), random.Random(seed)
    expected: list[Item] = []
    for label in dict.fromkeys(labels):
        group = [item for item in items if item.label == label]
        expected += rng.sample(group, shots) if len(group) >= shots else rng.choices(group, k=shots)
    assert draw_shots(splits_from(items, []), shots, seed, "tip-adapter") == (tuple(expected), ())


def test_an_unknown_protocol_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        UserError, match="there is no protocol named 'clip-laro'. Did you mean 'clip-lora'".replace(".", r"\.")
    ):
        draw_shots(splits_from(items_of([0, 1]), []), 1, 1, "clip-laro")


def test_a_protocol_is_of_a_draw_and_refused_if_unknown_also_without_one() -> None:
    whole = splits_from(items_of([0] * 3 + [1] * 3), items_of([0, 1]))
    assert draw_dataset(whole, "toy", None, 1, rule="clip-lora").protocol == "coop"
    with pytest.raises(UserError, match="there is no protocol named 'nonsense'"):
        draw_dataset(whole, "toy", None, 1, rule="nonsense")


def test_classes_filled_up_are_said() -> None:
    drawn = draw_dataset(splits_from(items_of([0] * 9 + [1] * 3), items_of([0, 1])), "toy", 5, 1, rule="clip-lora")
    assert drawn.protocol == "clip-lora"
    assert len(drawn.train) == 10
    assert any("filled up by repeating some: class 1" in note for note in drawn.notes)


def base_new_by_the_rule(items: list[Item], n_classes: int) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """Dassl's subsample of classes, spelled out: sorted labels, first half rounded up, both counted from 0."""
    half = (n_classes + 1) // 2
    base = [(item.path, item.label) for item in items if item.label < half]
    return base, [(item.path, item.label - half) for item in items if item.label >= half]


@given(st.integers(4, 9), st.integers(1, 5), st.integers(0, 99), st.randoms(use_true_random=False))
def test_base_and_new_are_filtered_after_the_draw(n_classes: int, shots: int, seed: int, rng: random.Random) -> None:
    labels = [label for label in range(n_classes) for _ in range(rng.randint(1, 8))]
    rng.shuffle(labels)
    train, val, test = items_of(labels), items_of(labels, "val"), items_of(labels, "test")
    names = tuple(f"class {label}" for label in range(n_classes))
    dataset = draw_dataset(Splits(Path("/"), names, tuple(train), tuple(val), tuple(test)), "toy", shots, seed)
    base, new = base_new(dataset)
    drawn = by_the_rule(train, val, shots, seed)
    for part, picked in (("train", drawn[0]), ("val", drawn[1]), ("test", test)):
        expected = base_new_by_the_rule(picked, n_classes)
        assert [(item.path, item.label) for item in base.items(part)] == expected[0]
        assert [(item.path, item.label) for item in new.items(part)] == expected[1]
    assert base.class_names + new.class_names == names
    assert len(base.class_names) - len(new.class_names) in (0, 1)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_base_to_new_needs_two_classes_on_both_sides(n_classes: int) -> None:
    labels = [label for label in range(n_classes) for _ in range(3)]
    names = tuple(f"class {label}" for label in range(n_classes))
    parts = [tuple(items_of(labels, part)) for part in ("train", "val", "test")]
    dataset = draw_dataset(Splits(Path("/"), names, *parts), "toy", 1, 1)
    with pytest.raises(UserError, match=f"toy has {n_classes} classes, but base-to-new needs four or more"):
        base_new(dataset)


ROOT = Path("/data/set/images")


def images_of(part: str) -> tuple[Item, ...]:
    return tuple(Item(ROOT / f"{label}/{part}{index}.jpg", label) for label in (1, 0) for index in range(3))


PUBLISHED = Splits(ROOT, ("cat", "dog"), images_of("a"), images_of("b"), images_of("c"))


def published_line(path: str, label: object) -> str:
    return json.dumps({"_impath": path, "_label": label, "_domain": -1, "_classname": "x"})


def write_lists(folder: Path, train: list[str], val: list[str]) -> Path:
    (folder / "shot_1-seed_2_train.jsonl").write_text("\n".join(train))
    (folder / "shot_1-seed_2_val.jsonl").write_text("\n".join(val))
    return folder


def test_pictures_are_found_by_the_end_of_a_foreign_path_in_the_order_of_the_file(tmp_path: Path) -> None:
    published = write_lists(
        tmp_path,
        [published_line("/home/x/set/images/0/a2.jpg", 0), published_line("1/a0.jpg", 1)],
        [published_line("C:\\x\\images\\1\\b1.jpg", 1)],
    )
    train, val = draw_shots(PUBLISHED, 1, 2, "jsonl", published)
    assert [item.path.name for item in train] == ["a2.jpg", "a0.jpg"]
    assert [item.path.name for item in val] == ["b1.jpg"]


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        (
            published_line("/x/images/0/c1.jpg", 0),
            "line 1: '/x/images/0/c1.jpg' is neither a train nor a val image",
        ),
        (published_line("/x/images/0/a1.jpg", 1), "line 1: label 1 is 0 in this set"),
        (published_line("/x/images/0/a1.jpg", "0"), "line 1: label '0' is 0 in this set"),
        ('{"_label": 0}', "line 1: is not an object with _impath and _label"),
        ("[", "line 1: is not valid JSON"),
        ("[]", "line 1: is not a JSON object"),
        ("", "names no image"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(tmp_path: Path, train: str, problem: str) -> None:
    published = write_lists(tmp_path, [train], [published_line("1/b1.jpg", 1)])
    with pytest.raises(UserError) as caught:
        draw_shots(PUBLISHED, 1, 2, "jsonl", published)
    assert problem in str(caught.value)


def test_a_missing_list_is_refused_and_not_drawn(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shot_1-seed_3_train\.jsonl: is not there"):
        draw_shots(PUBLISHED, 1, 3, "jsonl", tmp_path)


def test_a_set_without_published_lists_is_refused() -> None:
    with pytest.raises(UserError, match="from the folder of a published data set, and there are none of this"):
        draw_shots(PUBLISHED, 1, 2, "jsonl")
