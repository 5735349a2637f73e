"""`data check`, `data split` and `data shots`, and broken pictures in a training, from the command line."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmprompt.cli.main import main
from tests.fixtures.cli_run import COLOURS, write_pictures

Capture = pytest.CaptureFixture[str]


def train(folder: Path, model: Path, out: Path, *more: str) -> int:
    quick = ["--n-ctx", "2", "--shots", "2", "--epochs", "1", "--device", "cpu"]
    return main(["train", "--data", str(folder), "--backbone", str(model), "--out", str(out), *quick, *more])


def break_one(folder: Path) -> Path:
    path = folder / "red" / "0.png"
    path.write_bytes(path.read_bytes()[:200])
    return path


def test_split_writes_a_file_that_trains(tmp_path: Path, tiny_open_clip_folder: Path, capsys: Capture) -> None:
    folder = write_pictures(tmp_path / "own", COLOURS, n=6)
    assert main(["data", "split", str(folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["sizes"] == {"train": 12, "val": 3, "test": 3}
    assert train(Path(document["split"]), tiny_open_clip_folder, tmp_path / "run") == 0


def test_split_says_how_to_use_a_file_that_lies_elsewhere(tmp_path: Path, capsys: Capture) -> None:
    folder = write_pictures(tmp_path / "own", COLOURS, n=6)
    assert main(["data", "split", str(folder), "--out", str(tmp_path / "kept.json")]) == 0
    said = capsys.readouterr().out
    assert f"mmprompt train --data {tmp_path}/kept.json --root {folder}" in said
    assert main(["data", "check", "--data", str(tmp_path / "kept.json"), "--root", str(folder)]) == 0


def test_split_never_writes_over_a_file(tmp_path: Path, capsys: Capture) -> None:
    folder = write_pictures(tmp_path / "own", COLOURS, n=6)
    assert main(["data", "split", str(folder)]) == 0
    before = (folder / "split-seed1.json").read_bytes()
    assert main(["data", "split", str(folder), "--test", "0.4"]) == 2
    assert "is there already, and a split is never written over" in capsys.readouterr().err
    assert (folder / "split-seed1.json").read_bytes() == before


def test_check_tells_what_is_missing_and_how_to_get_it(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "eurosat" / "2750").mkdir(parents=True)
    assert main(["data", "check", "eurosat", "--root", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert f"There: {tmp_path}/eurosat/2750\n" in said.out
    assert f"Missing: {tmp_path}/eurosat/split_zhou_EuroSAT.json\n" in said.out
    assert f"To get what is missing:\n  mkdir -p {tmp_path}/eurosat && cd {tmp_path}/eurosat\n  gdown " in said.out
    assert len(said.err.splitlines()) == 1


def test_the_list_has_classes_and_sizes(capsys: Capture) -> None:
    assert main(["data", "list"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("caltech101"))
    assert line.split("things")[1].split()[:4] == ["100", "4,128", "1,649", "2,465"]


def test_a_set_of_test_pictures_alone_says_that_nothing_is_drawn(tmp_path: Path, capsys: Capture) -> None:
    folder = write_pictures(tmp_path / "own" / "test", COLOURS, n=2)
    assert main(["data", "shots", "--data", str(folder.parent)]) == 0
    assert "Note: own has test images only, so nothing is drawn." in capsys.readouterr().out


def test_check_counts_the_official_split_of_torchvision_by_no_other_sizes(tmp_path: Path, capsys: Capture) -> None:
    base = tmp_path / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for part in ("train", "val", "test"):
        (base / "labels" / f"{part}1.txt").write_text(f"dotted/{part}.jpg\nbanded/{part}.jpg\n")
    assert main(["data", "check", "dtd", "--root", str(tmp_path)]) == 2
    said = capsys.readouterr().out
    assert "Problem: there are 2 classes, but 47 were expected." in said
    assert "images, but" not in said
    assert "Warning: The split is the official one that torchvision reads, not Zhou's" in said


def test_check_with_json_lists_the_parts_even_when_the_set_cannot_be_read(tmp_path: Path, capsys: Capture) -> None:
    assert main(["data", "check", "eurosat", "--root", str(tmp_path), "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["is_ok"] is False
    assert [part["is_there"] for part in document["parts"]] == [False, False]


def test_shots_are_drawn_by_the_named_protocol(pictures: Path, capsys: Capture) -> None:
    drawn = {}
    for protocol in ("coop", "clip-lora"):
        words = ["--data", str(pictures), "--shots", "2", "--seed", "1", "--protocol", protocol, "--json"]
        assert main(["data", "shots", *words]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["protocol"] == {"coop": "folder"}.get(protocol, protocol)
        drawn[protocol] = document["drawn"]
    assert drawn["coop"] != drawn["clip-lora"]


def test_an_unknown_protocol_exits_2(pictures: Path, capsys: Capture) -> None:
    assert main(["data", "shots", "--data", str(pictures), "--protocol", "cop"]) == 2
    assert "there is no protocol named 'cop'. Did you mean 'coop'?" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--protocol coop", "--template {}", "--skip-broken", "--strict"])
def test_check_has_no_option_of_a_draw(option: str, pictures: Path, capsys: Capture) -> None:
    assert main(["data", "check", "--data", str(pictures), *option.split()]) == 2
    assert f"there is no option {option.split()[0]}" in capsys.readouterr().err


def test_a_broken_picture_stops_a_training_at_the_start_by_name(
    tmp_path: Path, tiny_open_clip_folder: Path, capsys: Capture
) -> None:
    folder = write_pictures(tmp_path / "own", COLOURS, n=2)
    path = break_one(folder)
    assert train(folder, tiny_open_clip_folder, tmp_path / "run", "--strict") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert str(path) in lines[0]
    assert "--skip-broken" in lines[0]
    assert not (tmp_path / "run").exists()


def test_broken_pictures_are_left_out_on_demand_and_eval_does_the_same(
    tmp_path: Path, tiny_open_clip_folder: Path, capsys: Capture
) -> None:
    for part in ("train", "test"):
        write_pictures(tmp_path / "own" / part, COLOURS, n=3)
    break_one(tmp_path / "own" / "test")
    assert train(tmp_path / "own", tiny_open_clip_folder, tmp_path / "run", "--skip-broken") == 0
    assert "Note: Broken images left out, 1: test/red/0.png." in capsys.readouterr().out
    assert main(["eval", str(tmp_path / "run"), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "8 images" in said
    assert "Note: Broken images left out" in said


def test_eval_says_that_a_part_of_other_pictures_was_held_out(
    tmp_path: Path, tiny_open_clip_folder: Path, capsys: Capture
) -> None:
    folder, other = (write_pictures(tmp_path / name, COLOURS, n=5) for name in ("own", "other"))
    assert train(folder, tiny_open_clip_folder, tmp_path / "run") == 0
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "run"), "--data", str(other), "--device", "cpu"]) == 0
    assert "Note: No test part was given: 3 of 15 images are held out for testing" in capsys.readouterr().out


def test_strict_and_skip_broken_exclude_each_other(pictures: Path, capsys: Capture) -> None:
    assert main(["data", "shots", "--data", str(pictures), "--strict", "--skip-broken"]) == 2
    assert "strict and skip_broken are both given" in capsys.readouterr().err


def heavy_modules(words: list[str]) -> set[str]:
    """The libraries, of those that take long to import, that a command loads."""
    program = f"from mmprompt.cli.main import main; assert main({words!r}) == 0; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"torch", "torchvision", "open_clip", "transformers", "timm", "sklearn", "numpy", "PIL"}
    return heavy & set(done.stdout.splitlines()[-1].split())


def write_imagenet(root: Path) -> None:
    for wnid, part in itertools.product(("n01", "n02"), ("train", "val")):
        write_pictures(root / "imagenet" / "images" / part, {wnid: (9, 9, 9)}, n=2)
    (root / "imagenet" / "classnames.txt").write_text("n01 tench\nn02 goldfish\n")


@pytest.mark.parametrize(
    "verb", ["list", "shots openart-left", "shots imagenet --shots 1 --root FOLDER", "split FOLDER/own"]
)
def test_what_needs_no_picture_opened_loads_no_heavy_library(verb: str, tmp_path: Path) -> None:
    write_pictures(tmp_path / "own", COLOURS, n=6)
    write_imagenet(tmp_path)
    assert heavy_modules(["data", *(word.replace("FOLDER", str(tmp_path)) for word in verb.split())]) == set()


def test_check_loads_what_opens_pictures_and_no_more(tmp_path: Path) -> None:
    write_pictures(tmp_path / "own", COLOURS, n=6)
    assert heavy_modules(["data", "check", "--data", str(tmp_path / "own")]) == {"numpy", "PIL"}
