"""SIGINT and SIGTERM, turned into a flag that is looked at between two steps."""

from __future__ import annotations

import signal
import threading
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any


class Interrupts(AbstractContextManager["Interrupts"]):
    """Within the block a first SIGINT or SIGTERM only sets `received`; a second one acts at once.

    Handlers are installed in the main thread alone (Python allows it nowhere else) and put back at
    the end; a signal that the process was started to ignore, as under nohup, stays ignored.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    # None stands for a handler that was not installed from Python and cannot be put back.
                    self._before[number] = signal.signal(number, self._receive) or signal.SIG_DFL
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop(self) -> BaseException:
        """The exception that ends the process as its signal would: exit 130 or 143."""
        assert self.received is not None, "no signal was received"
        return KeyboardInterrupt() if self.received == signal.SIGINT else SystemExit(128 + self.received)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            raise self.stop()
        self.received = number
