from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mmprompt.data.folder import ImageFolder, ImageTable, read_folder, read_table
from mmprompt.errors import UserError

Make = Callable[..., Path]


def refusal(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_folder(root)
    return str(caught.value)


def test_classes_are_folders_sorted_by_readable_name(class_folder: Make) -> None:
    dataset = ImageFolder(class_folder({"wild_cat": 5, "Zebra": 5, "ant": 5}))
    assert dataset.class_names == ("Zebra", "ant", "wild cat")
    assert {(item.path.parent.name, item.label) for item in dataset.train} == {
        ("Zebra", 0),
        ("ant", 1),
        ("wild_cat", 2),
    }


def test_a_folder_without_test_part_holds_one_out_for_every_seed_alike(class_folder: Make) -> None:
    root = class_folder({"cat": 10, "dog": 10})
    one, two = ImageFolder(root, shots=2, seed=1), ImageFolder(root, shots=2, seed=2)
    assert one.test == two.test
    assert one.train != two.train
    assert len(one.test) == 4
    assert "No test part was given" in one.notes[0]


def test_train_val_and_test_folders_are_the_parts(class_folder: Make) -> None:
    for part, count in {"train": 3, "validation": 2, "test": 1}.items():
        root = class_folder({"cat": count, "dog": count}, below=part)
    dataset = ImageFolder(root)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (6, 4, 2)
    assert dataset.notes == ()


def test_train_and_val_without_test_still_hold_a_test_part_out(class_folder: Make) -> None:
    for part in ("train", "val"):
        root = class_folder({"cat": 5, "dog": 5}, below=part)
    dataset = ImageFolder(root)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (8, 10, 2)


def test_a_class_may_be_called_train(class_folder: Make) -> None:
    assert ImageFolder(class_folder({"train": 3, "bus": 3})).class_names == ("bus", "train")


def test_a_relative_folder_stays_where_it_was(class_folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = class_folder({"cat": 3, "dog": 3})
    monkeypatch.chdir(root.parent)
    dataset = ImageFolder(root.name)
    monkeypatch.chdir("/")
    assert all(item.path.is_file() for item in dataset.train)


def test_hidden_files_and_other_files_are_passed_over(class_folder: Make, save_picture: Make) -> None:
    root = class_folder({"cat": 3, "dog": 3})
    save_picture(root / "cat" / ".hidden.png")
    save_picture(root / "cat" / ".thumbs" / "a.png")
    save_picture(root / ".cache" / "a.png")
    (root / "cat" / "notes.txt").write_text("x")
    splits = read_folder(root)
    assert len(splits.train) + len(splits.test) == 6
    assert len(splits.class_names) == 2


def test_pictures_in_folders_below_a_class_belong_to_it(class_folder: Make, save_picture: Make) -> None:
    root = class_folder({"cat": 3, "dog": 3})
    save_picture(root / "cat" / "2024" / "a.JPG")
    splits = read_folder(root)
    assert "a.JPG" in {item.path.name for item in (*splits.train, *splits.test)}


def test_the_dataset_says_its_name_protocol_and_template(class_folder: Make) -> None:
    dataset = ImageFolder(class_folder({"cat": 3, "dog": 3}), template="a {}", augment="none")
    assert (dataset.name, dataset.protocol, dataset.template, dataset.augment) == ("pictures", "folder", "a {}", "none")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no") == (
        f"{tmp_path}/no: is not there. Give a folder that holds a folder of images for each class."
    )


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert "is a file, but neither a table (.csv, .jsonl) nor a split file (.json)" in refusal(tmp_path / "a")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "holds no class folders. Make a folder of images for each class." in refusal(tmp_path)


def test_pictures_without_class_folders_are_refused(tmp_path: Path, save_picture: Make) -> None:
    save_picture(tmp_path / "a.png")
    assert "holds images but no class folders" in refusal(tmp_path)


def test_class_folders_without_pictures_are_all_named(class_folder: Make) -> None:
    text = refusal(class_folder({"cat": 2, "dog": 0, "emu": 0}))
    assert "no image in the class folders dog, emu. Add images (.bmp, .gif" in text


def test_one_class_only_is_refused(class_folder: Make) -> None:
    assert "holds only the class 'cat', but two or more are needed" in refusal(class_folder({"cat": 4}))


def test_class_folders_that_read_alike_are_refused(class_folder: Make) -> None:
    assert "are both the class 'wild cat'" in refusal(class_folder({"wild_cat": 2, "wild cat": 2}))


def test_a_class_folder_without_a_name_is_refused(class_folder: Make) -> None:
    assert "the class name '_' is empty" in refusal(class_folder({"cat": 2, "_": 2}))


def test_a_test_folder_alone_is_a_set_to_test_on(class_folder: Make) -> None:
    splits = read_folder(class_folder({"cat": 2, "dog": 2}, below="test"))
    assert (len(splits.train), len(splits.test), splits.notes) == (0, 4, ())


def test_a_val_folder_alone_is_refused(class_folder: Make) -> None:
    assert "no image to train on for cat, dog" in refusal(class_folder({"cat": 2, "dog": 2}, below="val"))


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("TRAIN", "TEST"), ("training", "testing")])
def test_parts_may_be_written_in_capitals_or_as_words(class_folder: Make, train: str, test: str) -> None:
    class_folder({"cat": 2, "dog": 2}, below=train)
    splits = read_folder(class_folder({"cat": 1, "dog": 1}, below=test))
    assert (splits.class_names, len(splits.train), len(splits.test)) == (("cat", "dog"), 4, 2)


def test_parts_beside_another_folder_are_never_taken_for_classes(class_folder: Make) -> None:
    for part in ("train", "test", "extra"):
        root = class_folder({"cat": 2, "dog": 2}, below=part)
    assert "pictures: holds test, train beside extra, parts beside classes. Move" in refusal(root)


def test_files_that_are_not_read_are_counted_by_suffix(class_folder: Make) -> None:
    root = class_folder({"cat": 4, "dog": 4})
    for name in ("a.heic", "b.HEIC", "notes.txt", ".hidden", "README"):
        (root / "cat" / name).touch()
    assert read_folder(root).notes[-1] == "Files that are not read as images: 2 .heic, 1 .txt, 1 no suffix."


def test_a_class_that_is_only_tested_is_refused(class_folder: Make) -> None:
    class_folder({"cat": 2, "dog": 2}, below="train")
    assert "no image to train on for emu." in refusal(class_folder({"emu": 2}, below="test"))


def test_a_table_gives_the_same_dataset_as_its_folder(class_folder: Make) -> None:
    root = class_folder({"cat": 5, "dog": 5})
    rows = [f"{path.relative_to(root)},{path.parent.name}" for path in sorted(root.rglob("*.png"))]
    (root / "all.csv").write_text("\n".join(["path,label", *rows]))
    folder, table = ImageFolder(root, shots=2), ImageTable(root / "all.csv", shots=2)
    assert table.name == "all"
    assert table.fingerprint == folder.fingerprint


def test_a_table_with_a_missing_picture_is_refused(tmp_path: Path, save_picture: Make) -> None:
    for name in "abcd":
        save_picture(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text("path,label\na.png,x\nb.png,x\nc.png,y\nd.png,y\ne.png,y\n")
    with pytest.raises(
        UserError, match=r"e\.png: is not there \(1 of 5 images are missing\)\. Restore them, or list only those"
    ):
        ImageTable(tmp_path / "t.csv")


def test_classes_of_few_pictures_are_named(class_folder: Make) -> None:
    notes = ImageFolder(class_folder({"cat": 3, "dog": 4, "emu": 1})).notes
    assert any("Classes with fewer than 4 images" in note and note.endswith(": cat, emu.") for note in notes)
    assert any("not tested, for want of a second image: emu" in note for note in notes)


def test_a_class_of_two_pictures_keeps_one_for_training(class_folder: Make) -> None:
    dataset = ImageFolder(class_folder({"cat": 2, "dog": 9}))
    assert [item.label for item in dataset.train].count(0) == 1
    assert [item.label for item in dataset.test].count(0) == 1


def test_unbalanced_classes_are_said_with_their_sizes(class_folder: Make) -> None:
    notes = ImageFolder(class_folder({"cat": 20, "dog": 4})).notes
    assert any("unbalanced, from 4 images (dog) to 20 (cat)" in note for note in notes)


def test_balanced_classes_have_nothing_to_say_but_what_is_held_out(class_folder: Make) -> None:
    assert len(ImageFolder(class_folder({"cat": 8, "dog": 10})).notes) == 1


@pytest.mark.parametrize("what", ["picture", "folder"])
def test_a_link_out_of_the_folder_is_refused_by_name(
    tmp_path: Path, class_folder: Make, save_picture: Make, what: str
) -> None:
    root = class_folder({"cat": 3, "dog": 3})
    secret = save_picture(tmp_path / "far" / "a.png")
    if what == "picture":
        (root / "cat" / "z.png").symlink_to(secret)
    else:
        (root / "emu").symlink_to(secret.parent)
    assert "leaves the data folder" in refusal(root)


def test_a_link_inside_the_folder_is_followed(class_folder: Make) -> None:
    root = class_folder({"cat": 3, "dog": 3})
    (root / "dog" / "z.png").symlink_to(root / "dog" / "00.png")
    splits = read_folder(root)
    assert len(splits.train) + len(splits.test) == 7


def test_another_protocol_draws_from_ones_own_pictures_too(class_folder: Make) -> None:
    dataset = ImageFolder(class_folder({"cat": 9, "dog": 9}), shots=2, protocol="clip-lora")
    assert dataset.protocol == "clip-lora"
    assert (len(dataset.train), len(dataset.val)) == (4, 4)


# metadata beside the images

NAMES = ("cat", "dog")


def write_csv(folder: Path, rows: list[str], header: str = "file_name,label") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.csv").write_text("\n".join([header, *rows]))


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
        ("file_name,label", [], "metadata.csv: holds no images"),
        ("file_name,label", ["0.png,"], "metadata.csv, line 2: label is '', but text was expected"),
        ("file_name,label", [".,cat"], "metadata.csv, line 2: file_name is '.', but an image was expected"),
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


GOOD_TABLE = "path,label,split,novel\na.png,x,train,0\nb.png,y_y,train,1\nc.png,x,val,\nd.png,y_y,test,true\n"


def table(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def table_refusal(folder: Path, text: str | bytes, name: str = "t.csv") -> str:
    with pytest.raises(UserError) as caught:
        read_table(table(folder, text, name))
    message = str(caught.value)
    assert message.startswith(str(folder / name))
    return message.removeprefix(str(folder / name))


def test_columns_become_parts_labels_and_novelty(tmp_path: Path) -> None:
    splits = read_table(table(tmp_path, GOOD_TABLE))
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
    assert read_table(table(tmp_path, text, "t.jsonl")) == read_table(table(tmp_path, GOOD_TABLE))


@pytest.mark.parametrize("change", [lambda t: "\ufeff" + t, lambda t: t.replace("\n", "\r\n"), lambda t: t + "\n\n"])
def test_byte_order_marks_windows_line_ends_and_empty_lines_change_nothing(tmp_path: Path, change) -> None:
    assert read_table(table(tmp_path, change(GOOD_TABLE))) == read_table(table(tmp_path, GOOD_TABLE))


@pytest.mark.parametrize("mark", [";", "\t"])
def test_semicolons_and_tabulators_of_spreadsheets_are_read_too(tmp_path: Path, mark: str) -> None:
    assert read_table(table(tmp_path, GOOD_TABLE.replace(",", mark))) == read_table(table(tmp_path, GOOD_TABLE))


def test_columns_may_stand_in_any_order(tmp_path: Path) -> None:
    splits = read_table(table(tmp_path, 'label,path\nx,"a, b.png"\nx,b.png\ny,c.png\n'))
    assert {item.path.name for item in (*splits.train, *splits.test)} == {"a, b.png", "b.png", "c.png"}


def test_paths_are_relative_to_the_given_root(tmp_path: Path) -> None:
    splits = read_table(table(tmp_path, GOOD_TABLE), tmp_path / "elsewhere")
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
        ("path,label\n", ": holds no images"),
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
    assert table_refusal(tmp_path, text).startswith(problem)


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
        ("", ": holds no images"),
    ],
)
def test_bad_jsonl_is_refused_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    assert table_refusal(tmp_path, text, "t.jsonl").startswith(problem)


def test_a_detour_through_the_folder_above_is_the_same_picture(tmp_path: Path) -> None:
    text = f"path,label\na.png,x\nb.png,x\n../{tmp_path.name}/a.png,y\n"
    assert table_refusal(tmp_path, text).startswith(f", line 4: lists '../{tmp_path.name}/a.png' again, after line 2")


def test_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.png").touch()
    (folder / "a.png").symlink_to(tmp_path / "secret.png")
    assert "'a.png' leaves the data folder" in table_refusal(folder, "path,label\na.png,x\n")


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    assert ": is neither .csv nor .jsonl" in table_refusal(tmp_path, "", "t.xlsx")


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.csv: cannot be read \(No such file or directory\)"):
        read_table(tmp_path / "no.csv")
