"""What the command line, the file system or a card can answer is answered before torch is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "open_clip", "transformers", "timm", "sklearn"}
PROGRAM = """
import sys
from mmprompt.cli.main import main
code = main(sys.argv[1:])
print("loaded", *({heavy!r} & set(sys.modules)))
print("code", code)
"""


def answer(*words: str) -> tuple[set[str], int]:
    """Which heavy libraries a command line loads, and its exit code."""
    program = PROGRAM.format(heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    *_, loaded, code = done.stdout.splitlines()
    return set(loaded.split()[1:]), int(code.split()[1])


REFUSED = [
    ["train", "--n-ctx", "abc"],
    ["train", "--no-such-option"],
    ["train", "--data", "no-such-set"],
    ["train", "--method", "no-such-method"],
    ["compare", "--shots", "abc"],
    ["compare", "--method", "nothing"],
    ["tune", "--trials", "abc"],
    ["protocol", "base-to-new", "--bogus"],
    ["predict", "no-such-run", "a.png"],
    ["eval", "no-such-run"],
    ["inspect", "no-such-run"],
    ["explain", "no-such-run"],
    ["prompt", "inspect", "no-such-run"],
    ["prompt", "convert", "a.pt", "--from", "copo"],
    ["prompt", "convert", "no-such-file", *"--from coop --backbone tiny --classes a,b --out no-such-run".split()],
    ["report", "no-such-run"],
    ["export", "no-such-run", "--to", "onnx"],
    ["prompt", "diff", "no-such-run", "no-such-run"],
    ["prompt", "average", "no-such-run", "no-such-run", "--out", "new"],
    ["prompt", "push", "no-such-run", "ada/colours"],
    ["caption", "train", "--focus"],
    ["caption", "train", "--method", "nothing"],
    ["caption", "write", "--bogus"],
    ["caption", "eval", "--bogus"],
    ["llm", "train", "--method", "nothing"],
    ["llm", "train", "--n-soft", "abc"],
    ["llm", "eval", "--bogus"],
    ["llm", "generate", "--bogus"],
    ["llm", "search", "--bogus"],
    ["llm", "convert", "--bogus"],
    ["backbones", "get", "nothing"],
    ["methods", "show", "nothing"],
    ["data", "shots", "no-such-set"],
    ["train", "--data", "no/such"],
    ["compare", "--data", "no/such"],
    ["tune", "--data", "no/such"],
    ["caption", "write", "no/such.png"],
    ["caption", "train", "--data", "no-such.jsonl"],
    ["caption", "eval", "--prompts", "no-such-run"],
    ["llm", "train", "--data", "no-such.jsonl"],
    ["llm", "eval", "--prompt", "no-such-run"],
    ["llm", "generate", "--prompt", "no-such-run"],
]
ANSWERED = [
    ["backbones", "list"],
    ["methods", "list"],
    ["methods", "show", "coop"],
    ["data", "list"],
    ["data", "cache"],
    ["--version"],
]


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_a_wrong_call_is_refused_before_anything_heavy_is_loaded(words: list[str]) -> None:
    assert answer(*words) == (set(), 2)


@pytest.mark.parametrize("words", ANSWERED, ids=" ".join)
def test_a_list_is_shown_before_anything_heavy_is_loaded(words: list[str]) -> None:
    assert answer(*words) == (set(), 0)


def test_a_missing_image_is_refused_before_the_model_is_loaded(run_folder: Path) -> None:
    assert answer("predict", str(run_folder), "no-such-image.png") == (set(), 2)


def test_a_prompt_is_inspected_without_its_model_where_no_words_are_asked_for(run_folder: Path) -> None:
    assert answer("inspect", str(run_folder), "--words", "0") == (set(), 0)
