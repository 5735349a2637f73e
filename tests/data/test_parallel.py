from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mmprompt.data import parallel
from mmprompt.data.parallel import WORTH_WORKERS, choose_workers, in_workers
from mmprompt.errors import UserError


def process_of(task: int) -> tuple[int, int]:
    return task, os.getpid()


def refuse_three(task: int) -> int:
    if task == 3:
        raise UserError("3.png: is damaged. Remove it.")
    return task


def test_results_come_in_the_order_of_the_tasks_from_other_processes() -> None:
    results = list(in_workers(process_of, list(range(20)), 2))
    assert [task for task, _ in results] == list(range(20))
    assert len({process for _, process in results} - {os.getpid()}) == 2


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_refusal_comes_in_its_turn_as_it_was_worded(n_workers: int) -> None:
    results = in_workers(refuse_three, list(range(8)), n_workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match=r"^3\.png: is damaged\. Remove it\.$"):
        next(results)


def test_workers_leave_the_streams_of_random_numbers_alone() -> None:
    torch.manual_seed(1)
    random.seed(1)
    expected = torch.rand(1), random.random()
    torch.manual_seed(1)
    random.seed(1)
    list(in_workers(process_of, [1, 2], 1))
    assert (torch.rand(1), random.random()) == expected


class Deadly:
    """Work that ends any process but the first."""

    def __init__(self) -> None:
        self.home = os.getpid()

    def __call__(self, task: int) -> int:
        if os.getpid() != self.home:
            os._exit(1)
        return task


def test_a_worker_that_dies_costs_no_result(caplog: pytest.LogCaptureFixture) -> None:
    assert list(in_workers(Deadly(), list(range(9)), 2)) == list(range(9))
    assert "read in this process alone" in caplog.text


def test_work_that_cannot_be_sent_is_done_here() -> None:
    script = """
import multiprocessing
from mmprompt.data.parallel import in_workers
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    print(*in_workers(lambda task: task * 2, [1, 2, 3], 2))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "2 4 6"), done.stderr


def test_an_error_of_the_work_itself_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_workers(lambda task: 1 // task, [1, 0], 1))


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = f"""
import os, sys, time
from pathlib import Path
from mmprompt.data.parallel import in_workers
def work(task):
    Path({str(tmp_path)!r}, str(os.getpid())).touch()
    time.sleep(60)
in_workers(work, [1, 2], 2).__next__()
"""
    parent = subprocess.Popen([sys.executable, "-c", script])
    while len(workers := list(tmp_path.iterdir())) < 2:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{path.name}").exists() for path in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_few_tasks_are_done_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert choose_workers(WORTH_WORKERS - 1) == 0
    assert choose_workers(WORTH_WORKERS) == parallel.MAX_WORKERS


def test_one_processor_is_no_reason_for_a_second_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert choose_workers(10**6) == 0
