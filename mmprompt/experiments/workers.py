"""The processes that compute cells: each claims one after the other until none is left.

Several of them share a file of results, whether they were started together or by hand; the cells of one that died are
taken over by the others. This file knows claims and processes, not what a cell computes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import torch

from mmprompt.errors import UserError
from mmprompt.experiments.cells import cell_from_json
from mmprompt.experiments.compute import compute
from mmprompt.experiments.results import Claim, Owner, Results
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.image_features import ImageFeatures
from mmprompt.models.image_reading import end_with_parent
from mmprompt.training.problem import RunFailed

PAUSE_S = 0.2
Progress = Callable[[int, int], None]


def fill(path: Path, keys: Sequence[str], workers: int, device: str, progress: Progress | None = None) -> None:
    """Compute all cells that are not done yet.

    Args:
        path: the file of results; the cells are in it.
        keys: of the cells, in the order in which they are wanted.
        workers: processes; 1 computes in this one. With several GPUs they are dealt out in turn.
        device: as for `load_backbone`.
        progress: called with how many cells are done or failed and how many there are.
    Raises:
        RunFailed: all worker processes ended before the cells were computed.
    """
    report = progress or _silent
    if workers == 1:
        _work(path, keys, device, report)
        return
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // workers)
    children = [
        context.Process(target=_child, args=(path, list(keys), device_of(index, device), threads), daemon=True)
        for index in range(workers)
    ]
    results = Results(path)
    try:
        for child in children:
            child.start()
        while any(child.is_alive() for child in children):
            report(_n_settled(results, keys), len(keys))
            time.sleep(PAUSE_S)
    finally:
        for child in children:
            if child.pid is not None and child.is_alive():
                child.terminate()
        for child in children:
            if child.pid is not None:
                child.join()
        results.take_back_from_dead()
        n_settled = _n_settled(results, keys)
        report(n_settled, len(keys))
        results.close()
    if n_settled < len(keys):
        raise RunFailed(
            f"the worker processes ended with {len(keys) - n_settled} of {len(keys)} cells not computed; memory may "
            "have run out. Run it again with fewer `workers`: what is done is kept."
        )


def device_of(index: int, device: str) -> str:
    """The device of the worker of that number: the GPUs in turn, anything else as it is."""
    if device in {"auto", "cuda"} and torch.cuda.is_available():
        return f"cuda:{index % torch.cuda.device_count()}"
    return device


def default_workers(device: str) -> int:
    """One process a GPU, else one."""
    return max(1, torch.cuda.device_count()) if device in {"auto", "cuda"} else 1


def _silent(n_done: int, n_cells: int) -> None:
    """No report."""


def _n_settled(results: Results, keys: Sequence[str]) -> int:
    return sum(state in {"done", "failed"} for state in results.states(keys).values())


def _child(path: Path, keys: Sequence[str], device: str, threads: int) -> None:
    """A worker process; it ends with its parent, and a signal puts its cell back in line."""
    signal.signal(signal.SIGTERM, _stop)
    end_with_parent()
    torch.set_num_threads(threads)
    with contextlib.suppress(KeyboardInterrupt):
        _work(path, keys, device, _silent)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _work(path: Path, keys: Sequence[str], device: str, report: Progress) -> None:
    """Claim and compute until every cell is settled, waiting for those that others compute."""
    results, bench = Results(path), _Bench(device)
    try:
        with Owner(path) as owner:
            while True:
                results.take_back_from_dead()
                report(n_settled := _n_settled(results, keys), len(keys))
                if n_settled == len(keys):
                    return
                claim = results.claim(keys, owner)
                if claim is None:
                    time.sleep(PAUSE_S)
                    continue
                try:
                    _settle(results, bench, claim)
                finally:
                    results.take_back(owner)
    finally:
        results.close()


class _Bench:
    """The backbone in use and the features of its pictures; one at a time, so that memory holds one model."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._features: ImageFeatures | None = None
        self._name = ""

    def features(self, name: str) -> ImageFeatures:
        """The shared features of a backbone, which holds the backbone itself."""
        if self._features is None or self._name != name:
            self._features = None  # the old model goes before the new one comes
            self._features, self._name = ImageFeatures(load_backbone(name, self.device)), name
        return self._features


def _settle(results: Results, bench: _Bench, claim: Claim) -> None:
    """Compute one claimed cell, and keep what came out or why nothing did; one bad cell does not stop a grid."""
    cell = cell_from_json(claim.cell)
    try:
        features = bench.features(cell.backbone)
        outcome = compute(cell, features.backbone, features)
    except (UserError, RunFailed) as error:
        results.fail(claim.key, str(error))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        results.fail(claim.key, f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}: {error}")
    else:
        results.finish(claim.key, outcome.facts, outcome.scores)
