from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.processes import run_program

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    driver, folder = Path(__file__).with_name("kill_driver.py"), tmp_path_factory.mktemp("kills")
    result = run_program(driver, str(folder), folder=folder, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_run_killed_at_any_point_resumes_to_the_same_bytes(report: dict[str, Any]) -> None:
    others = [trial for trial in report["trials"] if trial["outcome"] != report["expected"]]
    assert others == []


def test_the_kills_really_landed_at_thirty_points_or_more(report: dict[str, Any]) -> None:
    assert sum(trial["killed"] for trial in report["trials"]) >= 30


def test_the_kills_landed_inside_checkpoints_and_between_them(report: dict[str, Any]) -> None:
    half_written = [trial for trial in report["trials"] if any(name.endswith(".tmp") for name in trial["found"])]
    whole = [trial for trial in report["trials"] if not any(name.endswith(".tmp") for name in trial["found"])]
    assert len(half_written) >= 5
    assert len(whole) >= 5


def test_a_kill_never_leaves_half_a_checkpoint_under_a_checkpoints_name(report: dict[str, Any]) -> None:
    assert all(trial["torn"] == [] for trial in report["trials"])


def test_a_resumed_run_leaves_no_half_written_checkpoint_behind(report: dict[str, Any]) -> None:
    assert all(trial["left"] == [] for trial in report["trials"])
