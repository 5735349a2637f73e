"""What every attempt is held to: a value or a refusal of one line, in ten seconds and two gigabytes; nothing written
outside its folder, no program, connection or code of the attacker's.

`MMPROMPT_ATTACKS=10` tries ten times as many, with seeds that go on where those of the suite end.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

from mmprompt.errors import UserError

TIMES = int(os.environ.get("MMPROMPT_ATTACKS", "1"))
MOST_SECONDS, MOST_KB = 10.0, 2 * 2**20
Attack = Callable[[random.Random], object]

CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.symlink", "os.truncate", "os.chmod"}
CHANGES |= {"shutil.rmtree", "shutil.move"}
PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty"}
REACHES = {"socket.connect", "socket.bind", "socket.getaddrinfo", "pickle.find_class"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
OWN = ("__pycache__", os.devnull)
"""Places that the interpreter itself writes to."""
_watching: list[tuple[Path, list[str]]] = []


class TookTooLongError(BaseException):
    """Not an Exception, which a reader may turn into a refusal."""


def seeds(n: int) -> range:
    """The seeds of the suite, or of a longer trial those after them."""
    return range(n * (TIMES > 1), n * TIMES) if TIMES > 1 else range(n)


def attack(n: int, attempt: Attack, folder: Path) -> None:
    """Make `n` attempts, each with its own seed; list all that end in anything but a value or a refusal of one line."""
    wrong, most = [], most_kb()
    with watched(folder) as seen:
        for seed in seeds(n):
            started, problem = time.process_time(), ""
            try:
                with limited(MOST_SECONDS):
                    attempt(random.Random(seed))
            except UserError as error:
                if not str(error) or set(str(error)) & set("\n\x1b\0"):
                    problem = f"says {str(error)!r}"
            except (Exception, TookTooLongError) as error:
                problem = f"{type(error).__name__}: {str(error)[:200]}"
            if (took := time.process_time() - started) > MOST_SECONDS:
                problem += f" takes {took:.1f} s"
            if (peak := peak_kb()) > most:
                problem += f" takes {peak / 2**20:.1f} GB"
            if seen:
                problem += f" touches {seen}"
                seen.clear()
            if problem:
                wrong.append(f"seed {seed}: {problem}")
    assert wrong == [], "\n".join([f"{len(wrong)} of {len(seeds(n))}", *wrong[:12]])


def most_kb() -> int:
    """What an attack may take: two gigabytes, or where earlier tests have had more, a tenth beyond theirs."""
    return max(MOST_KB, peak_kb() * 11 // 10)


def peak_kb() -> int:
    """The most memory that this process, or one that it ran, has had so far."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """End what computes for longer, or waits three times as long: a process may be stopped for a while itself."""
    started, n_alarms = time.process_time(), 0

    def stop(number: int, frame: Any) -> None:
        nonlocal n_alarms
        n_alarms += 1
        if n_alarms == 3 or time.process_time() - started > seconds:
            raise TookTooLongError(f"no end after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """Collect what is written outside a folder, and what is run or reached, whatever is in it."""
    seen: list[str] = []
    _watching.append((folder.resolve(), seen))
    try:
        yield seen
    finally:
        _watching.pop()


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    folder, seen = _watching[-1]
    if event == "open":
        if isinstance(arguments[2], int) and arguments[2] & WRITING and _is_outside(arguments[0], folder):
            seen.append(f"open {arguments[0]!r}")
    elif event in CHANGES:
        if event in ("os.remove", "os.rmdir") and arguments[1] not in (None, -1):
            return  # within a folder that is removed whole, of which shutil.rmtree has told
        seen.extend(f"{event} {one!r}" for one in arguments if isinstance(one, str | Path) and _is_outside(one, folder))
    elif event in PROGRAMS:
        if "sandbox.py" not in str(arguments):  # ours, in which templates are rendered
            seen.append(f"{event} {arguments!r}")
    elif event in REACHES:
        seen.append(f"{event} {arguments!r}")
    elif event == "ctypes.dlopen" and _is_outside(arguments[0], Path(sys.prefix)):
        seen.append(f"{event} {arguments!r}")
    elif event == "exec" and isinstance(arguments[0], CodeType):
        name = arguments[0].co_filename
        if not name.startswith("<") and not _is_outside(name, folder):
            seen.append(f"exec {name}")


def _is_outside(path: object, folder: Path) -> bool:
    if not isinstance(path, str | bytes | os.PathLike):
        return False  # a descriptor, of what was opened before
    place = os.path.abspath(os.fsdecode(path))  # noqa: PTH100, resolving would itself be seen
    return not Path(place).is_relative_to(folder) and not any(own in place for own in OWN)


sys.addaudithook(_hook)
