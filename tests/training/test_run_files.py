from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmprompt.errors import UserError
from mmprompt.training.problem import RunFailed
from mmprompt.training.run_files import LOCK, append_log, read_log, run_lock, write_log

HOLD = """
import sys
from pathlib import Path
from mmprompt.training.run_files import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds `tmp_path/run` until its input is closed."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_a_folder_in_use_is_refused_in_one_line(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    with pytest.raises(UserError, match="is being written by another training") as refusal, run_lock(tmp_path / "run"):
        pass
    assert "\n" not in str(refusal.value)
    assert (tmp_path / "run" / LOCK).exists(), "a refused process must not take the lock of the other away"
    other.communicate()
    with run_lock(tmp_path / "run"):
        pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    other.kill()
    other.wait()
    assert (tmp_path / "run" / LOCK).exists()
    with run_lock(tmp_path / "run"):
        pass
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    for name in ("new", "own"):
        with run_lock(tmp_path / name):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_what_was_written_stays(tmp_path: Path) -> None:
    with run_lock(tmp_path / "run"):
        (tmp_path / "run" / "log.jsonl").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log.jsonl"]


RECORDS = [{"epoch": 1, "loss": 0.1 + 0.2}, {"epoch": 2, "loss": 1e-30}]


def test_a_log_reads_back_exactly(tmp_path: Path) -> None:
    write_log(tmp_path / "log.jsonl", RECORDS[:1])
    append_log(tmp_path / "log.jsonl", RECORDS[1])
    assert read_log(tmp_path / "log.jsonl") == RECORDS


def test_a_line_that_a_kill_left_unfinished_is_passed_over(tmp_path: Path) -> None:
    write_log(tmp_path / "log.jsonl", RECORDS)
    with (tmp_path / "log.jsonl").open("a") as handle:
        handle.write('{"epoch": 3, "lo')
    assert read_log(tmp_path / "log.jsonl") == RECORDS


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"loss": 1}\nnonsense\n')
    with pytest.raises(UserError, match=r"log\.jsonl, line 2: is not valid JSON"):
        read_log(tmp_path / "log.jsonl")


@pytest.mark.parametrize("line", ['{"epoch": 1}', '{"loss": "x"}', '{"loss": 1e999}'])
def test_a_line_without_a_loss_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"log\.jsonl, line 1: .*loss"):
        read_log(tmp_path / "log.jsonl")


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"log\.jsonl: cannot be read"):
        read_log(tmp_path / "log.jsonl")


def test_a_log_that_cannot_be_written_fails_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="the log cannot be written"):
        append_log(tmp_path / "gone" / "log.jsonl", RECORDS[0])
