"""The processes of a grid or a search: as many as are wanted, all doing the same until there is nothing left to do.

They share a folder or a database, not memory. This file knows processes and devices, not what is computed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mmprompt.data.parallel import end_with_parent
from mmprompt.training.problem import RunFailed

PAUSE_S = 0.2


def in_processes(
    work: Callable[..., None], calls: Sequence[tuple[Any, ...]], n_left: Callable[[], int], what: str
) -> None:
    """Call a function of a module in one process for each tuple of arguments, and wait until all have ended.

    They end with this process, and are ended when it is interrupted. `n_left`, called now and then meanwhile, counts
    what is missing; `what` says of how many what that is, as in `9 cells not computed`.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // len(calls))
    children = [context.Process(target=_child, args=(threads, work, *call), daemon=True) for call in calls]
    try:
        for child in children:
            child.start()
        while any(child.is_alive() for child in children):
            n_left()
            time.sleep(PAUSE_S)
    finally:
        for child in children:
            if child.pid is not None:
                child.terminate()
                child.join()
        n_missing = n_left()
    if n_missing > 0:
        raise RunFailed(
            f"the worker processes ended with {n_missing} of {what}; memory may have run out. "
            "Run it again with fewer `workers`: what is done is kept."
        )


def device_of(index: int, device: str) -> str:
    """Return the device of the worker of that number: the GPUs in turn, anything else as it is."""
    if device in {"auto", "cuda"} and torch.cuda.is_available():
        return f"cuda:{index % torch.cuda.device_count()}"
    return device


def default_workers(device: str) -> int:
    """Return one process a GPU, else one."""
    return max(1, torch.cuda.device_count()) if device in {"auto", "cuda"} else 1


def _child(threads: int, work: Callable[..., None], *arguments: Any) -> None:
    end_with_parent()
    torch.set_num_threads(threads)
    with contextlib.suppress(KeyboardInterrupt):
        work(*arguments)
