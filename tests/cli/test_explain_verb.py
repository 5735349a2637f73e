"""`mmprompt explain` and `mmprompt prompt inspect` on a finished run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import mmprompt as mp
from mmprompt.cli.main import main
from mmprompt.core.header import header_hash, read_header
from mmprompt.files import read_json, write_json

Capture = pytest.CaptureFixture[str]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_explained_on_the_terminal_and_left_as_it_was(run_folder: Path, capsys: Capture) -> None:
    before = contents(run_folder)
    assert main(["explain", str(run_folder), "--words", "3", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    for said in ("held out, zero-shot in", "What each vector does", "Labels that may be wrong", "photograph next"):
        assert said in shown
    assert f"mmprompt explain {run_folder} --words 3 --device cpu --out FOLDER" in shown
    assert contents(run_folder) == before


def test_a_page_goes_where_it_is_wanted_and_the_document_says_where(
    run_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["explain", str(run_folder), "--out", str(tmp_path / "told"), "--json", "--device", "cpu"]) == 0
    document = json.loads(capsys.readouterr().out)
    page = Path(document["page"])
    assert page == tmp_path / "told" / "explanation.html"
    assert page.is_file()
    assert read_json(tmp_path / "told" / "explanation.json")["sections"].keys() == document["sections"].keys()
    assert document["sections"]["worth"]["table"][0].keys() == {"without", "loss grows by", "accuracy falls by"}


REFUSED = {
    "a folder without a run": (["explain", "."], "holds no prompt.json"),
    "no such part": (["explain", "RUN", "--split", "tset"], "--split is 'tset'"),
    "no words": (["explain", "RUN", "--words", "0"], "words is 0, but it must be a whole number, 1 or more"),
    "a run that is there already": (["explain", "RUN", "--calibrated", "RUN"], "Give another --calibrated."),
    "a file for a folder": (["explain", "RUN", "--out", "RUN/run.json"], "is a file"),
    "no data of that name": (["explain", "RUN", "--data", "nothing"], "there is no data set"),
    "a page in the place of a prompt": (
        ["explain", "RUN", "--calibrated", "new", "--out", "new"],
        "the page goes there",
    ),
    "a place of a set that is none": (["explain", "RUN", "--data", "caltech101", "--root", "."], "caltech-101"),
    "a strip into a run": (["prompt", "inspect", "RUN", "--strip", "RUN"], "Give another --strip."),
    "an inspection of nothing": (["prompt", "inspect", "nothing"], "nothing: is not there"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(case: str, run_folder: Path, capsys: Capture) -> None:
    words, said = REFUSED[case]
    assert main([word.replace("RUN", str(run_folder)) for word in words]) == 2
    error = capsys.readouterr().err
    assert said in error.splitlines()[-1]
    assert "Traceback" not in error


def test_a_temperature_without_images_to_fit_it_on_is_refused_before_there_is_a_page(
    run_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    new, told = tmp_path / "new", tmp_path / "told"
    assert main(["explain", str(run_folder), "--calibrated", str(new), "--out", str(told)]) == 2
    assert "has no validation images to fit a temperature on" in capsys.readouterr().err
    assert not new.exists()
    assert not told.exists()


def test_a_run_that_is_here_goes_by_its_name(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_folder)
    assert mp.explain(".", device="cpu").run == run_folder.name


def test_a_run_of_python_without_its_data_says_what_to_give(run_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    mp.save(mp.load(run_folder), tmp_path / "bare")
    assert main(["explain", str(tmp_path / "bare")]) == 2
    assert "does not say what it learned from. Give --data PATH." in capsys.readouterr().err


def test_a_run_of_python_on_a_folder_says_what_to_give(run_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    copied = shutil.copytree(run_folder, tmp_path / "run")
    (copied / "run.json").unlink()  # where the command line says which folder it was
    assert main(["explain", str(copied)]) == 2
    said = f"{copied} was learned from colours, which is neither a data set nor a folder here. Give --data PATH."
    assert said in capsys.readouterr().err


def test_inspect_shows_everything_and_strip_keeps_what_prediction_needs(
    run_folder: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    stripped = tmp_path / "stripped"
    assert main(["prompt", "inspect", str(run_folder / "prompt.json"), "--strip", str(stripped)]) == 0
    shown = capsys.readouterr().out
    header = read_header(run_folder)
    for name in (*header, "text.input", "class_features", "training.data", header["training"]["data"]["fingerprint"]):
        assert name in shown
    assert {path.name for path in stripped.iterdir()} == {"prompt.json", "prompt.safetensors"}
    assert read_header(stripped)["training"] == {}
    text = (stripped / "prompt.json").read_text()
    assert header["training"]["data"]["fingerprint"] not in text
    images = sorted(pictures.rglob("*.png"))
    whole, bare = mp.load(run_folder), mp.load(stripped)
    assert np.array_equal(whole.predict_proba(images), bare.predict_proba(images))


def test_strip_leaves_out_tensors_that_nothing_reads(run_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    import torch

    from mmprompt.files import read_tensors, sha256_bytes, tensor_bytes, write_bytes

    more = tmp_path / "more"
    more.mkdir()
    data = tensor_bytes(read_tensors(run_folder / "prompt.safetensors") | {"diary": torch.ones(2)})
    header = read_header(run_folder) | {"tensors_sha256": sha256_bytes(data)}
    write_bytes(more / "prompt.safetensors", data)
    write_json(more / "prompt.json", header | {"header_sha256": header_hash(header)})
    assert main(["prompt", "inspect", str(more), "--strip", str(tmp_path / "stripped"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tensors"]["diary"]["needed"] is False
    assert "diary" not in read_tensors(tmp_path / "stripped" / "prompt.safetensors")
