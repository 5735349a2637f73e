"""How far a long command is: bars with the time left on a terminal, elsewhere plain lines now and then.

It is told what is counted and how many of how many are done, or what is being done; it knows nothing of the work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

PATIENCE_S = 5.0
"""How long a command may say nothing."""
SECONDS_BETWEEN_LINES = 4.0
BEAT_S = 0.5
CountProgress = Callable[[int, int], None]
"""Called with how many are done and how many there are."""
ShowProgress = Callable[[str, int, int], None]
"""Called with what is counted too."""


_doing: list[tuple[str, float]] = []
_waiting: list[bool] = []
_spoken = 0.0


def spoke() -> None:
    """Remember that something was said just now."""
    global _spoken
    _spoken = time.monotonic()


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Name what is being done meanwhile, such as `loading photo`, for whoever asks; also a decorator."""
    named = (what, time.monotonic())
    _doing.append(named)
    try:
        yield
    finally:
        _doing.remove(named)


@contextmanager
def waiting() -> Iterator[None]:
    """Say nothing meanwhile: somebody is to type."""
    _waiting.append(True)
    try:
        yield
    finally:
        _waiting.pop()
        spoke()


@contextmanager
def never_silent(console: Console | None = None, patience: float | None = None) -> Iterator[None]:
    """Say what is being done whenever nothing was said for so many seconds, by default `PATIENCE_S`."""
    patience = PATIENCE_S if patience is None else patience
    console, is_over, began = console or Console(stderr=True), threading.Event(), time.monotonic()
    spoke()

    def watch() -> None:
        while not is_over.wait(min(BEAT_S, patience / 2)):
            now = time.monotonic()
            if now - _spoken >= patience and not _waiting:
                what, since = _doing[-1] if _doing else ("still at work", began)
                console.print(f"{what}: {duration(now - since)} so far", markup=False, highlight=False, soft_wrap=True)
                spoke()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()


@dataclass
class _Stage:
    task: TaskID
    n_before: int
    n_done: int
    started: float
    line: str = ""
    ends_at: float | None = None
    is_said: bool = False
    is_finished: bool = False

    def how_long(self, now: float) -> str:
        """Return the end of a plain line: the time left, or so far where that is not known yet or is over."""
        if self.is_finished:
            return ""
        if self.ends_at is not None and self.ends_at > now:
            return f"  {duration(self.ends_at - now)} left"
        return f"  {duration(now - self.started)} so far" if now - self.started >= 1 else ""


class ProgressDisplay(AbstractContextManager["ProgressDisplay"]):
    """Bars for the stages of a command, one below the other; use it in a `with` block, which takes them down.

    Off a terminal a plain line is written whenever the last one is some seconds old, even while one piece of work takes
    longer; work that is done sooner gets none. All goes to the error stream, which leaves the output to results. Bars
    that are kept stay on the terminal in the end.
    """

    def __init__(
        self,
        console: Console | None = None,
        seconds_between_lines: float = SECONDS_BETWEEN_LINES,
        is_kept: bool = False,
    ) -> None:
        self.console = console or Console(stderr=True)
        self.seconds_between_lines = seconds_between_lines
        self.is_kept = is_kept
        self._bars = self._make_bars()
        self._stages: dict[str, _Stage] = {}
        self._latest: _Stage | None = None
        self._last_line = time.monotonic()
        self._lock = threading.Lock()
        self._is_closed = threading.Event()
        self._beat: threading.Thread | None = None

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bars down, so that a terminal is usable after an error too."""
        self._bars.stop()
        self._is_closed.set()
        if self._beat is not None:
            self._beat.join()

    def count(self, name: str) -> CountProgress:
        """Return what to call with how many are done and how many there are."""
        return partial(self.show, name)

    def show(self, name: str, n_done: int, n_all: int) -> None:
        """Show progress: `n_done` of `n_all`."""
        self.update(name, n_done, n_all, f"{name} {n_done}/{n_all}")
        self.write_line(at_once=n_done >= n_all and self._stages[name].is_said)
        if all(stage.is_finished for stage in self._stages.values()):
            self._bars.stop()  # other bars may have the terminal now; what comes later is shown anew
            self._bars, self._stages = self._make_bars(), {}

    def update(self, name: str, n_done: int, n_all: int, line: str, title: str = "", detail: str = "") -> None:
        """Move a bar, without a plain line; the next one says `line` before the time left.

        `title` stands before the bar, by default the name, and `detail` behind it.
        """
        now = time.monotonic()
        if name not in self._stages:
            task = self._bars.add_task(name, total=n_all, detail=detail, ends_at=None)
            self._stages[name] = _Stage(task, n_done, n_done, now)
        stage = self._stages[name]
        if n_done > stage.n_done:
            pace = (now - stage.started) / (n_done - stage.n_before)
            stage.ends_at = now + pace * (n_all - n_done)
        stage.n_done, stage.line, stage.is_finished = n_done, line, n_done >= n_all
        shown: dict[str, Any] = {"description": title or name, "detail": detail, "ends_at": stage.ends_at}
        self._bars.update(stage.task, completed=n_done, total=n_all, **shown)
        self._bars.start()
        self._latest = stage
        if self.console.is_terminal:
            spoke()
        if self._beat is None and not self.console.is_terminal:
            self._beat = threading.Thread(target=self._write_on, daemon=True)
            self._beat.start()

    def write_line(self, at_once: bool = False) -> None:
        """Off a terminal, write a plain line on the latest stage if it is time for one, or in any case if `at_once`."""
        with self._lock:
            stage, now = self._latest, time.monotonic()
            is_due = at_once or now - self._last_line >= self.seconds_between_lines
            if stage is None or self.console.is_terminal or not is_due:
                return
            stage.is_said, self._last_line = True, now
            spoke()
            self.console.print(stage.line + stage.how_long(now), markup=False, highlight=False, soft_wrap=True)

    def _make_bars(self) -> Progress:
        name, detail = TextColumn("{task.description}"), TextColumn("{task.fields[detail]}")
        columns = (name, BarColumn(), MofNCompleteColumn(), detail, _TimeLeft())
        is_hidden = not self.console.is_terminal
        return Progress(*columns, console=self.console, transient=not self.is_kept, disable=is_hidden)

    def _write_on(self) -> None:
        """Write lines while a single piece of work takes long."""
        while not self._is_closed.wait(BEAT_S):
            if self._latest is not None and not self._latest.is_finished:
                self.write_line()


class _TimeLeft(ProgressColumn):
    """At the pace of the whole stage: rich's own column forgets what is older than half a minute."""

    def render(self, task: Task) -> Text:
        """Return the time left, nothing before the first step is done, where it is over, and after the last."""
        ends_at, now = task.fields["ends_at"], time.monotonic()
        is_known = ends_at is not None and ends_at > now and not task.finished
        return Text(f"{duration(ends_at - now)} left" if is_known else "", style="dim")


def duration(seconds: float) -> str:
    """Return a time in the two largest units: `40 s`, `12 min`, `1 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 90:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
