"""The guard sees each thing that an attempt may not do: one that does it is told, and a sound one is not."""

from __future__ import annotations

import contextlib
import pickle  # noqa: TID251, to see that it is seen
import random
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmprompt.errors import UserError
from tests.attacks import guard

BIG_KB = 100 * 2**10


def refuse() -> None:
    raise UserError("a is 1, but 2 was expected. Use 2.")


def ask_for_two_lines() -> None:
    error = UserError("a")
    error.args = ("a\nb",)
    raise error


def run_code(folder: Path) -> None:
    (folder / "evil.py").write_text("1 + 1")
    exec(compile("1 + 1", str(folder / "evil.py"), "exec"))


def connect() -> None:
    with socket.socket() as one:
        one.connect_ex(("127.0.0.1", 9))


def take_memory() -> None:
    now_kb = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 2**10
    assert len(b"1" * (guard.peak_kb() - now_kb + 2 * BIG_KB) * 2**10)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "a traceback": (lambda folder: {}["a"], "KeyError"),
    "a refusal of two lines": (lambda folder: ask_for_two_lines(), r"says 'a\\nb'"),
    "no end": (lambda folder: time.sleep(5), "no end after 0.3 s"),
    "an end too late": (lambda folder: late(), "takes 0"),
    "memory": (lambda folder: take_memory(), "GB"),
    "a file outside": (lambda folder: (folder.parent / "outside").write_text("a"), "open .*outside"),
    "a folder outside": (lambda folder: (folder.parent / "outside").mkdir(), "mkdir .*outside"),
    "a file taken away": (lambda folder: (folder.parent / "there").unlink(), "remove .*there"),
    "a file moved out": (lambda folder: (folder / "own").rename(folder.parent / "out"), "rename .*out"),
    "a program": (lambda folder: subprocess.run([sys.executable, "-c", ""], check=True), "Popen"),
    "code of a file": (run_code, "exec .*evil"),
    "a folder taken away": (lambda folder: shutil.rmtree(folder.parent / "full"), "rmtree .*full"),
    "a pickled function": (lambda folder: pickle.loads(b"cos\nsystem\n."), "find_class"),
    "a connection": (lambda folder: connect(), "socket.connect"),
}


def late() -> None:
    with contextlib.suppress(guard.TookTooLongError):
        while True:
            pass


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(guard, "MOST_SECONDS", 0.3)
    most = guard.peak_kb() + BIG_KB
    monkeypatch.setattr(guard, "most_kb", lambda: most)
    (tmp_path / "there").touch()
    (tmp_path / "full" / "one").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "own").touch()
    return tmp_path / "here"


@pytest.mark.parametrize("name", WRONG)
def test_what_may_not_be_is_told(name: str, folder: Path) -> None:
    attempt, said = WRONG[name]
    with pytest.raises(AssertionError, match=rf"(?s)seed \d+: .*{said}"):
        guard.attack(1, lambda rng: attempt(folder), folder)


def test_a_refusal_and_a_file_in_the_own_folder_are_sound(folder: Path) -> None:
    def attempt(rng: random.Random) -> None:
        (folder / "a").write_text("a")
        (folder / "a").rename(folder / "b")
        (folder / "c" / "d").mkdir(parents=True)
        shutil.rmtree(folder / "c")
        refuse()

    guard.attack(3, attempt, folder)
