"""`mmprompt tune`: search for the settings that do best on validation images, and write them as YAML."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmprompt.classification.cli.train import DATA
from mmprompt.classification.methods import method_types
from mmprompt.cli.compare import find_origin, given_values, merged_settings
from mmprompt.cli.workers import WorkerSettings
from mmprompt.errors import UserError, bad_value
from mmprompt.models.packaged import refuse_missing
from mmprompt.progress import ProgressDisplay
from mmprompt.terminal.output import Device, Json, Output, check_place, command_of, percent
from mmprompt.terminal.parser import counts_in, names_in, parse, peek, typed
from mmprompt.training.recipe import LENGTHS, Recipe

if TYPE_CHECKING:
    from mmprompt.experiments.grid import Origin
    from mmprompt.experiments.tune import Search, SearchResult

DESCRIPTION = "Search for settings with Optuna. It chooses on validation images alone; test images are not loaded."


@dataclass(frozen=True)
class Settings:
    """What is searched for, and where it goes."""

    data: Annotated[str, tyro.conf.arg(metavar="NAME|PATH")] = DATA
    """A data set known by name (`mmprompt data list`), or your own images with a val part: a folder, a CSV or JSONL
    table, or a split file."""
    root: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The folder that holds the named set's folder."""
    datasets_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """A folder with YAML files of more data sets."""
    skip_broken: bool = False
    """Leave broken images out, and say which; by default the first stops everything at the start."""
    backbone: Annotated[str, tyro.conf.arg(metavar="NAME")] = "tiny"
    """The frozen model."""
    method: Annotated[str, tyro.conf.arg(metavar="NAME")] = "coop"
    """How to learn; `mmprompt methods list` shows the methods."""
    shots: Annotated[int | None, tyro.conf.arg(metavar="INT|None")] = 16
    """Training images of each class; None for all there are."""
    seed: Annotated[str, tyro.conf.arg(metavar="NUMBERS")] = "1"
    """Seeds with commas between; a trial counts with its mean over them."""
    search: Annotated[str, tyro.conf.arg(metavar="RANGES")] = "lr,n_ctx,epochs"
    """What varies, with commas between, each with a range or without: lr=1e-3:0.5,n_ctx=1:16,epochs."""
    trials: Annotated[int, tyro.conf.arg(metavar="INT")] = 30
    """Trials that the study shall hold in the end."""
    storage: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None
    """Where trials are kept and shared, as an SQLAlchemy URL; by default sqlite in the folder of --out. Processes may
    join from elsewhere."""
    out: Annotated[Path, tyro.conf.arg(metavar="PATH")] = Path("runs/tune")
    """The folder for recipe.yaml, trials.csv, the figure and report.html."""
    device: Device = "auto"
    json: Json = False


def run(arguments: Sequence[str], prog: str) -> None:
    """Search, and write the result."""
    name = peek(arguments, "method", Settings.method)
    settings = merged_settings(method_types(name))
    groups = {"run": Settings, "workers": WorkerSettings, "method": settings, "recipe": Recipe}
    form = make_dataclass("Tune", groups.items(), frozen=True)
    read: Any = parse(form, arguments, prog, DESCRIPTION, form(*(group() for group in groups.values())))
    given = read.run
    refuse_missing(given.backbone)
    origin, seeds = find_origin(given.data, given.root, given.datasets_dir), counts_in("seed", given.seed)

    from mmprompt.experiments.tune import tune, without_broken, write_search

    search, workers = search_of(read, arguments, origin, seeds), read.workers.chosen()
    output = Output(given.json)
    check_place(given.out)
    if given.storage is None and "?" in str(given.out):
        raise bad_value("out", given.out, "the study in it has an address, where ? has a meaning", "Give another name.")
    storage = given.storage or f"sqlite:///{given.out / 'study.db'}"

    def begin() -> None:
        output.say(f"Searching {', '.join(search.space)} for {name} on {search.origin.name}: {given.trials} trials.")
        output.say(f"They are kept in {storage}; the same command goes on with them.")

    with ProgressDisplay() as progress:
        if given.skip_broken:
            search = without_broken(search, given.device, progress.count("opened"))
        result = tune(search, storage, given.trials, workers, given.device, progress.show, begin)
    report = write_search(search, result, given.out, command_of(arguments, prog))
    conclude(output, search, result, given.out, report)


def search_of(read: Any, arguments: Sequence[str], origin: Origin, seeds: tuple[int, ...]) -> Search:
    """Return the search that is asked for; settings that are not given are left to the method and the data set."""
    from mmprompt.experiments.study import read_space
    from mmprompt.experiments.tune import Search

    given: Settings = read.run
    space = read_space(names_in("search", given.search), [one.name for one in fields(read.method)])
    settings, recipe = (given_values(group, arguments) for group in (read.method, read.recipe))
    fixed_by = {name: name for name in (*settings, *recipe)}
    for name in recipe.keys() & set(LENGTHS):
        fixed_by["epochs"] = name
    if typed(arguments, "search") is None:  # the ranges are ours, not asked for
        space = {name: limits for name, limits in space.items() if name not in fixed_by} or space
    for name in space:
        if name in fixed_by:
            option = f"--{fixed_by[name].replace('_', '-')}"
            raise UserError(f"{name} is fixed and searched at once. Leave it out of --search, or do not give {option}.")
    return Search(origin, given.backbone, given.method, settings, recipe, space, given.shots, seeds)


def conclude(output: Output, search: Search, result: SearchResult, folder: Path, report: Path | None) -> None:
    """Print what was chosen and where it lies."""
    from mmprompt.reports.pages import missing_extra

    output.say()
    rows = [[name, f"{value:.4g}"] for name, value in result.best.settings.items()]
    output.table(["setting", "chosen"], rows, numbers=(1,))
    output.say()
    output.say(f"validation accuracy  {percent(result.best.accuracy)} ({len(result.trials)} trials)")
    output.say(f"recipe               {folder / 'recipe.yaml'}")
    output.say(f"report               {report or missing_extra()}")
    output.say()
    output.say("Try next:")
    output.say(f"  mmprompt train --config {shlex.quote(str(folder / 'recipe.yaml'))}", "bold")
    output.document(
        {
            "settings": dict(result.best.settings),
            "validation_accuracy": result.best.accuracy,
            "trials": len(result.trials),
            "recipe": str(folder / "recipe.yaml"),
            "report": None if report is None else str(report),
        }
    )
