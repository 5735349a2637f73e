"""A count of pictures on the error stream, for work that comes before or after the training.

It is told how many are done and how many there are, and knows nothing of what is done to them.
"""

from __future__ import annotations

import contextlib
import time
from types import TracebackType

from rich.console import Console
from rich.errors import LiveError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Counter:
    """Called with two numbers, it shows them: a bar on a terminal, elsewhere a plain line now and then.

    Use it in a `with` block, which takes the bar down whatever happens.

    Args:
        what: is counted, such as `encoding pictures`.
        console: where to show it; by default the error stream.
        seconds_between_lines: how often a plain line may come; short work gets none.
    """

    def __init__(self, what: str, console: Console | None = None, seconds_between_lines: float = 10.0) -> None:
        self.what = what
        self.console = console or Console(stderr=True)
        self.seconds_between_lines = seconds_between_lines
        self._last_line = time.monotonic()
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Counter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._take_down()

    def __call__(self, done: int, total: int) -> None:
        """Show that so many are done of so many."""
        if not self.console.is_terminal:
            self._print(done, total)
            return
        if self._progress is None:
            self._put_up()
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total)
        if done >= total:
            self._take_down()

    def _print(self, done: int, total: int) -> None:
        if time.monotonic() - self._last_line >= self.seconds_between_lines:
            self._last_line = time.monotonic()
            self.console.print(f"{self.what} {done}/{total}", markup=False, highlight=False, soft_wrap=True)

    def _put_up(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        progress = Progress(*columns, console=self.console, transient=True)
        with contextlib.suppress(LiveError):  # the bar of a training is up: that one stays
            progress.start()
            self._progress, self._task = progress, progress.add_task(self.what)

    def _take_down(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
