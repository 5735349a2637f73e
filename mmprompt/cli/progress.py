"""How far a long command is: bars with the time left on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


class Stages(AbstractContextManager["Stages"]):
    """Bars for the stages of a command, one below the other, on the error stream."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, int]] = {}
        self._said: dict[str, tuple[int, float]] = {}

    def __enter__(self) -> Stages:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, stage: str, n_done: int, n_all: int) -> None:
        """Say how far a stage is.

        Args:
            stage: what is counted, such as `cells`.
            n_done: how many are done.
            n_all: how many there are.
        """
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=n_all, completed=n_done)
            self._started[stage] = (time.monotonic(), n_done)
        self._progress.update(self._tasks[stage], completed=n_done, total=n_all)
        if not self.console.is_terminal:
            self._say(stage, n_done, n_all)

    def _say(self, stage: str, n_done: int, n_all: int) -> None:
        now = time.monotonic()
        before, said_at = self._said.get(stage, (-1, -SECONDS_BETWEEN_LINES))
        is_due = now - said_at >= SECONDS_BETWEEN_LINES or n_done == n_all
        if n_done == before or not is_due:
            return
        self._said[stage] = (n_done, now)
        started, n_before = self._started[stage]
        left = (now - started) / (n_done - n_before) * (n_all - n_done) if n_done > n_before else 0
        rest = f", about {left:.0f} s left" if left else ""
        self.console.print(f"{stage}: {n_done} of {n_all}{rest}", markup=False, highlight=False, soft_wrap=True)
