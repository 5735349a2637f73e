"""A command that is killed, at whatever change to its files, ends in the same files when it is run again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.processes import run_program

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
KILLS = {
    "train": 5,
    "train a head": 1,
    "llm train": 2,
    "llm generate": 1,
    "caption train": 1,
    "caption write": 2,
    "compare": 2,
    "tune": 2,
}


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    driver, folder = Path(__file__).with_name("kill_verbs.py"), tmp_path_factory.mktemp("kills")
    words = [str(folder), "--blank-figures", *(f"{name}={n}" for name, n in KILLS.items())]
    result = run_program(driver, *words, folder=folder, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("verb", KILLS)
def test_a_killed_command_that_is_run_again_ends_in_the_same_files(verb: str, trials: list[dict[str, Any]]) -> None:
    own = [trial for trial in trials if trial["verb"] == verb]
    assert len(own) == KILLS[verb]
    assert all(trial["killed"] for trial in own)
    assert [trial for trial in own if trial["ended"] or trial["differ"]] == []


def test_kills_landed_between_the_prompt_and_the_end_of_the_report(trials: list[dict[str, Any]]) -> None:
    found = [set(trial["found"]) for trial in trials if trial["verb"] == "train"]
    assert sum("run/prompt.json" in names and "run/report.html" not in names for names in found) >= 2
