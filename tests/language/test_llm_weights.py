"""`mmprompt llm` with LoRA, alone and beside a prompt: learn, measure, generate, inspect, convert, refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmprompt.cli.main import main
from mmprompt.files import read_json
from tests.language.test_llm import document

BOTH = ["--method", "prompt-tuning+lora", "--n-soft", "4", "--rank", "3", "--targets", "q_proj", "v_proj"]
FEW = ["--shots", "4", "--epochs", "2"]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llm") / "both"
    assert main(["llm", "train", *BOTH, *FEW, "--out", str(folder), "--device", "cpu"]) == 0
    return folder


def test_both_are_in_one_file_with_their_settings(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(path.name for path in both.glob("prompt.*")) == ["prompt.json", "prompt.safetensors"]
    method = read_json(both / "run.json")["method"]
    assert method["name"] == "prompt-tuning+lora"
    assert method["settings"] == {
        "n_soft": 4,
        "rank": 3,
        "alpha": 16.0,
        "ratio": 1.0,
        "dropout": 0.0,
        "targets": ["q_proj", "v_proj"],
    }
    assert read_json(both / "run.json")["recipe"]["lr"] == 0.03
    capsys.readouterr()
    assert main(["inspect", str(both)]) == 0
    said = capsys.readouterr().out
    assert "prompt-tuning+lora: n_soft 4, rank 3" in said
    assert "lm.input" in said
    assert "tensors" in said
    assert "vector 4" in said


def test_it_is_measured_and_asked_as_every_prompt(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(["llm", "eval", "--prompt", str(both), "--split", "val"], capsys)
    assert [score["name"] for score in found["scores"]][:2] == [str(both), "no prompt"]
    answer = document(["llm", "generate", "--prompt", str(both), "--input", "a rose"], capsys)["answers"][0]
    assert answer["text"]
    predicted = document(["predict", str(both), "a rose"], capsys)["predictions"][0]
    assert {one["label"] for one in predicted["top"]} == {"somebody", "nobody"}


def test_its_terms_are_written_for_peft(both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document(["llm", "convert", "--prompt", str(both), "--to-peft", str(tmp_path / "peft"), "--kind", "lora"], capsys)
    assert read_json(tmp_path / "peft" / "adapter_config.json")["r"] == 3
    back = [
        "llm",
        "convert",
        "--from-peft",
        str(tmp_path / "peft"),
        "--backbone",
        "tiny",
        "--out",
        str(tmp_path / "run"),
    ]
    document([*back, "--template", "{text} {answer}"], capsys)
    assert read_json(tmp_path / "run" / "prompt.json")["sources"][0]["kind"] == "low-rank"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "lora", "--rank", "0"], "rank is 0, but it must be a whole number from 1 to 16384."),
        (
            ["--method", "lora", "--targets", "q_pro"],
            "there is no linear layer of tiny named 'q_pro'. Did you mean 'q_pro",
        ),
        (["--method", "prompt-tuning+lore"], "there is no method named 'lore'. Did you mean 'lora'?"),
        (["--method", "prompt-tuning+prompt-tuning"], "PromptTuning stands twice, but a combination has one"),
        (["--method", "full-tuning+full-tuning"], "FullTuning stands twice, but a combination has one of each"),
        (["--method", "multitask+lora"], "MultitaskPrompt and LoRA both have a setting named rank"),
        (["--method", "prompt-tuning", "--rank", "2"], "--rank"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[Any]
) -> None:
    assert main(["llm", "train", *words, "--out", str(tmp_path / "run"), "--device", "cpu"]) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in err
    assert not (tmp_path / "run" / "prompt.json").exists()


def test_methods_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "list"]) == 0
    said = capsys.readouterr().out
    assert {"lora", "adapter", "full-tuning"} <= {line.split()[0] for line in said.splitlines() if line.split()}
    assert main(["methods", "show", "prompt-tuning+lora"]) == 0
    said = capsys.readouterr().out
    for option in ("--n-soft", "--rank", "--alpha", "--dropout", "--targets"):
        assert option in said
