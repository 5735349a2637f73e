"""The file of results: every cell once, whoever computes it and whoever dies."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmprompt.errors import UserError
from mmprompt.experiments.results import Owner, Results, Score

CLAIM_AND_WAIT = """
import sys, time
from pathlib import Path
from mmprompt.experiments.results import Owner, Results
path = Path(sys.argv[1])
with Owner(path) as owner:
    print(Results(path).claim(["a", "b"], owner).key, flush=True)
    time.sleep(60)
"""


def score(target: str = "set", n: int = 11) -> Score:
    rng = np.random.default_rng(n)
    return Score(target, {"accuracy": 0.5}, rng.random(n) < 0.5, rng.integers(0, 2000, n), rng.random(n))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.sqlite"


def test_a_finished_cell_comes_back_as_it_was(path: Path) -> None:
    results, kept = Results(path), score()
    results.add({"a": "text"})
    results.finish("a", {"seconds": 1.5}, [kept])
    found = Results(path).finished(["a", "b"])
    assert list(found) == ["a"]
    assert found["a"].facts == {"seconds": 1.5}
    assert np.array_equal(found["a"].scores["set"].correct, kept.correct)
    assert np.array_equal(found["a"].scores["set"].predictions, kept.predictions)
    assert found["a"].scores["set"].probabilities == pytest.approx(kept.probabilities, abs=1e-3)


def test_a_cell_is_claimed_once(path: Path) -> None:
    results = Results(path)
    results.add({"a": "A", "b": "B"})
    with Owner(path) as first, Owner(path) as second:
        claims = [Results(path).claim(["a", "b"], owner) for owner in (first, second, first)]
    assert claims == [("a", "A"), ("b", "B"), None]


def test_claims_follow_the_order_that_is_wanted(path: Path) -> None:
    results = Results(path)
    results.add({"a": "A", "b": "B"})
    with Owner(path) as owner:
        claim = results.claim(["b", "a"], owner)
    assert claim is not None
    assert claim.key == "b"


def test_the_claim_of_a_living_process_is_left_alone(path: Path) -> None:
    results = Results(path)
    results.add({"a": "A"})
    with Owner(path) as owner:
        results.claim(["a"], owner)
        Results(path).take_back_from_dead()
        assert results.states(["a"]) == {"a": "claimed"}


def test_the_claim_of_a_killed_process_is_taken_over(path: Path) -> None:
    results = Results(path)
    results.add({"a": "A", "b": "B"})
    worker = subprocess.Popen([sys.executable, "-c", CLAIM_AND_WAIT, str(path)], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    assert worker.stdout.readline().strip() == "a"
    results.take_back_from_dead()
    assert results.states(["a"])["a"] == "claimed"
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    worker.stdout.close()
    results.take_back_from_dead()
    assert results.states(["a"])["a"] == "waiting"


def test_a_failed_cell_is_tried_again_and_a_finished_one_is_not(path: Path) -> None:
    results = Results(path)
    results.add({"a": "A", "b": "B"})
    results.finish("a", {}, [score()])
    results.fail("b", "no memory")
    assert results.failures(["a", "b"]) == {"b": "no memory"}
    results.add({"a": "A", "b": "B"})
    assert results.states(["a", "b"]) == {"a": "done", "b": "waiting"}


def test_a_cell_that_waits_takes_the_newest_text(path: Path) -> None:
    results = Results(path)
    results.add({"a": "pictures in one place"})
    results.add({"a": "pictures in another"})
    with Owner(path) as owner:
        assert results.claim(["a"], owner) == ("a", "pictures in another")
        results.add({"a": "a third"})
        assert results.states(["a"]) == {"a": "claimed"}


def test_an_owner_leaves_no_file_behind(path: Path) -> None:
    Results(path)
    with Owner(path):
        pass
    assert list((path.parent / "results.sqlite.owners").iterdir()) == []


@pytest.mark.parametrize("content", [b"no database at all, but long enough for one" * 40, None])
def test_a_file_that_is_none_of_these_is_refused(path: Path, content: bytes | None) -> None:
    if content is None:
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA user_version = 77")
        connection.close()
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"results\.sqlite.*`results`"):
        Results(path)


def test_a_database_of_something_else_is_refused_and_left_alone(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE trials (number INTEGER)")
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"is a database of something else\. Give another `results`"):
        Results(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
