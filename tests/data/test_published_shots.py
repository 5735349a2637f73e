from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmprompt.data.fewshot import draw_shots
from mmprompt.data.splits import Item, Splits
from mmprompt.errors import UserError

ROOT = Path("/data/set/images")


def items(part: str) -> tuple[Item, ...]:
    return tuple(Item(ROOT / f"{label}/{part}{index}.jpg", label) for label in (1, 0) for index in range(3))


SPLITS = Splits(ROOT, ("cat", "dog"), items("a"), items("b"), items("c"))


def line(path: str, label: object) -> str:
    return json.dumps({"_impath": path, "_label": label, "_domain": -1, "_classname": "x"})


def write(folder: Path, train: list[str], val: list[str]) -> Path:
    (folder / "shot_1-seed_2_train.jsonl").write_text("\n".join(train))
    (folder / "shot_1-seed_2_val.jsonl").write_text("\n".join(val))
    return folder


def test_pictures_are_found_by_the_end_of_a_foreign_path_in_the_order_of_the_file(tmp_path: Path) -> None:
    published = write(
        tmp_path,
        [line("/home/x/set/images/0/a2.jpg", 0), line("1/a0.jpg", 1)],
        [line("C:\\x\\images\\1\\b1.jpg", 1)],
    )
    train, val = draw_shots(SPLITS, 1, 2, "jsonl", published)
    assert [item.path.name for item in train] == ["a2.jpg", "a0.jpg"]
    assert [item.path.name for item in val] == ["b1.jpg"]


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        (line("/x/images/0/c1.jpg", 0), "line 1: '/x/images/0/c1.jpg' is neither a train nor a val picture"),
        (line("/x/images/0/a1.jpg", 1), "line 1: label 1 is 0 in this set"),
        (line("/x/images/0/a1.jpg", "0"), "line 1: label '0' is 0 in this set"),
        ('{"_label": 0}', "line 1: is not an object with _impath and _label"),
        ("[", "line 1: is not valid JSON"),
        ("[]", "line 1: is not a JSON object"),
        ("", "names no picture"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(tmp_path: Path, train: str, problem: str) -> None:
    published = write(tmp_path, [train], [line("1/b1.jpg", 1)])
    with pytest.raises(UserError) as caught:
        draw_shots(SPLITS, 1, 2, "jsonl", published)
    assert problem in str(caught.value)


def test_a_missing_list_is_refused_and_not_drawn(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shot_1-seed_3_train\.jsonl: is not there"):
        draw_shots(SPLITS, 1, 3, "jsonl", tmp_path)


def test_a_set_without_published_lists_is_refused() -> None:
    with pytest.raises(UserError, match="only a data set known by name has published lists"):
        draw_shots(SPLITS, 1, 2, "jsonl")
