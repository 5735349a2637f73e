"""Work in a fork of this process that dies by SIGKILL at the k-th change it makes to the files of a folder.

An audit hook sees every opening for writing, rename, new folder and removal before it happens, so that the points are
the same in every run. What needs threads or CUDA is imported before a fork, and not started.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

POINT = "mmprompt.tests.point"
"""An event that a test raises itself, with a path, where something else than Python changes a file."""
CHANGES = {POINT, "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a child; its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def wait(pid: int) -> int:
    """The exit status of a child, -9 if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(work: Callable[[], None], folder: Path, at: int) -> int:
    """Run `work` in a child that is killed before its change number `at` (from 1); its exit status."""
    return wait(fork(lambda: _watched(work, folder, at, folder)))


def count_changes(work: Callable[[], None], folder: Path, note: Path) -> int:
    """Run `work` in a child to its end and count the changes it makes; the file `note` is written for that."""
    assert wait(fork(lambda: _watched(work, folder, 0, note))) == 0, "the uninterrupted run failed"
    return int(note.read_text())


def _watched(work: Callable[[], None], folder: Path, at: int, note: Path) -> None:
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        is_writing = event == "open" and int(arguments[2] or 0) & WRITING  # type: ignore[call-overload]
        if not (event in CHANGES or is_writing):
            return
        name = str(arguments[0])
        if (Path.cwd() / name).is_relative_to(folder):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    work()
    if not at:
        note.write_text(str(count))
