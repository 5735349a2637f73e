"""A command that is killed, at whatever change to its files, ends in the same files when it is run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
KILLS = {
    "train": 5,
    "train a head": 1,
    "llm train": 2,
    "llm generate": 1,
    "caption train": 2,
    "caption write": 2,
    "compare": 2,
    "tune": 2,
}


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    driver, folder = Path(__file__).with_name("kill_verbs.py"), tmp_path_factory.mktemp("kills")
    command = [
        sys.executable,
        str(driver),
        str(folder),
        "--blank-figures",
        *(f"{name}={n}" for name, n in KILLS.items()),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
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
