from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mmprompt.data.check import Broken, check_dataset, drop_broken, find_broken, refuse_broken
from mmprompt.data.folder import ImageFolder, read_folder
from mmprompt.data.splits import Dataset, Splits
from mmprompt.errors import UserError

Make = Callable[..., Path]


@pytest.fixture
def splits(class_folder: Make) -> Splits:
    for part, count in {"train": 4, "val": 2, "test": 3}.items():
        root = class_folder({"cat": count, "dog": count}, below=part)
    for index, path in enumerate(sorted(root.rglob("*.png"))):
        path.write_bytes(path.read_bytes() + bytes([index]))  # no two alike
    return read_folder(root)


def test_a_sound_dataset_has_no_findings(splits: Splits) -> None:
    report = check_dataset(splits, n_classes=2, sizes={"train": 8, "val": 4, "test": 6})
    assert report.is_ok
    assert report.counts == {"train": 8, "val": 4, "test": 6}
    assert report.per_class == {"train": (4, 4), "val": (2, 2), "test": (3, 3)}
    assert report.lines == (
        f"{splits.root}: 2 classes; images: train 8 (4 to 4 a class), val 4 (2 to 2 a class), test 6 (3 to 3 a class).",
        "Images opened: 18.",
        "Ready to train.",
    )


def test_a_set_without_train_or_test_pictures_is_not_called_ready_for_both(splits: Splits) -> None:
    assert check_dataset(replace(splits, train=(), val=())).lines[-1] == "Ready to test; there is nothing to train on."
    assert check_dataset(replace(splits, test=())).lines[-1] == "Ready to train; there is nothing to test on."


def test_unexpected_numbers_are_problems(splits: Splits) -> None:
    report = check_dataset(splits, n_classes=3, sizes={"test": 7})
    assert report.problems == (
        "there are 2 classes, but 3 were expected.",
        "test has 6 images, but 7 were expected.",
    )
    assert report.lines[-1] == "Not ready to train."


def test_missing_pictures_are_counted_and_the_first_named(splits: Splits) -> None:
    for item in splits.test[:4]:
        item.path.unlink()
    report = check_dataset(splits)
    assert report.problems == (
        "missing images, 4 of 18: test/cat/00.png, test/cat/01.png, test/cat/02.png and 1 more.",
    )


def test_broken_pictures_are_problems(splits: Splits) -> None:
    splits.val[0].path.write_text("no picture")
    report = check_dataset(splits, sample=None)
    assert len(report.problems) == 1
    assert "val/cat/00.png: is not an image that can be read" in report.problems[0]


def test_only_a_seeded_sample_is_opened(splits: Splits) -> None:
    assert check_dataset(splits, sample=5).n_decoded == 5
    for item in (*splits.train, *splits.val, *splits.test):
        item.path.write_text(f"no picture {item.path}")
    first, again, other = (check_dataset(splits, sample=5, seed=seed).problems for seed in (1, 1, 2))
    assert len(first) == 5
    assert first == again
    assert first != other


def test_the_same_picture_in_two_splits_is_a_warning(splits: Splits) -> None:
    splits.test[0].path.write_bytes(splits.train[0].path.read_bytes())
    report = check_dataset(splits)
    assert report.is_ok
    assert report.warnings == ("the same image in two splits: train/cat/00.png = test/cat/00.png.",)


def test_the_same_picture_twice_in_one_split_is_no_warning(splits: Splits) -> None:
    splits.train[1].path.write_bytes(splits.train[0].path.read_bytes())
    assert check_dataset(splits).warnings == ()


def test_notes_of_the_reader_are_warnings(class_folder: Make) -> None:
    warnings = check_dataset(read_folder(class_folder({"emu": 1, "fox": 5}))).warnings
    assert any("No test part was given" in warning for warning in warnings)
    assert "no test image for emu." in warnings


def cut_off(path: Path) -> Path:
    """Leaves the header whole and takes the end of the pixels away."""
    path.write_bytes(path.read_bytes()[:45])  # a PNG header has 33
    return path


@pytest.fixture
def dataset(class_folder: Make) -> Dataset:
    return ImageFolder(class_folder({"cat": 6, "dog": 6}))


def test_a_picture_cut_off_after_its_header_is_found(dataset: Dataset) -> None:
    path = cut_off(dataset.test[0].path)
    (found,) = find_broken(dataset)
    assert found.path == path
    assert str(path) in found.reason


def test_sound_pictures_are_not_named(dataset: Dataset) -> None:
    assert find_broken(dataset) == ()


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_find_the_same_in_the_same_order(dataset: Dataset, workers: int) -> None:
    paths = [cut_off(dataset.items(split)[1].path) for split in ("train", "test")]
    paths[0].write_bytes(b"")
    assert [broken.path for broken in find_broken(dataset, workers=workers)] == paths


def test_progress_ends_at_the_number_of_pictures(dataset: Dataset) -> None:
    seen: list[tuple[int, int]] = []
    find_broken([*dataset.train, *dataset.train], progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(dataset.train), len(dataset.train))


def test_a_refusal_names_the_first_and_the_count() -> None:
    broken = [Broken(Path("/a.png"), "/a.png: is empty."), Broken(Path("/b.png"), "/b.png: is empty.")]
    with pytest.raises(UserError) as caught:
        refuse_broken(broken, "Or leave them out.")
    assert str(caught.value) == "2 images are broken, the first: /a.png: is empty. Or leave them out."


def test_nothing_broken_is_no_refusal(dataset: Dataset) -> None:
    found = find_broken(dataset)
    assert found == ()
    refuse_broken(found)  # which raises where there is one, as above


def test_dropping_leaves_the_broken_out_and_says_so(dataset: Dataset) -> None:
    cut_off(dataset.train[0].path)
    sound = drop_broken(dataset, find_broken(dataset))
    assert sound.train == dataset.train[1:]
    assert sound.test == dataset.test
    name = dataset.train[0].path.relative_to(dataset.root).as_posix()
    assert sound.notes[-1] == f"Broken images left out, 1: {name}."


def test_nothing_to_drop_changes_nothing(dataset: Dataset) -> None:
    assert drop_broken(dataset, ()) is dataset


def test_a_class_that_loses_all_its_training_pictures_is_refused(dataset: Dataset) -> None:
    cats = [Broken(item.path, f"{item.path}: is empty.") for item in dataset.train if item.label == 0]
    with pytest.raises(UserError, match="Without the broken images there is no training image of cat"):
        drop_broken(dataset, cats)


def test_a_set_that_loses_its_test_part_is_refused(dataset: Dataset) -> None:
    tested = [Broken(item.path, f"{item.path}: is empty.") for item in dataset.test]
    with pytest.raises(UserError, match="there is no test image"):
        drop_broken(dataset, tested)


def test_a_picture_listed_twice_is_named_once_and_dropped_twice(dataset: Dataset) -> None:
    twice = replace(dataset, train=(*dataset.train, dataset.train[0]))
    path = cut_off(dataset.train[0].path)
    assert [broken.path for broken in find_broken(twice)] == [path]
    assert drop_broken(twice, find_broken(twice)).train == dataset.train[1:]
