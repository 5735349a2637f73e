from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmprompt.data.folder import ImageTable, read_folder, read_table
from mmprompt.data.split_file import divide, read_coop_split, write_split
from mmprompt.data.splits import SPLITS, Item, Splits
from mmprompt.errors import UserError

Make = Callable[..., Path]


def splits_of(counts: list[int]) -> Splits:
    items = tuple(Item(Path(f"/r/{label}/{i}.png"), label) for label, n in enumerate(counts) for i in range(n))
    return Splits(Path("/r"), tuple(f"class {label}" for label in range(len(counts))), items, (), ())


def of(splits: Splits, split: str) -> Counter[int]:
    return Counter(item.label for item in splits.items(split))


def test_every_class_gives_the_same_shares() -> None:
    divided = divide(splits_of([10, 20]), val=0.1, test=0.2)
    assert [of(divided, split) for split in SPLITS] == [{0: 7, 1: 14}, {0: 1, 1: 2}, {0: 2, 1: 4}]


@given(st.lists(st.integers(1, 30), min_size=2, max_size=5).filter(lambda counts: max(counts) > 1), st.integers(0, 99))
def test_nothing_is_lost_or_repeated_and_every_class_keeps_a_training_picture(counts: list[int], seed: int) -> None:
    divided = divide(splits_of(counts), seed=seed)
    parts = [item for split in SPLITS for item in divided.items(split)]
    assert sorted(map(str, parts)) == sorted(map(str, splits_of(counts).train))
    assert set(of(divided, "train")) == set(range(len(counts)))
    assert {label for label, n in enumerate(counts) if n > 1} == set(of(divided, "test"))


def test_the_order_of_the_list_does_not_matter() -> None:
    one = splits_of([9, 9])
    other = Splits(one.root, one.class_names, one.train[::-1], (), ())
    assert divide(one) == divide(other)


def test_another_seed_divides_otherwise() -> None:
    assert divide(splits_of([9, 9]), seed=1) != divide(splits_of([9, 9]), seed=2)


def test_a_test_part_that_is_there_stays() -> None:
    given_splits = splits_of([9, 9])
    tested = (Item(Path("/r/t.png"), 0),)
    divided = divide(Splits(given_splits.root, given_splits.class_names, given_splits.train, (), tested))
    assert divided.test == tested
    assert len(divided.val) == 2


@pytest.mark.parametrize(
    ("shares", "problem"),
    [
        ({"val": -0.1}, "val is -0.1, but it must be a number, 0 or more and below 1"),
        ({"test": 1.0}, "test is 1.0, but it must be a number, 0 or more and below 1"),
        ({"val": 0.5, "test": 0.5}, "so that training keeps a part"),
        ({"test": 0.0}, "test is 0.0, but there is no test part yet, and a split needs one"),
    ],
)
def test_bad_shares_are_refused(shares: dict[str, float], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        divide(splits_of([9, 9]), **shares)


def test_classes_of_one_picture_alone_are_refused() -> None:
    with pytest.raises(UserError, match="no class has two images"):
        divide(splits_of([1, 1]))


def test_a_written_split_reads_as_it_was(class_folder: Make) -> None:
    divided = divide(read_folder(class_folder({"wild_cat": 9, "dog": 5}), hold_out=False))
    path = divided.root / "split.json"
    write_split(path, divided, {"seed": 1, "val": 0.1, "test": 0.2})
    assert read_table(path) == divided
    assert ImageTable(path, shots=2).class_names == ("dog", "wild cat")
    assert json.loads(path.read_text())["made_by"]["seed"] == 1


def test_what_is_novel_stays_so(class_folder: Make) -> None:
    whole = read_folder(class_folder({"cat": 5, "dog": 5}), hold_out=False)
    marked = tuple(replace(item, novel=item.path.stem.endswith("0")) for item in whole.train)
    divided = divide(replace(whole, train=marked))
    path = divided.root / "split.json"
    write_split(path, divided, {"seed": 1})
    assert read_table(path) == divided
    assert sum(item.novel for split in SPLITS for item in divided.items(split)) == 2
    path.write_text(path.read_text().replace('"novel": [', '"novel": [1, '))
    with pytest.raises(UserError, match="has no list of paths as novel in made_by"):
        read_table(path)


def test_a_split_elsewhere_reads_with_its_root(tmp_path: Path, class_folder: Make) -> None:
    divided = divide(read_folder(class_folder({"cat": 5, "dog": 5}), hold_out=False))
    (tmp_path / "kept").mkdir()
    write_split(tmp_path / "kept" / "split.json", divided, {"seed": 1})
    assert read_table(tmp_path / "kept" / "split.json", divided.root) == divided


@pytest.mark.parametrize(
    ("name", "problem"),
    [("a.json", "is there already"), ("a.txt", "does not end in .json"), ("no/a.json", "no folder")],
)
def test_a_place_that_is_taken_or_wrong_is_refused_and_kept(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "a.json").write_text("mine")
    with pytest.raises(UserError, match=problem.replace("no folder", "is not a folder")):
        write_split(tmp_path / name, splits_of([2, 2]), {})
    assert (tmp_path / "a.json").read_text() == "mine"


GOOD = {
    "train": [["b/1.jpg", 1, "b_b"], ["a/1.jpg", 0, "Z"], ["b/2.jpg", 1, "b_b"]],
    "val": [["a/2.jpg", 0, "Z"]],
    "test": [["b/3.jpg", 1, "b_b"], ["a/3.jpg", 0, "Z"]],
}


def read(folder: Path, content: object, rename: dict[str, str] | None = None):
    path = folder / "split.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_coop_split(path, folder / "images", rename)


def test_labels_and_order_are_those_of_the_file(tmp_path: Path) -> None:
    splits = read(tmp_path, GOOD)
    assert splits.class_names == ("Z", "b b")
    assert [(item.path.relative_to(splits.root).as_posix(), item.label) for item in splits.train] == [
        ("b/1.jpg", 1),
        ("a/1.jpg", 0),
        ("b/2.jpg", 1),
    ]
    assert (len(splits.val), len(splits.test)) == (1, 2)


def test_names_are_replaced_as_the_file_spells_them(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD, {"b_b": "bee", "b b": "no"}).class_names == ("Z", "bee")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ([], "is not one object of train, val and test"),
        ({"train": [], "val": []}, "is not one object of train, val and test"),
        ({**GOOD, "val": {}}, "split.json, val: is not a list"),
        ({**GOOD, "val": [["a/2.jpg", "0", "Z"]]}, "val, entry 0: is not [path, whole number, class name]"),
        ({**GOOD, "val": [["a/2.jpg", True, "b_b"]]}, "val, entry 0: is not [path, whole number, class name]"),
        ({**GOOD, "val": [["a/2.jpg", 0.0, "Z"]]}, "val, entry 0: is not [path, whole number, class name]"),
        ({**GOOD, "test": []}, "has no test images"),
        ({**GOOD, "val": [["a/2.jpg", 0]]}, "val, entry 0: is not [path, whole number, class name]"),
        ({**GOOD, "val": [["a/2.jpg", 0, "Y"]]}, "val, entry 0: label 0 is 'Y' here, 'Z' before"),
        ({**GOOD, "val": [["a/2.jpg", 3, "Y"]]}, "has labels that are not 0 to 2 without a gap"),
        ({**GOOD, "val": [["a/2.jpg", 2, "Z"]]}, "gives two labels the same name"),
        ({**GOOD, "val": [["a/2.jpg", 2, "b b"]]}, "are both the class 'b b'"),
        ({**GOOD, "val": [["../a.jpg", 0, "Z"]]}, "val, entry 0: '../a.jpg' leaves the data folder"),
        ("{", "is not valid JSON"),
    ],
)
def test_another_form_is_refused(tmp_path: Path, change: object, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, change)
    assert problem in str(caught.value)
    assert "split.json" in str(caught.value)


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_test_picture_that_is_learned_from_is_said(tmp_path: Path, part: str) -> None:
    tested = [["a/../b/3.jpg", 1, "b_b"], *GOOD["test"][1:]]
    leaking = {**GOOD, part: [*GOOD[part], ["b/../b/3.jpg", 1, "b_b"]], "test": tested}
    assert read(tmp_path, leaking).notes == ("Test images that are in train or val too, 1: 3.jpg.",)
    assert read(tmp_path, GOOD).notes == ()
