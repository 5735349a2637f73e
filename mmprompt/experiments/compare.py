"""A comparison from beginning to end: check the grid, compute what is missing, bring it into lines.

Results stay in one SQLite file, so that a killed comparison goes on where it stopped and a larger one computes only
what is new.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mmprompt.experiments.cells import cell_to_json
from mmprompt.experiments.grid import Grid, plan, read_pictures
from mmprompt.experiments.results import Results
from mmprompt.experiments.summary import Comparison, compare_cells
from mmprompt.experiments.workers import default_workers, fill
from mmprompt.settings import Count, check

RESULTS = "results.sqlite"
Show = Callable[[str, int, int], None]
"""Told what is counted, how many are done and how many there are."""


def compare(
    grid: Grid,
    results: Path | str = RESULTS,
    workers: int | None = None,
    device: str = "auto",
    progress: Show | None = None,
) -> Comparison:
    """Compute the cells of a grid that are not in the file of results yet, and compare all of them.

    Args:
        grid: what is compared.
        results: the SQLite file; several comparisons, and several processes, may share it.
        workers: processes; by default one a GPU, else this one alone.
        device: as for `load_backbone`.
        progress: called with `pictures` or `cells`, how many are done and how many there are.
    Raises:
        UserError: something in the grid or its pictures cannot be; the file of results is as it was then.
        RunFailed: the worker processes died.
    """
    check("workers", workers, Count | None, "Use `workers=1`.")
    show = progress or (lambda name, n_done, n_all: None)
    planned = plan(grid.cells(), device)
    keys = [one.key for one in planned]
    official = frozenset(data.name for one in planned for data in (one.data, *one.tests.values()) if data.is_official)
    path = Path(results)
    missing = list(planned)
    if path.exists():  # else it is not made before all images were read
        with contextlib.closing(Results(path)) as store:
            store.take_back_from_dead()
            states = store.states(keys)
        missing = [one for one in planned if states.get(one.key) != "done"]
    read_pictures(missing, device, partial(show, "pictures"))
    with contextlib.closing(Results(path)) as store:
        store.add({one.key: cell_to_json(one.cell) for one in planned})
        if any(state != "done" for state in store.states(keys).values()):
            fill(path, keys, workers or default_workers(device), device, partial(show, "cells"))
        return compare_cells(grid, keys, store.finished(keys), store.failures(keys), official)
