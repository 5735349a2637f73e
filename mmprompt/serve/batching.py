"""Requests that wait, answered by one thread: whatever came while the last batch was computed is the next one.

Nobody waits for a batch to fill, so that a lone request is as quick as alone. It knows no prompts and no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from mmprompt.errors import UserError

Asked = TypeVar("Asked")
_log = logging.getLogger(__name__)


class BusyError(Exception):
    """Too much is waiting already."""


@dataclass(frozen=True)
class _Request(Generic[Asked]):
    questions: Sequence[Asked]
    answers: Future[list[Any]] = field(default_factory=Future)


class Batcher(Generic[Asked]):
    """A thread that answers the questions of several requests together.

    `answer` is called by that thread alone; `max_batch` limits a batch and a request, `max_waiting` all that wait;
    `measure` is told how many questions each batch has.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Asked]], list[Any]],
        max_batch: int,
        max_waiting: int,
        measure: Callable[[int], None] = lambda n_questions: None,
    ) -> None:
        self._answer, self._max_batch, self._max_waiting, self._measure = answer, max_batch, max_waiting, measure
        self._requests: queue.SimpleQueue[_Request[Asked] | None] = queue.SimpleQueue()
        self._kept: _Request[Asked] | None = None  # taken from the queue, but too large for the batch before it
        self._lock = threading.Lock()
        self.n_waiting = 0
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    async def ask(self, questions: Sequence[Asked]) -> list[Any]:
        """Return the answers to some questions, unless too many wait; who is cancelled before they are begun costs
        nothing.
        """
        request = _Request(questions)
        with self._lock:
            if self.n_waiting + len(questions) > self._max_waiting:
                raise BusyError
            self.n_waiting += len(questions)
        self._requests.put(request)
        return await asyncio.wrap_future(request.answers)

    def close(self) -> None:
        """Answer what waits, and end the thread."""
        self._requests.put(None)
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            running = [request for request in batch if request.answers.set_running_or_notify_cancel()]
            with self._lock:
                self.n_waiting -= sum(len(request.questions) for request in batch)
            if running:
                self._measure(sum(len(request.questions) for request in running))
                self._answer_all(running)

    def _next_batch(self) -> list[_Request[Asked]]:
        """Wait for a request and take it with all that have come since; [] at the end."""
        request = self._kept or self._requests.get()
        self._kept, n_questions = None, 0
        batch: list[_Request[Asked]] = []
        while request is not None:
            n_questions += len(request.questions)
            if batch and n_questions > self._max_batch:
                self._kept = request
                return batch
            batch.append(request)
            try:
                request = self._requests.get_nowait()
            except queue.Empty:
                return batch
        if batch:
            self._requests.put(None)  # the end is met again, after this batch
        return batch

    def _answer_all(self, batch: Sequence[_Request[Asked]]) -> None:
        """Answer the requests of a batch together, and one by one where that fails: one bad text is its sender's."""
        try:
            answers = iter(self._answer([question for request in batch for question in request.questions]))
        except Exception as error:
            if len(batch) > 1:
                for request in batch:
                    self._answer_all([request])
                return
            if not isinstance(error, UserError):
                _log.exception("a request failed")
            batch[0].answers.set_exception(error)
            return
        for request in batch:
            request.answers.set_result([next(answers) for _ in request.questions])
