"""Trainings in a queue: one at a time, each watched and stopped from anywhere.

It knows no page and no task. A job is a callback of the training that it runs, so that curves need nothing else.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal

from mmprompt.errors import UserError
from mmprompt.progress import CountProgress
from mmprompt.training.callbacks import Callback
from mmprompt.training.problem import Run, RunFailed

MOST_WAITING = 8
"""Trainings that wait at once, of all people together."""
Phase = Literal["waiting", "running", "done", "stopped", "failed"]
_log = logging.getLogger(__name__)


class Stopped(Exception):  # noqa: N818 - it is asked for, no error
    """A job was stopped before there was anything to keep."""


class Job(Callback):
    """One training and how far it is: its phase, the records of its epochs so far, and in a few words what goes on.

    `work` does it, and is given the job to report to and as a callback; `keeps_part` says whether a training that is
    stopped keeps what it has learned so far. `n_epochs` is 0 where that is not known yet, `problem` why it failed.
    """

    def __init__(self, place: str, work: Callable[[Job], None], keeps_part: bool = True) -> None:
        self.place, self.work, self.keeps_part = place, work, keeps_part
        self.phase: Phase = "waiting"
        self.history: list[dict[str, Any]] = []
        self.n_epochs = 0
        self.doing = self.problem = ""
        self._stop = threading.Event()

    @property
    def is_alive(self) -> bool:
        """Whether it waits or runs."""
        return self.phase in ("waiting", "running")

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether somebody has stopped it."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask it to end: at once while it waits or prepares, after the epoch under way while it trains."""
        self._stop.set()
        if self.phase == "waiting":
            self.phase = "stopped"

    def say(self, doing: str) -> None:
        """Say what goes on, in a few words; a stop ends the work there, unless something was learned already."""
        self.doing = doing
        if self._stop.is_set() and not self.history:
            raise Stopped

    def count(self, doing: str) -> CountProgress:
        """Return what to call with how many are done and how many there are."""
        return lambda n_done, n_all: self.say(f"{doing}, {n_done:,} of {n_all:,}")

    def on_train_begin(self, run: Run) -> None:
        """Take down how long it will be."""
        self.n_epochs, self.history, self.doing = run.n_epochs, list(run.history), "learning"

    def on_step_end(self, run: Run, step: int, logs: Mapping[str, float]) -> None:
        """End at once where nothing is kept."""
        if self._stop.is_set() and not self.keeps_part:
            raise Stopped

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        """Take down the record of the epoch, and end if that was asked for."""
        self.history.append(dict(logs))
        run.is_stopped = run.is_stopped or self._stop.is_set()

    def run(self) -> None:
        """Do the work; whatever goes wrong is written down, and the studio goes on."""
        if self.phase != "waiting":
            return
        self.phase, self.doing = "running", "preparing"
        try:
            self.work(self)
            self.phase = "done"
        except Stopped:
            self.phase = "stopped"
        except (UserError, RunFailed) as error:
            self.phase, self.problem = "failed", str(error)
        except Exception as error:
            _log.exception("a training of the studio failed")
            self.phase = "failed"
            self.problem = f"The training failed ({type(error).__name__}). The studio's terminal says where."


class Jobs:
    """The queue of all people's trainings; one runs at a time, in a thread of its own."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Job] = queue.Queue()
        self._known: list[Job] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._work, daemon=True, name="studio trainings").start()

    def add(self, job: Job) -> Job:
        """Put a job at the end, unless as many wait as may."""
        with self._lock:
            self._known = [one for one in self._known if one.is_alive]
            if sum(one.phase == "waiting" for one in self._known) >= MOST_WAITING:
                raise UserError(
                    f"{MOST_WAITING} trainings are waiting, and no more may wait at once. Try again in a minute."
                )
            self._known.append(job)
            self._queue.put(job)
        return job

    def n_ahead(self, job: Job) -> int:
        """Count the trainings that come before a waiting one."""
        with self._lock:
            alive = [one for one in self._known if one.is_alive]
        return alive.index(job) if job in alive else 0

    def _work(self) -> None:
        while True:
            self._queue.get().run()
