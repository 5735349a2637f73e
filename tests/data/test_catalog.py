from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mmprompt.data import catalog
from mmprompt.data.catalog import list_datasets, load_dataset, read_card, read_splits
from mmprompt.errors import UserError

Make = Callable[..., Path]

TOY = """
name: toy
title: Two kinds
layout: coop
folder: toy
images: images
split: split.json
template: a photo of a {}.
licence: none
source: https://example.org
rename: {Feline: cat}
recipe: {lr: 2e-3, epochs: 20}
"""


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    folder = tmp_path / "cards"
    folder.mkdir()
    (folder / "toy.yaml").write_text(TOY)
    return folder


@pytest.fixture
def root(tmp_path: Path, save_picture: Make) -> Path:
    """The toy set with 8 train, 6 val and 3 test images of each of two classes."""
    split: dict[str, list[list[object]]] = {}
    for part, count in {"train": 8, "val": 6, "test": 3}.items():
        names = [
            (f"{kind}/{part}{index}.png", label, kind)
            for label, kind in ((1, "dog"), (0, "Feline"))
            for index in range(count)
        ]
        split[part] = [list(name) for name in names]
        for path, _, _ in names:
            save_picture(tmp_path / "root" / "toy" / "images" / path)
    (tmp_path / "root" / "toy" / "split.json").write_text(json.dumps(split))
    return tmp_path / "root"


def refusal(call: Callable[..., object], *args: object) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    return str(caught.value)


def test_every_card_of_the_project_is_valid() -> None:
    names = [card.name for card in list_datasets()]
    assert names == sorted(names)
    tasks = ("left", "right", "large", "small", "emotion", "action", "category")
    assert {"caltech101", *(f"openart-{task}" for task in tasks)} <= set(names)


def test_artwork_is_never_mirrored() -> None:
    assert {card.augment for card in list_datasets() if card.name.startswith("openart-")} == {"none"}


def test_a_users_card_is_found_in_the_given_folder(cards: Path) -> None:
    assert "toy" in {card.name for card in list_datasets(cards)}
    assert "toy" not in {card.name for card in list_datasets()}


def test_cards_are_found_in_the_installed_package(tmp_path: Path, cards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site" / "mmprompt").mkdir(parents=True)
    cards.rename(tmp_path / "site" / "mmprompt" / "datasets_cfg")
    monkeypatch.setattr(catalog, "_PACKAGE", tmp_path / "site" / "mmprompt")
    assert [card.name for card in list_datasets()] == ["toy"]


def test_cards_are_found_in_the_checkout(tmp_path: Path, cards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards.rename(tmp_path / "datasets_cfg")
    monkeypatch.setattr(catalog, "_PACKAGE", tmp_path / "mmprompt")
    assert [card.name for card in list_datasets()] == ["toy"]


def test_a_dataset_has_few_shots_a_whole_test_part_and_what_its_card_says(cards: Path, root: Path) -> None:
    dataset = load_dataset("toy", root, shots=5, seed=1, datasets_dir=cards)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (10, 8, 6)
    assert dataset.class_names == ("cat", "dog")
    assert (dataset.name, dataset.shots, dataset.seed, dataset.protocol) == ("toy", 5, 1, "coop")
    assert (dataset.template, dataset.augment, dataset.licence) == ("a photo of a {}.", "coop", "none")
    assert dataset.recipe == {"lr": 0.002, "epochs": 20}


def test_all_pictures_can_be_asked_for(cards: Path, root: Path) -> None:
    assert len(load_dataset("toy", root, shots=None, datasets_dir=cards).train) == 16


def test_a_folder_layout_reads_class_folders(tmp_path: Path, cards: Path, class_folder: Make) -> None:
    text = TOY.replace("layout: coop", "layout: folder").replace("folder: toy", "folder: pictures")
    (cards / "toy.yaml").write_text(text)
    class_folder({"cat": 5, "dog": 5})
    assert len(load_dataset("toy", tmp_path, datasets_dir=cards).train) == 8


def test_pictures_of_the_package_come_from_its_archive(
    tmp_path: Path, cards: Path, save_picture: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    art = tmp_path / "mmprompt" / "assets" / "art"
    art.mkdir(parents=True)
    rows = ["path,label,split,novel"]
    with zipfile.ZipFile(art / "pictures.zip", "w") as handle:
        for index in range(12):
            picture = save_picture(tmp_path / "p.png", index)
            handle.write(picture, f"{index}.png")
            rows.append(
                f"{index}.png,{'cat' if index % 2 else 'dog'},{('train', 'val', 'test')[index // 4]},{index % 2}"
            )
    (art / "toy.csv").write_text("\n".join(rows))
    text = TOY.replace("layout: coop", "layout: csv\narchive: art/pictures.zip\ncsv: art/toy.csv")
    (cards / "toy.yaml").write_text(text)
    monkeypatch.setattr(catalog, "_PACKAGE", tmp_path / "mmprompt")
    monkeypatch.setenv("MMPROMPT_CACHE", str(tmp_path / "cache"))
    dataset = load_dataset("toy", shots=1, datasets_dir=cards)
    assert dataset.root.parent == tmp_path / "cache"
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (2, 2, 4)
    assert [item.novel for item in dataset.test] == [False, True] * 2
    assert "the images of toy are in the package. Leave `root` out." in refusal(
        load_dataset, "toy", tmp_path, 1, 1, cards
    )


def test_a_table_below_the_root_needs_no_archive(tmp_path: Path, cards: Path, class_folder: Make) -> None:
    pictures = class_folder({"cat": 4, "dog": 4})
    rows = [f"{path.relative_to(pictures)},{path.parent.name}" for path in sorted(pictures.rglob("*.png"))]
    (pictures / "all.csv").write_text("\n".join(["path,label", *rows]))
    text = TOY.replace("layout: coop", "layout: csv\ncsv: all.csv").replace("folder: toy", "folder: pictures")
    (cards / "toy.yaml").write_text(text)
    assert len(load_dataset("toy", tmp_path, datasets_dir=cards).test) == 2


@pytest.mark.parametrize("layout", ["folder", "csv\ncsv: all.csv"])
def test_a_card_renames_and_rewrites_the_classes_of_folders_and_tables(
    tmp_path: Path, cards: Path, class_folder: Make, layout: str
) -> None:
    pictures = class_folder({"Feline": 4, "Audi TT 2011": 4})
    rows = [f"{path.relative_to(pictures)},{path.parent.name}" for path in sorted(pictures.rglob("*.png"))]
    (pictures / "all.csv").write_text("\n".join(["path,label", *rows]))
    text = TOY.replace("layout: coop", f"layout: {layout}\nrewrite: year-first").replace(
        "folder: toy", "folder: pictures"
    )
    (cards / "toy.yaml").write_text(text)
    data = load_dataset("toy", tmp_path, datasets_dir=cards)
    assert data.class_names == ("2011 Audi TT", "cat")
    assert {(item.path.parent.name, data.class_names[item.label]) for item in data.train} == {
        ("Audi TT 2011", "2011 Audi TT"),
        ("Feline", "cat"),
    }


def test_a_wrong_name_is_refused_with_the_nearest() -> None:
    assert "there is no dataset named 'caltech1O1'. Did you mean 'caltech101'?" in refusal(load_dataset, "caltech1O1")


@pytest.mark.parametrize("name", ["../toy", "toy.yaml", ""])
def test_a_name_is_no_path(cards: Path, name: str) -> None:
    assert f"there is no dataset named {name!r}" in refusal(read_card, name, cards)


def test_a_missing_root_is_refused_with_the_source(cards: Path) -> None:
    assert refusal(load_dataset, "toy", None, 16, 1, cards) == (
        "no root was given, but a folder 'toy' of toy is looked for below it. "
        "Give `root`, or get it: https://example.org"
    )


def test_a_root_without_the_folder_is_refused_with_the_source(tmp_path: Path, cards: Path) -> None:
    text = refusal(load_dataset, "toy", tmp_path, 16, 1, cards)
    assert text.startswith(f"{tmp_path}/toy: is not there. Give the `root` that holds a folder 'toy' of toy")
    assert "https://example.org" in text


@pytest.mark.parametrize("lost", ["split.json", "images"])
def test_a_missing_split_file_or_picture_folder_is_refused_and_never_made(cards: Path, root: Path, lost: str) -> None:
    os.rename(root / "toy" / lost, root / "kept")  # noqa: PTH104
    text = refusal(load_dataset, "toy", root, 16, 1, cards)
    never = ", and is never made up" if lost == "split.json" else ""
    assert f"toy/{lost}: is not there{never}. Get it: https://example.org" in text
    assert not (root / "toy" / lost).exists()


def test_a_missing_picture_is_refused(cards: Path, root: Path) -> None:
    (root / "toy" / "images" / "dog" / "test0.png").unlink()
    assert "dog/test0.png: is not there" in refusal(load_dataset, "toy", root, 16, 1, cards)


def test_a_second_dataset_of_one_name_is_refused(cards: Path) -> None:
    (cards / "caltech101.yaml").write_text(TOY)
    assert "caltech101.yaml: is a second dataset named 'caltech101'" in refusal(list_datasets, cards)


def test_a_missing_datasets_folder_is_refused(tmp_path: Path) -> None:
    assert "is not a folder. Give `datasets_dir` a folder of YAML files" in refusal(list_datasets, tmp_path / "no")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("name: toy", "name: toi", "name is 'toi', but the file is named 'toy'"),
        ("title:", "titel:", "there is no key named 'titel'. Did you mean 'title'?"),
        ("licence: none\n", "", "lacks the key 'licence'"),
        (
            "layout: coop",
            "layout: coco",
            "layout is 'coco', but input should be 'csv', 'coop', 'folder', 'aircraft' or 'imagenet'",
        ),
        ("a photo of a {}.", "a photo", "exactly one {} is needed"),
        ("split: split.json\n", "", "split is empty, but the layout coop needs it"),
        ("title: Two kinds", "title: Two kinds\narchive: a.zip", "the layout coop cannot have one"),
        ("layout: coop", "layout: imagenet\nrewrite: camel-case", "the layout imagenet has a list of readable names"),
        ("title: Two kinds", "title: Two kinds\nsizes: {tran: 1}", "sizes"),
        ("title: Two kinds", "title: Two kinds\ntitle: x", "line 4: repeats the key 'title'"),
    ],
)
def test_a_bad_card_is_refused_with_file_and_key(cards: Path, old: str, new: str, problem: str) -> None:
    (cards / "toy.yaml").write_text(TOY.replace(old, new))
    text = refusal(read_card, "toy", cards)
    assert text.startswith(str(cards / "toy.yaml"))
    assert problem in text


def test_folders_of_a_card_stay_below_the_root(tmp_path: Path, cards: Path) -> None:
    (cards / "toy.yaml").write_text(TOY.replace("folder: toy", "folder: ../toy"))
    assert "folder is '../toy', but a path below the root was expected" in refusal(
        load_dataset, "toy", tmp_path, 16, 1, cards
    )


@pytest.mark.real_data
def test_caltech101_has_the_published_sizes_and_names() -> None:
    real = os.environ.get("MMPROMPT_REAL_DATA")
    if not real:
        pytest.skip("MMPROMPT_REAL_DATA does not name the folder that holds caltech-101")
    card = read_card("caltech101")
    splits = read_splits(card, real)
    assert {part: len(splits.items(part)) for part in ("train", "val", "test")} == card.sizes
    assert len(splits.class_names) == card.n_classes
    assert splits.class_names[:5] == ("face", "leopard", "motorbike", "accordion", "airplane")
    assert not any("_" in name for name in splits.class_names)
    dataset = load_dataset("caltech101", real, shots=16, seed=1)
    assert (len(dataset.train), len(dataset.val)) == (1600, 400)
