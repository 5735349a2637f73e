from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmprompt.classification.cli.train import read_call
from mmprompt.classification.methods.coop import CoOp
from mmprompt.classification.task import ClassificationTask
from mmprompt.core.method import resolved_recipe
from mmprompt.data.catalog import load_dataset, read_card, read_splits
from mmprompt.data.layouts import find_parts
from mmprompt.data.splits import Item, Splits
from mmprompt.errors import UserError

Make = Callable[..., Path]
PICTURES = ("a.jpg", "b.jpg", "c.jpg")


def touch(*paths: Path) -> None:
    """Pictures that are only listed and never opened."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def read(name: str, root: Path) -> Splits:
    return read_splits(read_card(name), root)


def refusal(name: str, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(name, root)
    return str(caught.value)


def listed(splits: Splits, split: str) -> list[tuple[str, str]]:
    items: tuple[Item, ...] = splits.items(split)
    return [(item.path.name, splits.class_names[item.label]) for item in items]


def write_split(path: Path, names: tuple[str, str]) -> None:
    parts = {
        part: [[f"{label}/{part}.jpg", label, name] for label, name in enumerate(names)]
        for part in ("train", "val", "test")
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(parts))


# CoOp's layout


def test_a_set_is_found_below_the_folder_name_of_torchvision_with_coops_split_file_in_it(tmp_path: Path) -> None:
    (tmp_path / "caltech101" / "101_ObjectCategories").mkdir(parents=True)
    write_split(tmp_path / "caltech101" / "split_zhou_Caltech101.json", ("face", "airplane"))
    assert read("caltech101", tmp_path).root.parent.name == "caltech101"


def test_sun397_is_found_in_the_folder_of_torchvision(tmp_path: Path) -> None:
    write_split(tmp_path / "SUN397" / "split_zhou_SUN397.json", ("abbey", "indoor_apse"))
    splits = read("sun397", tmp_path)
    assert splits.class_names == ("abbey", "indoor apse")
    assert splits.root == (tmp_path / "SUN397").resolve()


def test_a_set_may_be_a_link_to_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "far" / "2750").mkdir(parents=True)
    write_split(tmp_path / "far" / "split_zhou_EuroSAT.json", ("Annual Crop Land", "Forest"))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "eurosat").symlink_to(tmp_path / "far")
    assert len(read("eurosat", tmp_path / "root").test) == 2


def test_what_is_there_and_what_is_missing_is_told_with_the_way_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "eurosat" / "2750").mkdir(parents=True)
    pictures, split = find_parts(read_card("eurosat"), tmp_path)
    assert (pictures.path, pictures.is_there) == (tmp_path / "eurosat" / "2750", True)
    assert (split.path.name, split.is_there) == ("split_zhou_EuroSAT.json", False)
    assert split.get.startswith("gdown 1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o")


def test_torchvisions_eurosat_has_no_split_and_none_is_made(tmp_path: Path) -> None:
    touch(tmp_path / "eurosat" / "2750" / "Forest" / "Forest_1.jpg")
    text = refusal("eurosat", tmp_path)
    assert "eurosat/split_zhou_EuroSAT.json: is not there, and is never made up. Get it: gdown" in text
    assert len(list((tmp_path / "eurosat").iterdir())) == 1


def test_pictures_that_are_missing_are_not_called_made_up(tmp_path: Path) -> None:
    write_split(tmp_path / "eurosat" / "split_zhou_EuroSAT.json", ("Annual Crop Land", "Forest"))
    assert "eurosat/2750: is not there. Get it: curl " in refusal("eurosat", tmp_path)


# torchvision's layouts


def test_torchvisions_pets_give_the_official_split_and_say_so(tmp_path: Path) -> None:
    annotations = tmp_path / "oxford-iiit-pet" / "annotations"
    annotations.mkdir(parents=True)
    (annotations / "trainval.txt").write_text("yorkshire_terrier_9 2 2 25\nAbyssinian_1 1 1 1\n")
    (annotations / "test.txt").write_text("Abyssinian_2 1 1 1\n")
    splits = read("oxford_pets", tmp_path)
    assert splits.class_names == ("abyssinian", "yorkshire terrier")
    assert listed(splits, "train") == [
        ("yorkshire_terrier_9.jpg", "yorkshire terrier"),
        ("Abyssinian_1.jpg", "abyssinian"),
    ]
    assert listed(splits, "test") == [("Abyssinian_2.jpg", "abyssinian")]
    assert "not Zhou's" in splits.notes[0]
    assert "no validation part" in splits.notes[0]
    assert splits.is_official


def test_a_run_on_the_official_split_says_so_in_its_protocol(tmp_path: Path) -> None:
    base = tmp_path / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for part in ("train", "val", "test"):
        (base / "labels" / f"{part}1.txt").write_text(f"dotted/{part}.jpg\nbanded/{part}.jpg\n")
        touch(base / "images" / "dotted" / f"{part}.jpg", base / "images" / "banded" / f"{part}.jpg")
    assert load_dataset("dtd", tmp_path, shots=1).protocol == "official"
    assert load_dataset("dtd", tmp_path, shots=1, protocol="clip-lora").protocol == "official, clip-lora"


def test_a_layout_of_torchvisions_that_is_not_whole_is_named(tmp_path: Path) -> None:
    (tmp_path / "oxford-iiit-pet" / "images").mkdir(parents=True)
    assert "oxford-iiit-pet: is not whole as torchvision's OxfordIIITPet has it" in refusal("oxford_pets", tmp_path)


def test_a_list_of_torchvisions_cannot_lead_out(tmp_path: Path) -> None:
    (tmp_path / "food-101" / "meta").mkdir(parents=True)
    (tmp_path / "food-101" / "images").mkdir()
    for part in ("train", "test"):
        meta = {"waffles": ["waffles/1"], "apple_pie": ["../../far/a"]}
        (tmp_path / "food-101" / "meta" / f"{part}.json").write_text(json.dumps(meta))
    assert "'images/../../far/a.jpg' leaves the data folder" in refusal("food101", tmp_path)


def test_torchvisions_food_is_read_where_the_split_file_is_missing(tmp_path: Path) -> None:
    base = tmp_path / "food-101"
    (base / "meta").mkdir(parents=True)
    (base / "images").mkdir()
    for part, name in (("train", "1"), ("test", "2")):
        meta = {kind: [f"{kind}/{name}"] for kind in ("waffles", "apple_pie")}
        (base / "meta" / f"{part}.json").write_text(json.dumps(meta))
    splits = read("food101", tmp_path)
    assert splits.class_names == ("apple pie", "waffles")
    assert sorted(listed(splits, "test")) == [("2.jpg", "apple pie"), ("2.jpg", "waffles")]
    (base / "split_zhou_Food101.json").write_text("{}")
    assert "is not one object of train, val and test" in refusal("food101", tmp_path)  # now CoOp's file counts


def test_torchvisions_textures_have_three_parts(tmp_path: Path) -> None:
    base = tmp_path / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for part in ("train", "val", "test"):
        (base / "labels" / f"{part}1.txt").write_text(f"dotted/{part}.jpg\nbanded/{part}.jpg\n")
    splits = read("dtd", tmp_path)
    assert splits.class_names == ("banded", "dotted")
    assert [len(splits.items(part)) for part in ("train", "val", "test")] == [2, 2, 2]
    assert "no validation part" not in splits.notes[0]


def test_torchvisions_cars_have_the_year_in_front(tmp_path: Path) -> None:
    io = pytest.importorskip("scipy.io", reason="the labels of this set are .mat files, which scipy reads")
    import numpy as np

    base = tmp_path / "stanford_cars"
    for folder in ("devkit", "cars_train", "cars_test"):
        (base / folder).mkdir(parents=True)
    kind = np.dtype([("fname", object), ("class", object)])
    rows = {"annotations": np.array([("1.jpg", 1), ("2.jpg", 2)], dtype=kind)}
    io.savemat(base / "devkit" / "cars_train_annos.mat", rows)
    io.savemat(base / "cars_test_annos_withlabels.mat", rows)
    names = np.array(["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"], dtype=object)
    io.savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})
    splits = read("stanford_cars", tmp_path)
    assert splits.class_names == ("2000 AM General Hummer SUV", "2012 Ram C/V Cargo Van Minivan")
    assert listed(splits, "train")[1] == ("2.jpg", "2012 Ram C/V Cargo Van Minivan")


def test_torchvisions_flowers_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io = pytest.importorskip("scipy.io", reason="the labels of this set are .mat files, which scipy reads")
    from torchvision.datasets import Flowers102

    files: dict[str, Any] = {key: (name, None) for key, (name, _) in Flowers102._file_dict.items()}
    monkeypatch.setattr(Flowers102, "_file_dict", files)  # its hashes are those of the real files
    base = tmp_path / "flowers-102"
    (base / "jpg").mkdir(parents=True)
    io.savemat(base / "imagelabels.mat", {"labels": [[1, 2, 1, 2, 1, 2]]})
    io.savemat(base / "setid.mat", {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[5, 6]]})
    splits = read("oxford_flowers", tmp_path)
    assert splits.class_names[0] == "pink primrose"
    assert listed(splits, "val") == [("image_00003.jpg", "pink primrose"), ("image_00004.jpg", splits.class_names[1])]


def test_a_damaged_list_of_torchvisions_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    (base / "labels" / "train1.txt").write_text("dotted\n")
    assert "dtd/dtd: is not whole" in refusal("dtd", tmp_path)


# the lists of FGVC-Aircraft


@pytest.fixture(params=["fgvc_aircraft", "fgvc-aircraft-2013b/data"])
def aircraft(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    base = tmp_path / str(request.param)
    (base / "images").mkdir(parents=True)
    (base / "variants.txt").write_text("707-320\nF/A-18\n")
    for part, number in (("train", "1"), ("val", "2"), ("test", "3")):
        (base / f"images_variant_{part}.txt").write_text(f"000{number} F/A-18\n001{number} 707-320\n")
    return base


def test_aircraft_are_labelled_by_the_line_of_their_variant(aircraft: Path, tmp_path: Path) -> None:
    splits = read("fgvc_aircraft", tmp_path)
    assert splits.class_names == ("707-320", "F/A-18")
    assert listed(splits, "train") == [("0001.jpg", "F/A-18"), ("0011.jpg", "707-320")]
    assert [item.label for item in splits.train] == [1, 0]


def test_aircraft_are_renamed_and_rewritten_as_the_card_says(aircraft: Path, tmp_path: Path) -> None:
    card = replace(read_card("fgvc_aircraft"), rename={"707-320": "Boeing 707"}, rewrite="lower-case")
    assert read_splits(card, tmp_path).class_names == ("Boeing 707", "f/a-18")


def test_an_unknown_variant_is_refused_with_its_line(aircraft: Path, tmp_path: Path) -> None:
    (aircraft / "images_variant_test.txt").write_text("0003 F/A-18\n0013 F/A-81\n")
    assert "images_variant_test.txt, line 2: there is no variant named 'F/A-81'" in refusal("fgvc_aircraft", tmp_path)


def test_an_aircraft_that_leaves_the_folder_is_refused(aircraft: Path, tmp_path: Path) -> None:
    (aircraft / "images_variant_test.txt").write_text("../../x F/A-18\n")
    assert "leaves the data folder" in refusal("fgvc_aircraft", tmp_path)


def test_a_missing_list_of_aircraft_is_refused(aircraft: Path, tmp_path: Path) -> None:
    (aircraft / "images_variant_val.txt").unlink()
    assert "images_variant_val.txt: is not there, and is never made up" in refusal("fgvc_aircraft", tmp_path)


# ImageNet and its relatives

WNIDS = ("n01", "n02", "n03")
NAMES = "n01 tench\nn02 gold fish\nn03 shark\n"


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    base = tmp_path / "imagenet"
    for wnid in WNIDS:
        touch(
            *(base / "images" / "train" / wnid / name for name in PICTURES), base / "images" / "val" / wnid / "v.JPEG"
        )
    (base / "classnames.txt").write_text(NAMES)
    return base


def test_imagenet_is_labelled_by_sorted_folder_and_tested_on_its_val_folder(imagenet: Path, tmp_path: Path) -> None:
    splits = read("imagenet", tmp_path)
    assert splits.class_names == ("tench", "gold fish", "shark")
    assert [item.label for item in splits.train] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert listed(splits, "test")[1] == ("v.JPEG", "gold fish")
    assert splits.val == ()
    assert "never used to choose anything" in splits.notes[0]


@pytest.mark.parametrize("shots", [1, 4, 16, None])
def test_imagenet_is_trained_50_epochs_as_published_whatever_the_shots(
    imagenet: Path, tmp_path: Path, shots: int | None
) -> None:
    data, backbone = load_dataset("imagenet", tmp_path, shots=shots), "open_clip:ViT-B-16/openai"
    recipe = resolved_recipe(CoOp(), (backbone, "classification"), data.recipe, None)
    assert ClassificationTask.of(data).complete(recipe).epochs == 50
    words = ["--data", "imagenet", "--backbone", backbone, "--shots", str(shots)]
    assert read_call(words, "train").recipe.epochs == 50
    assert read_call([*words, "--epochs", "20"], "train").recipe.epochs == 20


def test_imagenet_without_names_is_refused(imagenet: Path, tmp_path: Path) -> None:
    (imagenet / "classnames.txt").unlink()
    assert "classnames.txt: is not there, and is never made up. Get it: gdown" in refusal("imagenet", tmp_path)


def test_imagenet_as_torchvision_has_it_takes_its_names_from_open_clip(tmp_path: Path) -> None:
    doubled = {744: "n04008634", 836: "n04355933"}  # the two whose names the card tells apart
    for number in range(1000):
        above = sum(number > limit for limit in doubled)
        wnid = doubled.get(number, f"n0{('3', '401', '5')[above]}{number:04d}")
        for part in ("train", "val"):
            touch(tmp_path / part / wnid / "a.JPEG")
    splits = read("imagenet", tmp_path)
    assert splits.class_names[:2] == ("tench", "goldfish")
    assert (splits.class_names[744], splits.class_names[836]) == ("projectile", "sunglass")
    assert "those that open_clip ships" in splits.notes[1]


@pytest.mark.parametrize("what", ["picture", "folder"])
def test_a_link_out_of_imagenet_is_refused(imagenet: Path, tmp_path: Path, what: str) -> None:
    touch(tmp_path / "far" / "a.jpg")
    place = imagenet / "images" / "train" / ("n01/z.jpg" if what == "picture" else "n04")
    place.symlink_to(tmp_path / "far" / "a.jpg" if what == "picture" else tmp_path / "far")
    assert f"{place.name!r} leaves" in refusal("imagenet", tmp_path).replace("'n01/z", "'z")


def test_imagenets_train_and_val_may_be_links(imagenet: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        (imagenet / "images" / part).rename(tmp_path / part)
        (imagenet / "images" / part).symlink_to(tmp_path / part)
    assert len(read("imagenet", tmp_path).train) == 9


def test_a_root_without_imagenet_is_told_of_coops_folder(tmp_path: Path) -> None:
    assert find_parts(read_card("imagenet"), tmp_path)[0].path == tmp_path / "imagenet" / "images"


def test_an_imagenet_class_without_a_picture_is_refused(imagenet: Path, tmp_path: Path) -> None:
    for path in (imagenet / "images" / "train" / "n02").iterdir():
        path.unlink()
    assert "train/n02: is a class without images" in refusal("imagenet", tmp_path)


def test_other_classes_in_train_than_in_test_are_refused(imagenet: Path, tmp_path: Path) -> None:
    touch(imagenet / "images" / "train" / "n04" / "a.jpg")
    assert "train and test differ in the classes n04" in refusal("imagenet", tmp_path)


def test_two_classes_of_one_name_are_told_apart_by_the_card(tmp_path: Path) -> None:
    base = tmp_path / "imagenet-sketch"
    wnids = ("n03773504", "n04008634")
    touch(*(base / "images" / wnid / "a.jpg" for wnid in wnids))
    (base / "classnames.txt").write_text("n03773504 missile\nn04008634 missile\n")
    assert read("imagenet_sketch", tmp_path).class_names == ("missile", "projectile")


def test_a_relative_has_only_its_own_classes_relabelled(tmp_path: Path) -> None:
    base = tmp_path / "imagenet-adversarial"
    touch(base / "imagenet-a" / "n03" / "a.jpg", base / "imagenet-a" / "n01" / "a.jpg")
    touch(base / "imagenet-a" / "README.txt")
    (base / "classnames.txt").write_text(NAMES)
    splits = read("imagenet_a", tmp_path)
    assert splits.class_names == ("tench", "shark")
    assert [item.label for item in splits.test] == [0, 1]
    assert splits.train == ()


def test_numbered_folders_mean_lines_of_the_names(tmp_path: Path) -> None:
    base = tmp_path / "imagenetv2"
    images = base / "imagenetv2-matched-frequency-format-val"
    touch(*(images / str(number) / "a.jpeg" for number in range(11)))
    (base / "classnames.txt").write_text("".join(f"n{line:02d} name {line}\n" for line in range(11)))
    splits = read("imagenetv2", tmp_path)
    assert splits.class_names == tuple(f"name {line}" for line in range(11))
    assert [item.path.parent.name for item in splits.test] == [str(number) for number in range(11)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("n01 tench\nn02\nn03 shark\n", "classnames.txt, line 2: has no class name"),
        ("n01 tench\nn01 fish\n", "classnames.txt, line 2: names the folder n01 again"),
        ("n01 tench\nn02 fish\n", "n03: is a class that classnames.txt does not name"),
        ("n01 tench\nn02 tench\nn03 fish\n", "'n01' and 'n02' are both the class 'tench'"),
    ],
)
def test_bad_names_are_refused(imagenet: Path, tmp_path: Path, text: str, problem: str) -> None:
    (imagenet / "classnames.txt").write_text(text)
    assert problem in refusal("imagenet", tmp_path)


def test_a_set_of_this_form_loads_with_its_shots(imagenet: Path, tmp_path: Path) -> None:
    dataset = load_dataset("imagenet", tmp_path, shots=2, seed=1)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (6, 0, 3)
    assert len(dataset.templates) == 80
