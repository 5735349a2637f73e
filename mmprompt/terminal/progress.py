"""How far a long command is: bars with the time left on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0


@dataclass
class _Stage:
    task: TaskID
    n_before: int
    started: float
    n_said: int = -1
    said_at: float = -SECONDS_BETWEEN_LINES


class Stages(AbstractContextManager["Stages"]):
    """Bars for the stages of a command, one below the other, on the error stream.

    Args:
        console: where to show them; by default the error stream.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _TimeLeft())
        self._progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self._stages: dict[str, _Stage] = {}

    def __enter__(self) -> Stages:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, name: str, n_done: int, n_all: int) -> None:
        """Say how far a stage is.

        Args:
            name: what is counted, such as `cells`.
            n_done: how many are done.
            n_all: how many there are.
        """
        now = time.monotonic()
        if name not in self._stages:
            task = self._progress.add_task(name, total=n_all, completed=n_done, ends_at=None)
            self._stages[name] = _Stage(task, n_done, now)
        stage = self._stages[name]
        task_now = self._progress.tasks[self._progress.task_ids.index(stage.task)]
        if n_done > task_now.completed:
            pace = (now - stage.started) / (n_done - stage.n_before)
            self._progress.update(stage.task, ends_at=now + pace * (n_all - n_done))
        self._progress.update(stage.task, completed=n_done, total=n_all)
        if not self.console.is_terminal:
            self._say(name, n_done, n_all, task_now.fields["ends_at"])

    def _say(self, name: str, n_done: int, n_all: int, ends_at: float | None) -> None:
        stage, now = self._stages[name], time.monotonic()
        is_due = now - stage.said_at >= SECONDS_BETWEEN_LINES or n_done == n_all
        if n_done == stage.n_said or not is_due:
            return
        stage.n_said, stage.said_at = n_done, now
        rest = "" if ends_at is None or n_done == n_all else f", about {duration(ends_at - now)} left"
        self.console.print(f"{name}: {n_done} of {n_all}{rest}", markup=False, highlight=False, soft_wrap=True)


class _TimeLeft(ProgressColumn):
    """At the pace of the whole stage: rich's own column forgets what is older than half a minute."""

    def render(self, task: Task) -> Text:
        """The time left, nothing before the first step is done and after the last."""
        ends_at = task.fields["ends_at"]
        is_known = ends_at is not None and not task.finished
        return Text(f"{duration(ends_at - time.monotonic())} left" if is_known else "", style="dim")


def duration(seconds: float) -> str:
    """A time in the two largest units: `40 s`, `12 min`, `1 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 90:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
