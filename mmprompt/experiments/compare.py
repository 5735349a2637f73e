"""A comparison from beginning to end: check the grid, compute what is missing, bring it into lines.

Results stay in one SQLite file, so that a killed comparison goes on where it stopped and a larger one computes only
what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmprompt.errors import bad_value
from mmprompt.experiments.cells import cell_to_json
from mmprompt.experiments.grid import Grid, Planned, plan, read_pictures
from mmprompt.experiments.results import Results
from mmprompt.experiments.summary import Comparison, compare_cells
from mmprompt.experiments.workers import default_workers, fill

RESULTS = "results.sqlite"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Listener:
    """Who is told how far a comparison is.

    Args:
        pictures: called with how many pictures are encoded and how many are missing.
        cells: called with how many cells are done and how many there are.
    """

    pictures: Progress | None = None
    cells: Progress | None = None


def compare(
    grid: Grid,
    results: Path | str = RESULTS,
    workers: int | None = None,
    device: str = "auto",
    listener: Listener | None = None,
) -> Comparison:
    """Compute the cells of a grid that are not in the file of results yet, and compare all of them.

    Args:
        grid: what is compared.
        results: the SQLite file; several comparisons, and several processes, may share it.
        workers: processes; by default one a GPU, else this one alone.
        device: as for `load_backbone`.
        listener: told how far it is.
    Raises:
        UserError: something in the grid or its pictures cannot be; the file of results is as it was then.
        RunFailed: the worker processes died.
    """
    if workers is not None and workers < 1:
        raise bad_value("workers", workers, "at least one process is needed", "Use `workers=1`.")
    listener = listener or Listener()
    planned = plan(grid.cells(), device)
    keys = [one.key for one in planned]
    official = frozenset(data.name for one in planned for data in (one.data, *one.tests.values()) if data.is_official)
    path = Path(results)
    read_pictures(_missing(path, planned), device, listener.pictures)
    store = Results(path)
    try:
        store.add({one.key: cell_to_json(one.cell) for one in planned})
        if any(state != "done" for state in store.states(keys).values()):
            fill(path, keys, workers or default_workers(device), device, listener.cells)
        return compare_cells(grid, keys, store.finished(keys), store.failures(keys), official)
    finally:
        store.close()


def _missing(path: Path, planned: Sequence[Planned]) -> list[Planned]:
    """The cells that are not done; a file of results that is not there is not made."""
    if not path.exists():
        return list(planned)
    store = Results(path)
    try:
        store.take_back_from_dead()
        states = store.states([one.key for one in planned])
        return [one for one in planned if states.get(one.key) != "done"]
    finally:
        store.close()
