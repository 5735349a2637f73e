"""Requests that wait, answered by one thread: whatever came while the last batch was computed is the next one.

Nobody waits for a batch to fill, so that a lone request is as quick as alone. It knows no prompts and no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, TypeVar

from mmprompt.errors import UserError

Asked = TypeVar("Asked")
_log = logging.getLogger(__name__)


class BusyError(Exception):
    """Too much is waiting already."""


class _Request(NamedTuple, Generic[Asked]):
    questions: Sequence[Asked]
    answers: asyncio.Future[list[Any]]


class Batcher(Generic[Asked]):
    """A thread that answers the questions of several requests together; made where an event loop runs.

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
        self._waiting: deque[_Request[Asked]] = deque()
        self._thread = ThreadPoolExecutor(1, "batches")
        self._work: asyncio.Task[None] | None = None

    async def ask(self, questions: Sequence[Asked]) -> list[Any]:
        """Return the answers to some questions, unless too many wait; who is cancelled in time costs nothing."""
        if sum(len(request.questions) for request in self._waiting) + len(questions) > self._max_waiting:
            raise BusyError
        request = _Request(questions, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._answer_all())
        return await request.answers

    async def close(self) -> None:
        """Answer what waits, and end the thread."""
        if self._work is not None:
            await self._work
        self._thread.shutdown()

    async def _answer_all(self) -> None:
        while self._waiting:
            batch: list[_Request[Asked]] = []
            room = self._max_batch
            while self._waiting and (not batch or len(self._waiting[0].questions) <= room):
                request = self._waiting.popleft()
                if not request.answers.cancelled():
                    batch.append(request)
                    room -= len(request.questions)
            if batch:
                self._measure(self._max_batch - room)
                await self._answer_together(batch)

    async def _answer_together(self, batch: Sequence[_Request[Asked]]) -> None:
        """Answer the requests of a batch together, and one by one where that fails: one bad text is its sender's."""
        questions = [question for request in batch for question in request.questions]
        try:
            found = iter(await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, questions))
        except Exception as error:
            if len(batch) > 1:
                for request in batch:
                    await self._answer_together([request])
                return
            if not isinstance(error, UserError):
                _log.exception("a request failed")
            if not batch[0].answers.cancelled():
                batch[0].answers.set_exception(error)
            return
        for request in batch:
            answers = [next(found) for _ in request.questions]
            if not request.answers.cancelled():
                request.answers.set_result(answers)
