from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmprompt.data.coop_split import read_coop_split
from mmprompt.errors import UserError

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
        ({**GOOD, "test": []}, "has no test pictures"),
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
    assert read(tmp_path, leaking).notes == ("Test pictures that are in train or val too, 1: 3.jpg.",)
    assert read(tmp_path, GOOD).notes == ()
