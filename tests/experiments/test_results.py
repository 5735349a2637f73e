"""Cells in folders: each is computed once, whoever computes it and whoever dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmprompt.errors import UserError
from mmprompt.experiments.results import Outcome, Score, is_settled, read_failure, read_outcome, reopen, settle
from mmprompt.training.problem import RunFailed

HOLD = """
import sys, time
from pathlib import Path
from mmprompt.experiments.results import settle
settle(Path(sys.argv[1]), lambda: [print("at it", flush=True), time.sleep(60)])
"""


def outcome(n: int = 11) -> Outcome:
    rng = np.random.default_rng(n)
    score = Score(
        (rng.random(n) < 0.5).astype(float),
        rng.integers(0, 2000, n).tolist(),
        rng.random(n),
        {"macro_f1": 0.25},
        {"cat": 0.5},
    )
    return Outcome({"seconds": 1.5}, {"set": score})


def failing(error: Exception) -> Callable[[], Outcome]:
    def compute() -> Outcome:
        raise error

    return compute


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    return tmp_path / "cells" / "a"


def test_a_finished_cell_comes_back_as_it_was(cell: Path) -> None:
    assert settle(cell, outcome)
    found = read_outcome(cell)
    assert found is not None
    assert (found.folder, found.facts) == (cell, {"seconds": 1.5})
    score, kept = found.scores["set"], outcome().scores["set"]
    assert np.array_equal(score.correct, kept.correct)
    assert score.accuracy == kept.correct.mean()
    assert (score.predictions, score.numbers, score.per_class) == (kept.predictions, kept.numbers, kept.per_class)
    assert score.probabilities == pytest.approx(kept.probabilities, abs=1e-3)


def test_a_finished_cell_is_not_computed_again(cell: Path) -> None:
    settle(cell, outcome)
    before = {path: path.stat() for path in cell.iterdir()}
    assert settle(cell, failing(UserError("computed again")))
    assert {path: path.stat() for path in cell.iterdir()} == before


def test_a_cell_that_another_process_computes_is_left_alone_until_it_dies(cell: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(cell)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline().strip() == "at it"
    reopen(cell)
    assert not settle(cell, outcome)
    assert not is_settled(cell)
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    other.stdout.close()
    assert settle(cell, outcome)
    assert read_outcome(cell) is not None


def test_a_cell_is_finished_when_its_scores_are_there_and_not_before(cell: Path) -> None:
    def interrupted() -> Outcome:
        (cell / "prompt.json").write_text("{}")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        settle(cell, interrupted)
    assert not is_settled(cell)
    assert [path.name for path in cell.iterdir()] == ["prompt.json"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RunFailed("the loss became nan. Try a lower `lr`."), "the loss became nan. Try a lower `lr`."),
        (UserError("n_ctx is 99. Use 4."), "n_ctx is 99. Use 4."),
        (MemoryError("no room"), r"MemoryError in test_results.py, line \d+: no room"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failed_cell_says_why_until_it_is_reopened_or_finished(cell: Path, error: Exception, reason: str) -> None:
    assert settle(cell, failing(error))
    assert is_settled(cell)
    assert re.fullmatch(reason, read_failure(cell) or "")
    failure = (cell / "failure.json").read_text()
    settle(cell, outcome)
    assert read_failure(cell) is None
    (cell / "failure.json").write_text(failure)  # as a kill between the two files leaves it
    assert read_failure(cell) is None
    settle(cell / "other", failing(error))
    reopen(cell / "other")
    assert not is_settled(cell / "other")


def test_a_finished_cell_stays_when_others_are_reopened(cell: Path) -> None:
    settle(cell, outcome)
    reopen(cell)
    assert read_outcome(cell) is not None


def truncate(text: str) -> str:
    return text[: len(text) // 2]


def better(text: str) -> str:
    return text.replace('"seconds": 1.5', '"seconds": 0.5')


@pytest.mark.parametrize("damage", [truncate, better, lambda _: "[]", lambda _: ""], ids=["cut", "edited", "list", ""])
def test_damaged_scores_are_not_trusted_and_the_cell_is_computed_again(
    damage: Callable[[str], str], cell: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settle(cell, outcome)
    path = cell / "scores.json"
    path.write_text(damage(path.read_text()))
    assert read_outcome(cell) is None
    assert "scores.json is damaged" in caplog.text
    reopen(cell)
    assert not is_settled(cell)
    settle(cell, outcome)
    assert read_outcome(cell) is not None


def test_a_finished_cell_keeps_no_checkpoints(cell: Path) -> None:
    def compute() -> Outcome:
        (cell / "checkpoint" / "epoch-000001").mkdir(parents=True)
        return outcome()

    settle(cell, compute)
    assert [path.name for path in cell.iterdir()] == ["scores.json"]
