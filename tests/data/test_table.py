from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmprompt.data.table import read_table
from mmprompt.errors import UserError

GOOD = "path,label,split,novel\na.png,x,train,0\nb.png,y_y,train,1\nc.png,x,val,\nd.png,y_y,test,true\n"


def table(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(folder: Path, text: str | bytes, name: str = "t.csv") -> str:
    with pytest.raises(UserError) as caught:
        read_table(table(folder, text, name))
    message = str(caught.value)
    assert message.startswith(str(folder / name))
    return message.removeprefix(str(folder / name))


def test_columns_become_parts_labels_and_novelty(tmp_path: Path) -> None:
    splits = read_table(table(tmp_path, GOOD))
    assert splits.class_names == ("x", "y y")
    assert [(item.path.name, item.label, item.novel) for item in splits.train] == [
        ("a.png", 0, False),
        ("b.png", 1, True),
    ]
    assert [item.path.name for item in splits.val] == ["c.png"]
    assert [(item.path.name, item.novel) for item in splits.test] == [("d.png", True)]


def test_jsonl_gives_the_same_as_csv(tmp_path: Path) -> None:
    records = [
        {"path": "a.png", "label": "x", "split": "train", "novel": False},
        {"path": "b.png", "label": "y_y", "split": "train", "novel": True},
        {"path": "c.png", "label": "x", "split": "val"},
        {"path": "d.png", "label": "y_y", "split": "test", "novel": True},
    ]
    text = "\n\n".join(json.dumps(record) for record in records) + "\n"
    assert read_table(table(tmp_path, text, "t.jsonl")) == read_table(table(tmp_path, GOOD))


@pytest.mark.parametrize("change", [lambda t: "\ufeff" + t, lambda t: t.replace("\n", "\r\n"), lambda t: t + "\n\n"])
def test_byte_order_marks_windows_line_ends_and_empty_lines_change_nothing(tmp_path: Path, change) -> None:
    assert read_table(table(tmp_path, change(GOOD))) == read_table(table(tmp_path, GOOD))


@pytest.mark.parametrize("mark", [";", "\t"])
def test_semicolons_and_tabulators_of_spreadsheets_are_read_too(tmp_path: Path, mark: str) -> None:
    assert read_table(table(tmp_path, GOOD.replace(",", mark))) == read_table(table(tmp_path, GOOD))


def test_columns_may_stand_in_any_order(tmp_path: Path) -> None:
    splits = read_table(table(tmp_path, 'label,path\nx,"a, b.png"\nx,b.png\ny,c.png\n'))
    assert {item.path.name for item in (*splits.train, *splits.test)} == {"a, b.png", "b.png", "c.png"}


def test_paths_are_relative_to_the_given_root(tmp_path: Path) -> None:
    splits = read_table(table(tmp_path, GOOD), tmp_path / "elsewhere")
    assert splits.root == tmp_path / "elsewhere"
    assert splits.train[0].path == tmp_path / "elsewhere" / "a.png"


def test_without_test_rows_a_part_is_held_out(tmp_path: Path) -> None:
    splits = read_table(table(tmp_path, "path,label\na,x\nb,x\nc,y\nd,y\n"))
    assert len(splits.test) == 2
    assert "No test part was given" in splits.notes[0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", ", line 1: lacks 'path'. Name the columns path,label and perhaps split,novel."),
        ("path,split\na,train\n", ", line 1: lacks 'label'"),
        ("a.png,cat\n", ", line 1: has no header, its first line is 'a.png,cat'. Write path,label or"),
        ("path,label,splt\n", ", line 1: there is no column named 'splt'. Did you mean 'split'?"),
        ("path,label,path\n", ", line 1: has a column twice"),
        ("path,label\n", ": holds no pictures"),
        ("path,label\na.png,x\nb.png\n", ", line 3: has 1 cells, but the header has 2"),
        ("path,label\n\na.png,x,y\n", ", line 3: has 3 cells, but the header has 2"),
        ("path,label,split\na.png,x,dev\n", ", line 2: split is 'dev', but train, val or test was expected"),
        ("path,label,split\na.png,x,\n", ", line 2: split is '', but train, val or test was expected"),
        ("path,label,novel\na.png,x,maybe\n", ", line 2: novel is 'maybe', but 0 or 1 was expected"),
        ("path,label\na.png,\n", ", line 2: label is '', but text was expected"),
        ("path,label\n ,x\n", ", line 2: path is ' ', but text was expected"),
        ("path,label\na.png,x\nb.png,x\nb/../a.png,y\n", ", line 4: lists 'b/../a.png' again, after line 2"),
        ("path,label\n../a.png,x\n", ", line 2: '../a.png' leaves the data folder"),
        ("path,label\n/etc/a.png,x\n", ", line 2: '/etc/a.png' leaves the data folder"),
        ('path,label\n"a.png"x,y\n', ", line 2: is not valid CSV ("),
        (b"path,label\n\xff,x\n", ", line 2: is not UTF-8 text"),
        ("path,label\na,x\nb,x\n", ": holds only the class 'x'"),
        ("path,label\na,x_y\nb,x y\n", ": 'x_y' and 'x y' are both the class 'x y'"),
    ],
)
def test_bad_csv_is_refused_with_its_line(tmp_path: Path, text: str | bytes, problem: str) -> None:
    assert refusal(tmp_path, text).startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"path": "a", "label": "x"}\n{"path": \n', ", line 2: is not valid JSON. Write one object on each line."),
        ('["a", "x"]\n', ", line 1: is not a JSON object"),
        (
            '{"path": "a", "label": 3}\n',
            ", line 1: label is 3, but text was expected. Write it as text; a class by its name.",
        ),
        ('{"path": "a"}\n', ", line 1: lacks 'label'"),
        (
            '{"path": "a", "label": "x", "novl": true}\n',
            ", line 1: there is no column named 'novl'. Did you mean 'novel'?",
        ),
        ('{"path": "a", "label": "x", "split": ["train"]}\n', ", line 1: split is ['train'], but train"),
        ("[" * 100_000, ", line 1: is not valid JSON"),
        ("", ": holds no pictures"),
    ],
)
def test_bad_jsonl_is_refused_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    assert refusal(tmp_path, text, "t.jsonl").startswith(problem)


def test_a_detour_through_the_folder_above_is_the_same_picture(tmp_path: Path) -> None:
    text = f"path,label\na.png,x\nb.png,x\n../{tmp_path.name}/a.png,y\n"
    assert refusal(tmp_path, text).startswith(f", line 4: lists '../{tmp_path.name}/a.png' again, after line 2")


def test_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.png").touch()
    (folder / "a.png").symlink_to(tmp_path / "secret.png")
    assert "'a.png' leaves the data folder" in refusal(folder, "path,label\na.png,x\n")


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    assert ": is neither .csv nor .jsonl" in refusal(tmp_path, "", "t.xlsx")


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.csv: cannot be read \(No such file or directory\)"):
        read_table(tmp_path / "no.csv")
