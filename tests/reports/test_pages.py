"""The report of a run of a captioner or a language model, from a folder as a training leaves it."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmprompt.core.header import FORMAT, header_hash
from mmprompt.files import write_json
from mmprompt.reports.pages import write_report
from mmprompt.training.run_files import write_log


def write_run(folder: Path, kind: str, data: dict[str, Any], losses: list[float], **logged: float) -> Path:
    """A run folder without its weights."""
    folder.mkdir()
    backbone = {"name": "tiny", "fingerprint": "ab" * 32, "transform": "none"}
    run = {
        "backbone": backbone,
        "data": data,
        "method": {"name": "prompt-tuning", "settings": {"n_soft": 8, "words": None}},
        "recipe": {"lr": 0.1},
        "seed": 3,
        "versions": {"mmprompt": "0.1.0"},
    }
    header = {"format": FORMAT, "kind": kind, "backbone": backbone, "mmprompt": "0.1.0", "sources": [], "head": None}
    header |= {"template": "{soft*8} {text}", "training": {"notices": ["A vector never moved."], **run}}
    header |= {"tensors_sha256": "", "verbalizer": None, "focus": "emotions", "words": ""}
    write_json(folder / "prompt.json", header | {"header_sha256": header_hash(header)})
    write_json(folder / "run.json", run)
    write_log(folder / "log.jsonl", [{"epoch": e, "loss": loss, **logged} for e, loss in enumerate(losses, 1)])
    return folder


def text_of(page: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<style>.*</style>|<[^>]+>", "", page.read_text(), flags=re.DOTALL))


def test_a_run_of_a_language_model_says_what_it_learned_and_with_which_settings(tmp_path: Path) -> None:
    data = {"name": "somebody", "sizes": {"train": 8}, "notes": ["2 rows were cut."]}
    text = text_of(write_report(write_run(tmp_path / "run", "language", data, [3.5, 1.5], accuracy=0.5)))
    for said in (
        "The loss fell from 3.500 to 1.500 in 2 epochs.",
        "prompt-tuning learned from 8 rows of somebody.",
        "A vector never moved.",
        "n_soft 8, lr 0.1",
        "2 rows were cut.",
    ):
        assert said in text
    assert "words" not in text


@pytest.mark.parametrize(("focus", "said"), [("emotions", ", captions of emotions."), ("", ".")])
def test_captions_are_learned_without_an_accuracy(focus: str, said: str, tmp_path: Path) -> None:
    data = {"name": "openart-scenes", "sizes": {"train": 320}, "focus": focus}
    page = write_report(write_run(tmp_path / "run", "captioning", data, [0.9]))
    assert f"learned from 320 images of openart-scenes{said}" in text_of(page)
    with Image.open(page.parent / "learning_curve.png") as drawn:
        assert drawn.width > 300


@pytest.mark.parametrize(("losses", "said"), [([1.0, 2.0], "The loss went from 1.000 to 2.000"), ([], "Nothing was")])
def test_a_loss_that_rose_did_not_fall_and_without_a_log_nothing_was_trained(
    tmp_path: Path, losses: list[float], said: str
) -> None:
    assert said in text_of(
        write_report(write_run(tmp_path / "run", "language", {"name": "rows"}, losses, accuracy=1.0))
    )


def test_an_accuracy_of_some_epochs_alone_is_drawn_where_it_is(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "language", {"name": "rows"}, [2.0, 1.0])
    write_log(folder / "log.jsonl", [{"loss": 2.0, "accuracy": "none yet"}, {"loss": 1.0, "accuracy": 0.5}])
    assert "fell from 2.000 to 1.000" in text_of(write_report(folder))


def test_a_run_that_is_here_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run", "language", {}, [1.0])
    monkeypatch.chdir(folder)
    text = text_of(write_report(Path()))
    assert "language · run · on tiny" in text
    assert "mmprompt llm eval --prompt ." in text


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("captioning", "mmprompt caption eval --prompts 'my runs/emo' --data 'my scenes'"),
        ("language", "mmprompt llm eval --prompt 'my runs/emo' --data 'my scenes'"),
    ],
)
def test_what_measures_a_run_stands_on_its_page_as_it_can_be_typed(
    kind: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my runs").mkdir()
    folder = write_run(Path("my runs/emo"), kind, {"name": "my scenes", "sizes": {"train": 8}}, [1.0])
    assert html.unescape(text_of(write_report(folder))).count(f"{said}; data of your own is given by its path.") == 1
