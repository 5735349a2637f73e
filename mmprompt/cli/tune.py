"""`mmprompt tune`: search for the settings that do best on validation pictures, and write them as YAML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmprompt.classification.cli.train import DATA
from mmprompt.classification.methods import method_types
from mmprompt.cli.grid import merged_settings
from mmprompt.errors import UserError
from mmprompt.experiments.cells import Origin
from mmprompt.experiments.search_space import read_space
from mmprompt.progress import ProgressDisplay
from mmprompt.terminal.lists import counts_in, is_given, names_in
from mmprompt.terminal.output import Output, percent
from mmprompt.terminal.parser import parse, peek
from mmprompt.terminal.pictures import own_path, refuse_both
from mmprompt.terminal.run_folder import check_place, command_of
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from mmprompt.experiments.tune import Search, SearchResult


DESCRIPTION = "Search for settings with Optuna. It chooses on validation pictures alone; test pictures are not loaded."


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
    strict: bool = False
    """Stop at the start if a picture is broken, naming it (the default)."""
    skip_broken: bool = False
    """Leave broken pictures out, and say which."""
    backbone: Annotated[str, tyro.conf.arg(metavar="NAME")] = "tiny"
    """The frozen model."""
    method: Annotated[str, tyro.conf.arg(metavar="NAME")] = "coop"
    """How to learn; `mmprompt methods list` shows the methods."""
    shots: Annotated[int | None, tyro.conf.arg(metavar="INT|None")] = 16
    """Training pictures of each class; None for all there are."""
    seed: Annotated[str, tyro.conf.arg(metavar="NUMBERS")] = "1"
    """Seeds with commas between; a trial counts with its mean over them."""
    search: Annotated[str, tyro.conf.arg(metavar="RANGES")] = "lr,n_ctx,epochs"
    """What varies, with commas between, each with a range or without: lr=1e-3:0.5,n_ctx=1:16,epochs."""
    trials: Annotated[int, tyro.conf.arg(metavar="INT")] = 30
    """Trials that the study shall hold in the end."""
    storage: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None
    """Where trials are kept and shared, as an SQLAlchemy URL; by default sqlite in the folder of --out."""
    workers: Annotated[int, tyro.conf.arg(metavar="INT")] = 1
    """Processes; more may join from elsewhere with the same --storage."""
    out: Annotated[Path, tyro.conf.arg(metavar="PATH")] = Path("runs/tune")
    """The folder for recipe.yaml, trials.csv, the figure and report.html."""
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    json: bool = False
    """Print one JSON document; everything for people goes to stderr."""

    def __post_init__(self) -> None:
        refuse_both(self.strict, self.skip_broken)

    def origin(self) -> Origin:
        """Where the pictures are.

        Raises:
            UserError: a data set and a folder are both given.
        """
        paths = (self.root, self.datasets_dir)
        root, folder = (None if path is None else str(path.resolve()) for path in paths)
        path = own_path(self.data, self.datasets_dir)
        if path is not None:
            return Origin(path.stem, str(path.resolve()), root)
        return Origin(self.data, None, root, folder)


def run(arguments: Sequence[str], prog: str) -> None:
    """Search, and write the result.

    Raises:
        UserError: something in the call or the data is wrong.
        RunFailed: no trial came to an end.
    """
    name = peek(arguments, "method") or Settings.method
    settings = merged_settings(method_types(name))
    form = make_dataclass("Tune", [("run", Settings), ("settings", settings), ("recipe", Recipe)], frozen=True)
    read: Any = parse(form, arguments, prog, DESCRIPTION, form(Settings(), settings(), Recipe()))

    from mmprompt.experiments.tune import tune, without_broken
    from mmprompt.experiments.tune_report import write_search

    given, search = read.run, search_of(read, arguments, settings)
    output = Output(given.json)
    check_place(given.out)
    storage = given.storage or f"sqlite:///{given.out / 'study.db'}"
    output.say(f"Searching {', '.join(search.space)} for {name} on {search.origin.name}: {given.trials} trials.")
    output.say(f"They are kept in {storage}; the same command goes on with them.")
    with ProgressDisplay() as progress:
        if given.skip_broken:
            search = without_broken(search, given.device, progress.count("opened"))
        result = tune(search, storage, given.trials, given.workers, given.device, progress.show)
    report = write_search(search, result, given.out, command_of(arguments, prog))
    conclude(output, search, result, given.out, report)


def search_of(read: Any, arguments: Sequence[str], settings: type) -> Search:
    """The search that a command line asks for; settings that are not given are left to the method and the data set.

    Raises:
        UserError: a range is wrong, or a setting is both fixed and searched.
    """
    from mmprompt.experiments.tune import Search

    given: Settings = read.run
    own = [one.name for one in fields(settings)]
    space = read_space(names_in("search", given.search), own)
    fixed = [one.name for kind in (settings, Recipe) for one in fields(kind) if is_given(arguments, one.name)]
    for name in fixed:
        if name in space:
            raise UserError(f"{name} is fixed and searched at once. Leave it out of --search, or do not give it.")
    chosen = {name: getattr(read.settings, name) for name in own if name in fixed}
    recipe = {one.name: getattr(read.recipe, one.name) for one in fields(Recipe) if one.name in fixed}
    kept = {name: value for name, value in chosen.items() if name not in space}
    return Search(
        given.origin(), given.backbone, given.method, kept, recipe, space, given.shots, counts_in("seed", given.seed)
    )


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
    output.say(f"  mmprompt train --config {folder / 'recipe.yaml'}", "bold")
    output.document(
        {
            "settings": dict(result.best.settings),
            "validation_accuracy": result.best.accuracy,
            "trials": len(result.trials),
            "recipe": str(folder / "recipe.yaml"),
            "report": None if report is None else str(report),
        }
    )
