from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mmprompt.data.folder import ImageFolder
from mmprompt.data.splits import Dataset, Item, Row, Splits, assemble, class_counts, hold_out_test, refuse_missing
from mmprompt.errors import UserError

ROOT = Path("/pictures")


def splits_of(counts: list[int]) -> Splits:
    train = [Item(ROOT / f"{label}/{index}.png", label) for label, count in enumerate(counts) for index in range(count)]
    return Splits(ROOT, tuple(f"kind {label}" for label in range(len(counts))), tuple(train), (), ())


@pytest.fixture
def dataset(class_folder: Callable[..., Path]) -> Dataset:
    return ImageFolder(class_folder({"cat": 5, "dog": 5}))


def test_held_out_pictures_are_a_fifth_of_every_class_and_at_least_one() -> None:
    held = hold_out_test(splits_of([20, 10, 4, 2]))
    assert class_counts(held.test, 4) == (4, 2, 1, 1)
    assert class_counts(held.train, 4) == (16, 8, 3, 1)
    assert not set(held.train) & set(held.test)


def test_holding_out_is_said() -> None:
    assert hold_out_test(splits_of([10, 10])).notes == (
        "No test part was given: 4 of 20 images are held out for testing, the same share of every class.",
    )


def test_a_class_of_one_picture_is_trained_on_and_said() -> None:
    held = hold_out_test(splits_of([10, 1]))
    assert class_counts(held.train, 2)[1] == 1
    assert held.notes[1] == "Trained on and not tested, for want of a second image: kind 1."


def test_nothing_to_hold_out_is_refused() -> None:
    with pytest.raises(UserError, match=r"no class has two images, so none can be tested\. Add images\."):
        hold_out_test(splits_of([1, 1]))


def test_the_held_out_part_does_not_depend_on_the_order_of_the_list() -> None:
    splits = splits_of([20, 20])
    backwards = replace(splits, train=splits.train[::-1])
    assert set(hold_out_test(splits).test) == set(hold_out_test(backwards).test)


def test_the_held_out_part_is_not_the_first_files() -> None:
    assert hold_out_test(splits_of([20, 20])).test[:4] != splits_of([20, 20]).train[:4]


def test_every_picture_is_in_the_part_of_its_row_in_order() -> None:
    rows = [Row(ROOT / "b", "y"), Row(ROOT / "c", "x", "test", True), Row(ROOT / "a", "x"), Row(ROOT / "d", "y", "val")]
    splits = assemble(ROOT, rows, "here")
    assert splits.class_names == ("x", "y")
    assert splits.train == (Item(ROOT / "b", 1), Item(ROOT / "a", 0))
    assert splits.val == (Item(ROOT / "d", 1),)
    assert splits.test == (Item(ROOT / "c", 0, True),)


def test_classes_without_a_training_picture_are_refused() -> None:
    rows = [Row(ROOT / "a", "x"), Row(ROOT / "b", "y"), Row(ROOT / "c", "z_z", "test")]
    with pytest.raises(UserError, match=r"here: no image to train on for z z\."):
        assemble(ROOT, rows, "here")


def test_a_set_of_test_pictures_alone_is_kept_as_it_is() -> None:
    splits = assemble(ROOT, [Row(ROOT / "a", "x", "test"), Row(ROOT / "b", "y", "test")], "here")
    assert (splits.train, splits.val, len(splits.test), splits.notes) == ((), (), 2, ())


def test_validation_without_training_pictures_is_refused() -> None:
    with pytest.raises(UserError, match="no image to train on for x, y"):
        assemble(ROOT, [Row(ROOT / "a", "x", "test"), Row(ROOT / "b", "y", "val")], "here")


def test_a_dataset_is_shown_in_one_short_line(dataset: Dataset) -> None:
    assert repr(dataset) == (
        "Dataset('pictures': 2 classes, train 8, val 0, test 2, shots None, seed None, protocol folder)"
    )
    drawn = ImageFolder(dataset.root, shots=2, seed=3)
    assert repr(drawn) == str(drawn)
    assert "train 4, val 0, test 2, shots 2, seed 3, protocol folder" in repr(drawn)


def test_splits_are_shown_in_one_short_line() -> None:
    assert repr(splits_of([20, 20])) == "Splits('/pictures': 2 classes, train 40, val 0, test 0)"


def test_items_are_found_by_split(dataset: Dataset) -> None:
    assert dataset.items("train") == dataset.train
    assert dataset.items("test") == dataset.test


def test_an_unknown_split_is_refused_with_the_nearest(dataset: Dataset) -> None:
    with pytest.raises(UserError, match=r"there is no split named 'tset'\. Did you mean 'test'"):
        dataset.items("tset")


def test_missing_pictures_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    items = [Item(tmp_path / name, 0) for name in "abc"]
    with pytest.raises(UserError, match=r"/a: is not there \(3 of 3 images are missing\)"):
        refuse_missing(items)


def test_the_fingerprint_is_that_of_relative_paths(dataset: Dataset) -> None:
    moved = dataset.root.rename(dataset.root.parent / "elsewhere")

    def relocated(items: tuple[Item, ...]) -> tuple[Item, ...]:
        return tuple(replace(item, path=moved / item.path.relative_to(dataset.root)) for item in items)

    copy = replace(dataset, root=moved, train=relocated(dataset.train), test=relocated(dataset.test))
    fingerprint = copy.fingerprint
    moved.rename(dataset.root)
    assert dataset.fingerprint == fingerprint


@pytest.mark.parametrize("change", ["names", "label", "part", "size"])
def test_the_fingerprint_changes_with_names_labels_parts_and_sizes(dataset: Dataset, change: str) -> None:
    before = dataset.fingerprint
    first, *rest = dataset.train
    if change == "size":
        first.path.write_bytes(first.path.read_bytes() + b"\0")
    changed = {
        "names": replace(dataset, class_names=("cat", "fox")),
        "label": replace(dataset, train=(replace(first, label=1), *rest)),
        "part": replace(dataset, train=dataset.train[:-1], val=dataset.train[-1:]),
        "size": dataset,
    }[change]
    assert changed.fingerprint != before


def test_the_fingerprint_of_a_lost_picture_is_refused(dataset: Dataset) -> None:
    dataset.train[0].path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        _ = dataset.fingerprint
