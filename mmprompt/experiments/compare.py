"""A comparison from beginning to end: check the grid, compute what is missing, bring it into lines.

Each cell of the grid is a folder, so that a killed comparison goes on where it stopped and a larger one computes only
what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmprompt.classification.task import ClassificationTask
from mmprompt.core.fit import method_of, task_of
from mmprompt.core.method import Method
from mmprompt.data.catalog import dataset_names
from mmprompt.data.splits import Dataset
from mmprompt.errors import bad_value
from mmprompt.experiments.compute import Bench, fill, plan, read_images
from mmprompt.experiments.grid import Contender, Grid, Origin
from mmprompt.experiments.results import read_failure, read_outcome
from mmprompt.experiments.summary import Comparison, compare_cells
from mmprompt.experiments.workers import Workers
from mmprompt.progress import ProgressDisplay, ShowProgress
from mmprompt.settings import Count, check, checked
from mmprompt.training.recipe import Recipe, check_names

RESULTS = "runs/cells"
BY_DEVICE = Workers()


@checked
def compare(
    methods: Mapping[str, tuple[Method | str, str]],
    tasks: Sequence[Any] | Mapping[str, Any],
    shots: Sequence[int | None] = (None,),
    seeds: Sequence[int] = (1, 2, 3),
    out: Path | str = RESULTS,
    recipe: Recipe | None = None,
    targets: Sequence[Any] | Mapping[str, Any] = (),
    workers: int | None = None,
    engine: str = "local",
    engine_options: Mapping[str, Any] | None = None,
    device: str = "auto",
    progress: bool = True,
    **settings: Any,
) -> Comparison:
    """Fit and test every method on every task, over shots and seeds; what was computed once is not again.

    Args:
        methods: by name a method, or the name of one, and the name of a frozen model, such as
            `{"coop": (CoOp(), "tiny")}`. The one named `zero-shot` is what gains are measured from; of texts the best
            of `instruction 1`, `instruction 2` and so on.
        tasks: data sets of images or their names in the catalogue, paths of folders and tables of images, captions of a
            focus, or rows of text; in a mapping, by names of your own, a text is a path too.
        shots: training items a class, drawn of named data sets and of rows of text; None for all there are.
        seeds: of the draw and the start.
        out: a folder that keeps every cell as a run folder; several comparisons, and processes, may share it.
        recipe: settings of optimiser and schedule, as for `fit`.
        targets: further data that each fit is tested on.
        workers: processes; by default one a GPU, else this one alone.
        engine: who starts them: `local`, `ray` or `submitit`, which reach other machines; all see the folder `out`.
        engine_options: of each worker, such as `{"num_gpus": 1}` for Ray, `{"slurm_partition": "gpu"}` for submitit.
        device: as for `load_backbone`.
        progress: show how far it is, on the error stream.
        settings: single settings of the recipe; they win over `recipe`.
    Raises:
        UserError: something in the call or the data cannot be; nothing is computed then.
        RunFailed: the worker processes died.
    """
    check_names(settings)
    for each in shots:
        check("shots", each, Count | None, "Baselines without shots need none.")
    origins, others = origins_of(tasks), origins_of(targets)
    contenders = contenders_of(methods, origins)
    for origin in origins:
        is_drawn = origin.is_place or origin.kind == "language"
        if tuple(shots) != (None,) and not is_drawn:
            shown = ",".join(map(str, shots))
            problem = f"the shots of {origin.name}, which is at hand, were drawn before"
            raise bad_value("shots", shown, problem, "Leave `shots` out, or give data sets by name.")
    given = (recipe.given if recipe else {}) | settings
    grid = Grid(origins, contenders, tuple(shots), tuple(seeds), given, others)
    with ProgressDisplay() as display:
        who = Workers(workers, engine, engine_options or {})
        return compare_grid(grid, out, who, device, display.show if progress else None)


def contenders_of(methods: Mapping[str, Any], origins: Sequence[Origin]) -> tuple[Contender, ...]:
    """Name what is compared; refuse what is no method for the data, or no name of a frozen model beside it."""
    tasks = [ClassificationTask if origin.is_place else task_of(origin.data) for origin in origins]
    contenders = []
    for name, pair in methods.items():
        match pair:
            case [method, str(backbone)]:
                pass
            case _:
                expected = "a pair of a method and the name of a frozen model was expected"
                advice = 'Write {"coop": (CoOp(), "tiny")}.'
                raise bad_value(f"methods[{name!r}]", f"of type {type(pair).__name__}", expected, advice)
        for task in tasks:
            method = method_of(method, task)
        contenders.append(Contender(name, method, backbone))
    return tuple(contenders)


def origins_of(tasks: Sequence[Any] | Mapping[str, Any]) -> tuple[Origin, ...]:
    """Say where each data set is, or that it is at hand."""
    origins = []
    for name, data in tasks.items() if isinstance(tasks, Mapping) else [("", data) for data in tasks]:
        if isinstance(data, Origin):
            origins.append(data)
        elif isinstance(data, Path):
            origins.append(Origin(name or data.name, str(data)))
        elif isinstance(data, str):
            if name not in ("", data) and data in dataset_names():
                advice = f'Write {{"{data}": "{data}"}}.'
                raise bad_value(f"data[{name!r}]", data, "a data set of the catalogue goes by its own name", advice)
            origins.append(Origin(name or data, None if data == (name or data) else data))
        else:
            task: Any = task_of(data)
            if not isinstance(data, Dataset) and not hasattr(task, "data"):
                expected = "a comparison takes the data set itself, captions of one focus or rows of text"
                raise bad_value("data", f"of type {type(data).__name__}", expected, "Give the data set, or its name.")
            own, focus = getattr(task, "name", "") or task.data.name, getattr(task, "focus", "")
            origins.append(Origin(name or (f"{own}: {focus}" if focus else own), data))
    return tuple(origins)


def compare_grid(
    grid: Grid,
    results: Path | str = RESULTS,
    workers: Workers = BY_DEVICE,
    device: str = "auto",
    progress: ShowProgress | None = None,
    begin: Callable[[], None] = lambda: None,
) -> Comparison:
    """Compute the cells of a grid that are not finished, and compare all of them.

    Several comparisons, and several processes, may share the folder `results`. `progress` is called with `images` or
    `cells`, how many are done and how many there are, and `begin` once nothing is refused any more. What cannot be is
    refused before anything is written.
    """
    show = progress or (lambda name, n_done, n_all: None)
    bench, folder = Bench(device), Path(results)
    planned = plan(grid, bench)
    begin()
    missing = [one for one in planned if read_outcome(folder / one.key) is None]
    read_images(missing, bench, workers, partial(show, "images"))
    if missing:
        cells = {one.key: one.cell for one in planned}
        fill(folder, cells, workers, bench, partial(show, "cells"))
    places = [folder / one.key for one in planned]
    data = [part.data for one in planned for part in (one.source, *one.tests.values())]
    official = frozenset(one.name for one in data if getattr(one, "is_official", False))
    return compare_cells(grid, list(map(read_outcome, places)), list(map(read_failure, places)), official)
