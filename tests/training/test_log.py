from __future__ import annotations

from pathlib import Path

import pytest

from mmprompt.errors import UserError
from mmprompt.training.log import append_log, read_log, write_log
from mmprompt.training.problem import RunFailed

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
    (tmp_path / "log.jsonl").write_text('{"epoch": 1}\nnonsense\n')
    with pytest.raises(UserError, match=r"log\.jsonl, line 2: is not valid JSON"):
        read_log(tmp_path / "log.jsonl")


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"log\.jsonl: cannot be read"):
        read_log(tmp_path / "log.jsonl")


def test_a_log_that_cannot_be_written_fails_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="the log cannot be written"):
        append_log(tmp_path / "gone" / "log.jsonl", RECORDS[0])
