"""Storage that fails while a command works: one line, and with `--resume` the files of a run that nothing befell.

From some change to its files on, every further one of a command fails, as an audit hook makes it; where a small file
system can be mounted, one is filled. `MMPROMPT_FAULTS=N` tries every fault with every verb at N changes, 0 at all.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmprompt.cli.main import main
from mmprompt.experiments import compute
from mmprompt.models import image_features
from mmprompt.training import loop
from mmprompt.training.run_files import run_lock
from tests.cli.kill_verbs import content, lines_of, make_own
from tests.kills import CHANGES, WRITING

N_POINTS = int(os.environ.get("MMPROMPT_FAULTS", "-1"))
VERBS = ("train", "caption train", "llm train")
NEW = {"open", "os.mkdir"}
"""What needs room."""
FAULTS = {
    "full disk": (errno.ENOSPC, NEW),
    "read-only": (errno.EROFS, CHANGES | {"open"}),
    "no permission": (errno.EACCES, CHANGES | {"open"}),
}
QUICK = [("train", "no permission"), ("caption train", "full disk"), ("llm train", "read-only")]
OFTEN = ("train", "llm train") if N_POINTS < 0 else VERBS
EVERY = QUICK if N_POINTS < 0 else [(verb, kind) for verb in VERBS for kind in FAULTS]
MONTH_S = 30 * 86400
Capture = pytest.CaptureFixture[str]


class Fault:
    """Lets changes below a folder fail, from number `at` on, and counts them."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.n_changes = self.at = self.number = 0
        self.events: set[str] = set()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None or not (event in CHANGES or event == "open"):
            return
        if event == "open" and not int(arguments[2] or 0) & WRITING:
            return
        if (Path.cwd() / str(arguments[0])).is_relative_to(self.folder):
            self.n_changes += 1
            if self.n_changes >= self.at and event in self.events:
                raise OSError(self.number, os.strerror(self.number), str(arguments[0]))

    @contextmanager
    def within(self, folder: Path, kind: str = "", at: int = 0) -> Iterator[None]:
        """Fail below this folder until the block ends; with no kind only count."""
        self.number, self.events = FAULTS[kind] if kind else (0, set())
        self.n_changes, self.at, self.folder = 0, at, folder
        try:
            yield
        finally:
            self.folder = None


@pytest.fixture(scope="module")
def fault() -> Fault:
    return Fault()


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds and memory stand still, as they are all in which two runs differ: here, and not for a server beside."""
    stopped = SimpleNamespace(**{**vars(time), "monotonic": lambda: 0.0, "process_time": lambda: 0.0})
    for module in (compute, image_features, loop):
        monkeypatch.setattr(module, "time", stopped)
    monkeypatch.setattr(compute, "peak_bytes", lambda device: 0)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("storage")
    make_own(root / "own")
    return {verb: lines_of(root)[verb][0] for verb in VERBS}


@pytest.fixture(scope="module")
def whole(
    lines: dict[str, str], fault: Fault, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], tuple[dict[str, str], int]]]:
    """By verb the files of a run that nothing befell, and how many changes it made."""
    known: dict[str, tuple[dict[str, str], int]] = {}

    def of(verb: str) -> tuple[dict[str, str], int]:
        if verb not in known:
            folder = tmp_path_factory.mktemp("whole")
            os.chdir(folder)
            with fault.within(folder / "run"):
                assert main(lines[verb].split()) == 0
            known[verb] = content(folder), fault.n_changes
        return known[verb]

    before = Path.cwd()
    yield of
    os.chdir(before)


def refused(line: str, capsys: Capture) -> str:
    """The one line with which a command ends."""
    capsys.readouterr()
    code = main(line.split())
    said = capsys.readouterr().err
    errors = [one for one in said.splitlines() if one.startswith("mmprompt: error: ")]
    assert code in (1, 2), (code, said)
    assert len(errors) == 1, said
    assert "Traceback" not in said
    assert "report them" not in said
    return errors[0]


def resumed(line: str) -> dict[str, str]:
    assert main([*line.split(), "--resume"]) == 0
    return content(Path.cwd())


def points(n_changes: int) -> list[int]:
    n = min(abs(N_POINTS), n_changes) or n_changes
    return [1 + (2 * trial + 1) * n_changes // (2 * n) for trial in range(n)]


@pytest.mark.parametrize(("verb", "kind"), EVERY)
def test_what_was_whole_goes_on(
    verb: str, kind: str, lines: dict[str, str], whole: Any, fault: Fault, tmp_path: Path, capsys: Capture
) -> None:
    expected, n_changes = whole(verb)
    for at in points(n_changes):
        folder = tmp_path / str(at)
        folder.mkdir()
        os.chdir(folder)
        with fault.within(folder / "run", kind, at):
            said = refused(lines[verb], capsys)
        assert os.strerror(FAULTS[kind][0]) in said, at
        assert resumed(lines[verb]) == expected, at


@pytest.mark.parametrize("verb", VERBS)
def test_a_file_system_that_fails_on_sync(
    verb: str, lines: dict[str, str], whole: Any, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = whole(verb)
    os.chdir(tmp_path)
    sync, n_left = os.fsync, 7

    def fail(descriptor: int) -> None:
        nonlocal n_left
        n_left -= 1
        if n_left < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        assert os.strerror(errno.EIO) in refused(lines[verb], capsys)
    assert resumed(lines[verb]) == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 600 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(place)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    yield place
    os.chdir(tmp_path)
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("verb", OFTEN)
def test_a_disk_that_is_full(verb: str, lines: dict[str, str], whole: Any, small_disk: Path, capsys: Capture) -> None:
    expected, _ = whole(verb)
    os.chdir(small_disk)
    for room_kb in (24, 4, 0):
        (small_disk / "filler").write_bytes(bytes(room_of(small_disk) - room_kb * 1024))
        assert "No space left on device" in refused(f"{lines[verb]} --resume", capsys)
        (small_disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "run: may not be written to" in refused(f"{lines[verb]} --resume", capsys)
    subprocess.run(["mount", "-o", "remount,rw,size=100m", str(small_disk)], check=True)
    assert resumed(lines[verb]) == expected


def room_of(place: Path) -> int:
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_that_may_not_be_written_to(verb: str, lines: dict[str, str], tmp_path: Path, capsys: Capture) -> None:
    os.chdir(tmp_path)
    (tmp_path / "run").mkdir(mode=0o555)
    with as_anybody():
        said = refused(lines[verb], capsys)
    assert "may not be written to" in said or "Permission denied" in said  # of root the system says that it may
    assert list((tmp_path / "run").iterdir()) == []


@contextmanager
def as_anybody() -> Iterator[None]:
    """Give up what lets root pass over the permissions of files, for a while (capabilities(7))."""
    if os.geteuid() != 0:
        yield
        return
    libc, header = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)
    had = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, had) == 0
    fewer = (ctypes.c_uint32 * 6)(had[0] & ~0b110, *had[1:])  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, fewer) == 0
    try:
        yield
    finally:
        assert libc.capset(header, had) == 0


@pytest.mark.parametrize("verb", VERBS)
def test_numbers_that_are_not_finite(
    verb: str, lines: dict[str, str], whole: Any, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = whole(verb)
    os.chdir(tmp_path)
    backward, n_steps = torch.Tensor.backward, 0

    def spoilt(loss: torch.Tensor, *more: Any, **options: Any) -> None:
        nonlocal n_steps
        n_steps += 1
        backward(loss if n_steps < 3 else loss * torch.nan, *more, **options)

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "backward", spoilt)
        said = refused(lines[verb], capsys)
    assert "the gradient became nan or infinite in epoch" in said
    assert ("are from before" in said) == (
        verb != "caption train"
    )  # its third step chooses a method, and keeps nothing
    assert not (tmp_path / "run" / "prompt.json").exists()
    assert resumed(lines[verb]) == expected


@pytest.mark.parametrize("verb", VERBS)
def test_a_second_writer_of_a_folder(verb: str, lines: dict[str, str], tmp_path: Path, capsys: Capture) -> None:
    os.chdir(tmp_path)
    with run_lock(tmp_path / "run"):
        before = sorted((tmp_path / "run").iterdir())
        for more in ("", " --resume"):
            assert "is being written by another training" in refused(lines[verb] + more, capsys)
        assert sorted((tmp_path / "run").iterdir()) == before


@pytest.mark.parametrize("verb", OFTEN)
def test_a_clock_that_goes_back(
    verb: str,
    lines: dict[str, str],
    whole: Any,
    fault: Fault,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, n_changes = whole(verb)
    os.chdir(tmp_path)
    monkeypatch.setenv("MMPROMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MMPROMPT_CACHE_LIMIT", "100MB")
    with fault.within(tmp_path / "run", "full disk", n_changes // 2):
        refused(lines[verb], capsys)
    now = time.time()
    for path in tmp_path.rglob("*"):
        os.utime(path, (now + MONTH_S, now + MONTH_S))

    def earlier(times: list[float] = [now]) -> float:  # noqa: B006, it is to be kept
        times[0] -= MONTH_S
        return times[0]

    monkeypatch.setattr(time, "time", earlier)
    monkeypatch.setattr(time, "time_ns", lambda: int(earlier() * 10**9))
    assert resumed(lines[verb]) == expected
