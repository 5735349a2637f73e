from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mmprompt.data.folder import ImageFolder, read_folder
from mmprompt.errors import UserError

Make = Callable[..., Path]
NAMES = ("cat", "dog")


def write_csv(folder: Path, rows: list[str], header: str = "file_name,label") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.csv").write_text("\n".join([header, *rows]))


def refusal(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_folder(root)
    return str(caught.value)


@pytest.fixture
def flat(tmp_path: Path, save_picture: Make) -> Path:
    """Eight pictures in one folder."""
    for index in range(8):
        save_picture(tmp_path / f"{index}.png", index)
    return tmp_path


def test_metadata_beside_the_pictures_names_their_classes(flat: Path) -> None:
    write_csv(flat, [f"{index}.png,{NAMES[index % 2]}" for index in range(8)])
    dataset = ImageFolder(flat)
    assert dataset.class_names == NAMES
    assert {(item.path.name, item.label) for item in (*dataset.train, *dataset.test)} == {
        (f"{index}.png", index % 2) for index in range(8)
    }


def test_jsonl_and_other_columns_read_alike(flat: Path) -> None:
    rows = [{"file_name": f"{i}.png", "label": NAMES[i % 2], "caption": "x", "boxes": [1]} for i in range(8)]
    (flat / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert ImageFolder(flat).class_names == NAMES


def test_each_part_has_its_own_metadata(tmp_path: Path, save_picture: Make) -> None:
    for part, count in {"train": 4, "validation": 2, "test": 2}.items():
        for index in range(count):
            save_picture(tmp_path / part / f"{index}.png", index)
        write_csv(tmp_path / part, [f"{index}.png,{NAMES[index % 2]}" for index in range(count)])
    splits = read_folder(tmp_path)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (4, 2, 2)


def test_paths_that_begin_with_a_part_belong_to_it(tmp_path: Path) -> None:
    write_csv(tmp_path, [f"{part}/{i}.png,{NAMES[i % 2]}" for part in ("train", "test") for i in range(4)])
    splits = read_folder(tmp_path)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (4, 0, 4)


@pytest.mark.parametrize(
    ("header", "rows", "problem"),
    [
        ("file_name,text", ["0.png,x"], "metadata.csv, line 1: lacks 'label'. Name the columns file_name,label."),
        ("file_name,label", [], "metadata.csv: holds no pictures"),
        ("file_name,label", ["0.png,"], "metadata.csv, line 2: label is '', but text was expected"),
        ("file_name,label", ["../0.png,cat"], "metadata.csv, line 2: '../0.png' leaves the data folder"),
        ("file_name,label", ["0.png,cat", "./0.png,dog"], "line 3: lists './0.png' again, after line 2"),
    ],
)
def test_bad_metadata_is_refused_with_its_line(flat: Path, header: str, rows: list[str], problem: str) -> None:
    write_csv(flat, rows, header)
    assert problem in refusal(flat)


def test_metadata_without_a_header_is_refused(flat: Path) -> None:
    write_csv(flat, ["1.png,dog"], "0.png,cat")
    assert "line 1: has no header, its first line is '0.png,cat'. Write file_name,label above it." in refusal(flat)


def test_a_number_for_a_label_is_refused(flat: Path) -> None:
    (flat / "metadata.jsonl").write_text('{"file_name": "0.png", "label": 3}')
    assert "line 1: label is 3, but text was expected. Write it as text; a class by its name." in refusal(flat)


def test_two_metadata_files_are_refused(flat: Path) -> None:
    write_csv(flat, ["0.png,cat"])
    (flat / "metadata.jsonl").write_text("{}")
    assert "metadata.jsonl: lies beside metadata.csv. Keep one of the two." in refusal(flat)
