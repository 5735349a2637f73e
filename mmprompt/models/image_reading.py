"""Picture files to the input of an image tower, in order, by worker processes where there are many.

It reads and transforms; what becomes of the pixels it does not know. The number of workers never changes them.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmprompt.data.images import read_image
from mmprompt.data.transforms import augment_coop
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.pixels import PixelTransform

MAX_WORKERS = 8
WORTH_WORKERS = 512  # pictures: below, starting processes costs more than it saves
PICTURES_PER_MESSAGE = 8
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class View:
    """One cropped and flipped view of a training picture (see `augment_coop`).

    Args:
        seed: of the run.
        view: its number.
        index: of the picture in the training set.
    """

    seed: int
    view: int
    index: int

    def __str__(self) -> str:
        return f"coop seed={self.seed} view={self.view} index={self.index}"


@dataclass(frozen=True)
class Job:
    """A picture file to read once, and what to make of it.

    Args:
        path: of the file.
        views: each an augmented view, or None for the backbone's own test transform.
    """

    path: Path
    views: tuple[View | None, ...]


@dataclass(frozen=True)
class PictureReader:
    """Does one job; sent to the workers, so it holds a backbone's transforms and not the backbone.

    Args:
        preprocess: one RGB picture to [3, H, W], normalised.
        normalize: pixels [..., 3, H, W] in 0..1 to normalised ones.
        size: H = W.
    """

    preprocess: Callable[[Image.Image], Tensor]
    normalize: Callable[[Tensor], Tensor]
    size: int

    @classmethod
    def of(cls, backbone: DualEncoder) -> PictureReader:
        """The transforms of a backbone; those of `FrozenDualEncoder` can be sent to another process."""
        pixels = getattr(backbone, "pixels", None)
        if isinstance(pixels, PixelTransform):
            return cls(pixels.apply, pixels.normalize, pixels.size)
        return cls(backbone.preprocess, backbone.normalize, backbone.image_size)

    def __call__(self, job: Job) -> np.ndarray:
        """[len(job.views), 3, H, W] float32.

        Raises:
            UserError: the picture cannot be read; names the file.
        """
        image = read_image(job.path)
        return np.stack([self._make(image, view).numpy() for view in job.views])

    def _make(self, image: Image.Image, view: View | None) -> Tensor:
        if view is None:
            return self.preprocess(image)
        return self.normalize(augment_coop(image, self.size, view.seed, view.view, view.index))


def decode(reader: PictureReader, jobs: Sequence[Job], n_workers: int | None = None) -> Iterator[Tensor]:
    """The input tensors of all views of all jobs, in order.

    Args:
        reader: does one job.
        jobs: any number.
        n_workers: processes; None for one a processor (at most 8) where there are 512 pictures or more. 0 reads in
            this process, as is done where no process can be started.
    Yields:
        [3, H, W] float32.
    Raises:
        UserError: a picture cannot be read.
    """
    n_workers = choose_workers(sum(len(job.views) for job in jobs)) if n_workers is None else n_workers
    n_done = 0
    if jobs and n_workers > 0 and can_be_sent(reader) and not multiprocessing.current_process().daemon:
        try:
            for pixels in in_workers(reader, jobs, n_workers):
                yield from torch.from_numpy(pixels)
                n_done += 1
        except BrokenProcessPool:
            _log.warning("a process that reads pictures ended early; the others are read in this one.")
    for job in jobs[n_done:]:
        yield from torch.from_numpy(reader(job))


def choose_workers(n_pictures: int) -> int:
    """How many processes so many pictures are worth; 0 for none."""
    n_processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_WORKERS, n_processors) if n_pictures >= WORTH_WORKERS and n_processors > 1 else 0


def can_be_sent(reader: PictureReader) -> bool:
    """Whether another process can be given this reader."""
    try:
        ForkingPickler.dumps(reader)
    except Exception:  # whatever a foreign transform raises
        return False
    return True


def in_workers(reader: PictureReader, jobs: Sequence[Job], n_workers: int) -> Iterator[np.ndarray]:
    """The results of jobs in order, with a bounded number of them waiting."""
    size = max(1, PICTURES_PER_MESSAGE // max(len(job.views) for job in jobs))
    with ProcessPoolExecutor(n_workers, initializer=prepare_worker) as pool:
        waiting: deque[Future[list[np.ndarray]]] = deque()
        try:
            for start in range(0, len(jobs), size):
                waiting.append(pool.submit(read_chunk, reader, jobs[start : start + size]))
                if len(waiting) > 2 * n_workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def read_chunk(reader: PictureReader, jobs: Sequence[Job]) -> list[np.ndarray]:
    """The work of one message to a worker."""
    return [reader(job) for job in jobs]


def prepare_worker() -> None:
    """Make a worker quiet and mortal: one thread, deaf to Ctrl-C (the parent ends it), gone when the parent is."""
    torch.set_num_threads(1)  # also what makes torch safe after a fork
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()


def end_with_parent() -> None:
    """Let this process end at once when the one that started it has ended, however that came."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
