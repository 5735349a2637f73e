"""Every refusal of the command line: exit 2, one line, nothing written, and its text as pinned in errors.json."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmprompt.cli.main import main
from tests.fixtures.cli_run import COLOURS, write_pictures

SNAPSHOT = Path(__file__).parents[1] / "snapshots" / "errors.json"
IS_PINNING = bool(os.environ.get("MMPROMPT_PIN"))


@pytest.fixture
def work(
    tmp_path: Path, run_folder: Path, pictures: Path, tiny_open_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder to stand in, with things that are wrong; `RUN`, `OWN` and `MODEL` stand for what is right."""
    for name, target in (("RUN", run_folder), ("OWN", pictures), ("MODEL", tiny_open_clip_folder)):
        (tmp_path / name).symlink_to(target)
    for folder in ("empty", "runs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "runs" / "objects").symlink_to(run_folder)
    (tmp_path / "file.txt").write_text("no picture")
    (tmp_path / "text.jpg").write_text("no picture")
    write_pictures(tmp_path / "one_class", {"red": COLOURS["red"]}, n=2)
    write_pictures(tmp_path / "long_name", {"red": COLOURS["red"], "house " * 20: COLOURS["blue"]}, n=2)
    truncated = write_pictures(tmp_path / "truncated", COLOURS, n=2)
    for path in truncated.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:200])
    (tmp_path / "empty_name.csv").write_text("path,label\none_class/red/0.png,red\none_class/red/1.png,\n")
    (tmp_path / "misspelt.yaml").write_text("n_ctxx: 3\n")
    (tmp_path / "cards").mkdir()
    card = "name: own\ntitle: own\nlayout: folder\ntemplate: '{}'\nlicence: none\nsource: none\nrecipe: {epoch: 3}\n"
    (tmp_path / "cards" / "own.yaml").write_text(card)
    (tmp_path / "repeated.yaml").write_text("seed: 1\nseed: 2\n")
    (tmp_path / "repeated.json").write_text('{"seed": 1, "seed": 2}')
    (tmp_path / "no_call.json").write_text('{"format": 1, "kind": "language", "call": null}')
    (tmp_path / "no_number.yaml").write_text("seed: soon\n")
    write_caption_files(tmp_path)
    run = json.loads((run_folder / "run.json").read_text())
    (tmp_path / "misspelt_run.json").write_text(json.dumps({**run, "recipee": {}}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_caption_files(folder: Path) -> None:
    """Captions with one mistake each, of a picture that is there."""
    right = {"image": "one_class/red/0.png", "captions": ["a red square"], "focus": "colours", "split": "train"}
    rows = {
        "empty_caption": {**right, "captions": ["a red square", " "]},
        "long_caption": {**right, "captions": ["red " * 1000]},
        "no_caption": {**right, "captions": []},
        "no_picture": {**right, "image": "one_class/red/9.png"},
        "outside": {**right, "image": "../0.png"},
        "no_such_split": {**right, "split": "tset"},
    }
    for name, row in rows.items():
        (folder / f"{name}.jsonl").write_text(json.dumps(right) + "\n" + json.dumps(row) + "\n")
    (folder / "latin.jsonl").write_bytes(
        json.dumps(right, ensure_ascii=False).encode() + b'\n{"image": "caf\xe9.png"}\n'
    )


TRAIN = "train --data OWN --backbone MODEL --n-ctx 2 --shots 2 --epochs 2 --device cpu --out new"
CASES = {
    "no such focus": "caption train --focus love --out new",
    "emotions among neutral captions": "caption train --focus emotions --choose --out new",
    "no such mode of captions": "caption train --method prompt-tunnig",
    "no such captioner": "caption train --backbone tinny --out new",
    "no such set of captions": "caption train --data openart-scene --out new",
    "an option of a mapper that is there": "caption train --method mapper --mapper mlp --out new",
    "a focus in no words": "caption train --method hard --out new",
    "an empty caption": "caption train --data empty_caption.jsonl --focus colours --out new",
    "a caption too long": "caption train --data long_caption.jsonl --focus colours --out new",
    "a picture without a caption": "caption train --data no_caption.jsonl --focus colours --out new",
    "a caption without a picture": "caption train --data no_picture.jsonl --focus colours --out new",
    "a picture outside": "caption train --data outside.jsonl --focus colours --out new",
    "no such split of captions": "caption train --data no_such_split.jsonl --focus colours --out new",
    "captions that are not UTF-8": "caption train --data latin.jsonl --focus colours --out new",
    "captions of nothing": "caption write nowhere",
    "captions of an empty folder": "caption write empty",
    "captions by a classifier": "caption write OWN --prompt RUN",
    "a negative strength": "caption write OWN --words red --strength -1",
    "a strength that is no number": "caption write OWN --words red --strength abc",
    "a strength without a prompt": "caption write OWN --strength 2",
    "a strength of avoiding nothing": "caption write OWN --avoid-strength 2",
    "weights without prompts": "caption write OWN --weights 1 2",
    "a weight too many": "caption write OWN --words red --weights 1 2",
    "weights that are no numbers": "caption write OWN --words red --weights 1 x",
    "one caption to rank": "caption write OWN --rerank tiny",
    "more captions than beams": "caption write OWN --n-best 3",
    "pictures cropped and flipped for captions": "caption train --augment coop --out new",
    "captions without an accuracy": "caption train --patience 2 --out new",
    "a finished run in the way of captions": "caption train --out RUN",
    "a mapper for a focus that is not there": "caption train --method mapper+prompt-tuning --focus love --out new",
    "no prompt to measure": "caption eval --data latin.jsonl",
    "a classifier where a focus is looked for": "caption eval",
    "no such part of captions": "caption eval --split tset",
    "a file in the way of a report": "caption eval --out file.txt/report",
    "a classifier to measure": "caption eval --prompts RUN",
    "a page of another computer": "studio --host 192.0.2.1 --out new",
    "a misspelt option": "train --shtos 3",
    "an option that nothing is like": "caption write OWN --zzz",
    "an option without a value": "train --shots",
    "a number that is a word": "train --shots few",
    "a broken whole number": "train --batch-size 1.5",
    "no such optimizer": "train --optimizer sdg",
    "a run that is not named": "predict",
    "a run that is not named beside a misspelt option": "predict --zzz",
    "no such verb": "trian",
    "no such verb of data": "data chek",
    "half a verb": "data",
    "no such method": "train --method copo",
    "an empty method": "train --method= --out new",
    "an empty place of images": "train --data= --out new",
    "an empty method of captions": "caption train --method= --out new",
    "an empty method of texts": "llm train --method= --out new",
    "an empty search": "llm search --search= --out new",
    "an empty method to tune": "tune --method= --out new",
    "an empty method to compare": "compare --method= --out new",
    "no such method in a combination": "train --method coop+vtp",
    "methods with a setting in common": "train --method kgcoop+knowledge-guided --out new",
    "no such data set": "train --data openart-lef",
    "no such folder": "train --data nowhere",
    "no such texts to compare on": "compare --data nowhere.jsonl --method prompt-tuning",
    "an empty folder": "train --data empty",
    "one class only": "train --data one_class",
    "an empty class name": "train --data empty_name.csv",
    "a name too long for the tower": "train --data long_name --backbone MODEL --n-ctx 2 --shots 1 --out new",
    "truncated pictures": "train --data truncated --backbone MODEL --n-ctx 2 --shots 1 --epochs 1 --out new",
    "no such backbone": "train --data OWN --backbone nope --out new",
    "a backbone in a home of nobody": "train --data OWN --backbone ~nobodyxyz/m --out new",
    "pictures in a home of nobody": "train --data ~nobodyxyz/m --out new",
    "a captioner in a home of nobody": "caption train --backbone ~nobodyxyz/m --out new",
    "no such image tower": "train --data OWN --backbone timm:vit_base_patch16_242 --out new",
    "no such device": f"{TRAIN} --device warp",
    "a learning rate below zero": f"{TRAIN} --lr -1",
    "no context vector": f"{TRAIN} --n-ctx 0",
    "more context than slots": f"{TRAIN} --n-ctx 40",
    "more context than memory": f"{TRAIN} --n-ctx 1000000000000",
    "more context behind zeros than memory": f"{TRAIN} --method prograd --n-ctx 100000000000",
    "a rank above memory": "train --data OWN --backbone MODEL --method clip-lora --rank 100000000000 --out new",
    "a rank for texts above memory": "llm train --method lora --rank 100000000000 --out new",
    "no shots": f"{TRAIN} --shots 0",
    "a template without a place": f"{TRAIN} --template photo",
    "deeper than the tower": "train --data OWN --backbone MODEL --method vpt --depth 9 --shots 2 --out new",
    "early stopping without validation": f"{TRAIN} --patience 2",
    "a finished run in the way": f"{TRAIN} --out RUN",
    "a file in the way": f"{TRAIN} --out file.txt/run",
    "a misspelt key": f"{TRAIN} --config misspelt.yaml",
    "a misspelt setting in the recipe of a card": "train --data own --datasets-dir cards --root OWN",
    "a repeated key": f"{TRAIN} --config repeated.yaml",
    "a repeated key in JSON": f"{TRAIN} --config repeated.json",
    "a value of the wrong kind": f"{TRAIN} --config no_number.yaml",
    "a misspelt key in run.json": f"{TRAIN} --config misspelt_run.json",
    "no such configuration": f"{TRAIN} --config nowhere.yaml",
    "no run to evaluate": "eval nowhere",
    "an empty split": "eval RUN --split val",
    "no run to predict with": "predict empty OWN/red/0.png",
    "nothing to predict": "predict RUN",
    "no such picture": "predict RUN nowhere.png",
    "a text that is named a picture": "predict RUN text.jpg",
    "a repeated class name": "predict RUN OWN/red/0.png --class-names cat,cat",
    "a class name of punctuation alone": "predict RUN OWN/red/0.png --class-names ?!,cat",
    "one class name": "predict RUN OWN/red/0.png --class-names cat",
    "no class name": "predict RUN OWN/red/0.png --class-names ,",
    "no labels to show": "predict RUN OWN/red/0.png --top-k 0",
    "no data set to check": "data check",
    "fewer pictures to open than none": "data check --data OWN --sample -1",
    "published lists of what is in the package": "data shots openart-left --protocol jsonl",
    "a run.json of another kind without its command": "train --config no_call.json",
    "a shell that is not known": "completion fish",
    "results in a file": "compare --data OWN --backbone MODEL --method coop --n-ctx 2 --results file.txt/a --out new",
    "a table of predictions below a file": "predict RUN OWN/red/0.png --csv file.txt/a.csv",
    "no method to show": "methods show vtp",
    "no backbone of that name": "backbones list --find zzz",
    "no checkpoint to convert": "prompt convert nowhere.pt --from coop --backbone MODEL --classes a,b --out new",
    "an image for a checkpoint": "prompt convert text.jpg --from coop --backbone MODEL --classes a,b --out new",
    "no such code of a checkpoint": "prompt convert text.jpg --from copo --backbone MODEL --classes a,b --out new",
    "no prompt to inspect": "inspect empty",
    "shares that are no numbers": "prompt average RUN RUN --shares nan,1 --out new",
    "a study whose address ends early": "tune --data OWN --backbone MODEL --search lr --trials 1 --out what?",
    "a number of words below zero": "inspect RUN --words -1",
}


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_symlink()}


def without_places(text: str, *places: Path) -> str:
    for place in places:
        text = text.replace(f"{place.resolve()}/", "").replace(f"{place}/", "")
    return text


@pytest.fixture(scope="module")
def pinned() -> dict[str, str]:
    return json.loads(SNAPSHOT.read_text()) if SNAPSHOT.exists() else {}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_exit_2_and_no_file(
    case: str, work: Path, pinned: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_below(work)
    assert main(CASES[case].split()) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert files_below(work) == before
    own, model = (work / "OWN").resolve().parent, (work / "MODEL").resolve().parent
    said = without_places(lines[0], work, own, model).replace(str(work), "WORK")
    if IS_PINNING:
        pinned[case] = said
        SNAPSHOT.write_text(json.dumps({name: pinned[name] for name in CASES if name in pinned}, indent=2) + "\n")
    assert said == pinned[case]


def test_nothing_is_pinned_that_is_not_provoked(pinned: dict[str, str]) -> None:
    assert set(pinned) == set(CASES)


def test_visual_prompts_on_a_resnet_are_refused_before_any_image_is_opened(
    pictures: Path, tiny_resnet_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = shutil.copytree(pictures, tmp_path / "own")
    for image in own.rglob("*.png"):
        image.write_bytes(b"no image")
    place = ["--data", str(own), "--backbone", str(tiny_resnet_folder), "--out", str(tmp_path / "new")]
    assert main(["train", *place, "--method", "vpt", "--shots", "2"]) == 2
    assert "(ModifiedResNet) has no image tokens that a prompt can join" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_of_another_run_is_refused(
    train_words: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(train_words(folder)) == 0
    for name in ("prompt.json", "prompt.safetensors"):
        (folder / name).unlink()
    capsys.readouterr()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(train_words(folder, "--seed", "2", "--resume")) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "holds a run with another data and seed" in lines[0]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_checkpoints_in_the_way_are_refused_without_resume(
    train_words: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(train_words(folder)) == 0
    learned = (folder / "prompt.safetensors").read_bytes()
    for name in ("prompt.json", "prompt.safetensors"):
        (folder / name).unlink()
    assert main(train_words(folder)) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(train_words(folder, "--resume")) == 0
    assert (folder / "prompt.safetensors").read_bytes() == learned


def test_short_classes_are_said_and_taken_whole(
    train_words: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train_words(tmp_path / "run", "--shots", "50")) == 0
    assert "Note: Classes with fewer than 50 training images, taken whole" in capsys.readouterr().out


def test_a_picture_of_too_many_pixels_is_refused(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((11_000, 10_000), np.uint8)).convert("1").save(tmp_path / "huge.png")
    assert main(["predict", str(run_folder), str(tmp_path / "huge.png")]) == 2
    assert "pixel" in capsys.readouterr().err
