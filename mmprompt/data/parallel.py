"""Work on many files, in order, by worker processes where there are many.

What is done with a file is the caller's choice. The number of workers changes no result and no random stream.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any, Generic, TypeVar

from mmprompt.errors import UserError

MAX_WORKERS = 8
WORTH_WORKERS = 256  # tasks: below, starting processes takes longer than reading
Task = TypeVar("Task")
Result = TypeVar("Result")
_log = logging.getLogger(__name__)


def in_workers(work: Callable[[Task], Result], tasks: Sequence[Task], n_workers: int | None = None) -> Iterator[Result]:
    """Yield the result of every task, in order; it holds no tensors, which would fill the shared memory.

    None workers are one a processor (at most 8) where there are 256 tasks or more. 0 works in this process, as is done
    where no other can be started or one has died.
    """
    n_workers = choose_workers(len(tasks)) if n_workers is None else n_workers
    n_done = 0
    if n_workers and tasks:
        import torch
        from torch.utils.data import DataLoader

        loader: Any = DataLoader(
            _Tasks(work, tasks),  # type: ignore[arg-type]
            batch_size=None,
            num_workers=n_workers,
            collate_fn=_as_it_is,
            worker_init_fn=_prepare_worker,
            generator=torch.Generator(),  # the default is the global stream, which a training draws from
        )
        try:
            for result in loader:
                if isinstance(result, UserError):
                    raise result
                yield result
                n_done += 1
        except UserError:
            raise
        except Exception as error:  # whatever starting, sending or dying raises; an error of the work comes again below
            reason = (str(error) or type(error).__name__).splitlines()[0]
            _log.warning("images are read in this process alone, because another one failed (%s).", reason)
    yield from map(work, tasks[n_done:])


def choose_workers(n_tasks: int) -> int:
    """Return how many processes this many tasks are worth, 0 for none."""
    n_processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    may_start = n_processors > 1 and not multiprocessing.current_process().daemon
    return min(MAX_WORKERS, n_processors) if may_start and n_tasks >= WORTH_WORKERS else 0


def end_with_parent() -> None:
    """Let this process end at once when the one that started it has ended, however that came."""
    parent = multiprocessing.parent_process()

    def end() -> None:
        wait([parent.sentinel])  # type: ignore[union-attr]
        os._exit(1)

    if parent is not None:
        threading.Thread(target=end, daemon=True).start()


class _Tasks(Generic[Task, Result]):
    """Results by index, as torch's loader wants them; a refusal is a result, which the loader would reword."""

    def __init__(self, work: Callable[[Task], Result], tasks: Sequence[Task]) -> None:
        self.work, self.tasks = work, tasks

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> Result | UserError:
        try:
            return self.work(self.tasks[index])
        except UserError as error:
            return error


def _as_it_is(result: Any) -> Any:
    return result


def _prepare_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
