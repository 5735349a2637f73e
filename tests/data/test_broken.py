from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mmprompt.data.broken import Broken, drop_broken, find_broken, refuse_broken
from mmprompt.data.folder import ImageFolder
from mmprompt.data.splits import Dataset
from mmprompt.errors import UserError

Make = Callable[..., Path]


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
    assert str(caught.value) == "2 pictures are broken, the first: /a.png: is empty. Or leave them out."


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
    assert sound.notes[-1] == f"Broken pictures left out, 1: {name}."


def test_nothing_to_drop_changes_nothing(dataset: Dataset) -> None:
    assert drop_broken(dataset, ()) is dataset


def test_a_class_that_loses_all_its_training_pictures_is_refused(dataset: Dataset) -> None:
    cats = [Broken(item.path, f"{item.path}: is empty.") for item in dataset.train if item.label == 0]
    with pytest.raises(UserError, match="Without the broken pictures there is no training picture of cat"):
        drop_broken(dataset, cats)


def test_a_set_that_loses_its_test_part_is_refused(dataset: Dataset) -> None:
    tested = [Broken(item.path, f"{item.path}: is empty.") for item in dataset.test]
    with pytest.raises(UserError, match="there is no test picture"):
        drop_broken(dataset, tested)


def test_a_picture_listed_twice_is_named_once_and_dropped_twice(dataset: Dataset) -> None:
    twice = replace(dataset, train=(*dataset.train, dataset.train[0]))
    path = cut_off(dataset.train[0].path)
    assert [broken.path for broken in find_broken(twice)] == [path]
    assert drop_broken(twice, find_broken(twice)).train == dataset.train[1:]
