"""A search for the settings that do best on validation images, with Optuna: pruned, resumable, in several processes.

The test part is not in reach: the search takes a data set apart and keeps no test images. It leaves a recipe for
`mmprompt train --config`, which is measured by training with it, all trials, a figure and a page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from mmprompt.classification.methods import make_method
from mmprompt.classification.task import ClassificationTask
from mmprompt.core.fit import fit
from mmprompt.core.method import parts_of, refuse_idle_recipe, resolved_recipe
from mmprompt.data.splits import Dataset
from mmprompt.errors import UserError
from mmprompt.experiments.encode import store_features
from mmprompt.experiments.grid import Origin
from mmprompt.experiments.study import N_REPORTS, Range, open_study, require_optuna, take_trial
from mmprompt.experiments.workers import Workers
from mmprompt.files import make_folder, sha256_bytes, write_bytes
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.image_features import ImageFeatures
from mmprompt.progress import CountProgress, ShowProgress
from mmprompt.reports.figures import Trial, draw_sensitivity
from mmprompt.reports.pages import missing_extra, write_page
from mmprompt.reports.tables import Table, percent, render
from mmprompt.settings import Count, check
from mmprompt.training.callbacks import Callback
from mmprompt.training.problem import Run, RunFailed
from mmprompt.training.recipe import Recipe, epochs_for

N_SHOWN = 10
NEAR = 0.01
ALONE = Workers(1)


@dataclass(frozen=True)
class Search:
    """What is searched for, on what: `space` varies, `settings` of the method and of the `recipe` are fixed.

    `shots` are training images a class, None for all; a trial is worth its mean over the `seeds`.
    """

    origin: Origin
    backbone: str
    method: str
    settings: Mapping[str, Any]
    recipe: Mapping[str, Any]
    space: Mapping[str, Range]
    shots: int | None
    seeds: tuple[int, ...] = (1,)

    def load(self, seed: int) -> Dataset:
        """Return the data set without its test part."""
        data = replace(self.origin.load(self.shots, seed), test=())
        if not data.train or not data.val:
            part = "validation" if data.train else "training"
            raise UserError(
                f"{data.name} has no {part} images, and a search chooses on validation alone. "
                "Give a data set with train and val parts; `mmprompt data split` makes them."
            )
        return data

    def parts(self, values: Mapping[str, Any], data: Dataset) -> tuple[Any, Recipe]:
        """Return the method and the recipe with some values put in."""
        names = {field.name for field in fields(Recipe)}
        given = {**self.recipe, **{name: v for name, v in values.items() if name in names}}
        settings = {**self.settings, **{name: v for name, v in values.items() if name not in names}}
        method = make_method(self.method, settings)
        return method, resolved_recipe(method, (self.backbone, "classification"), data.recipe, Recipe(**given))


@dataclass(frozen=True)
class SearchResult:
    """What a search came to: all trials that ended, in order, and the chosen one.

    `default` has the published settings, which the search starts from; None if they are not in the space.
    """

    trials: tuple[Trial, ...]
    best: Trial
    default: Trial | None
    n_failed: int


def without_broken(search: Search, device: str = "auto", progress: CountProgress | None = None) -> Search:
    """Return the same search without the images that cannot be read; those of the test part are not looked at."""
    draws = [(search.shots, seed) for seed in search.seeds]
    known = ImageFeatures(load_backbone(search.backbone, device)).stored
    return replace(search, origin=search.origin.without_broken(draws, ("train", "val"), progress, known))


def tune(
    search: Search,
    storage: str,
    n_trials: int,
    workers: Workers = ALONE,
    device: str = "auto",
    progress: ShowProgress | None = None,
    begin: Callable[[], None] = lambda: None,
) -> SearchResult:
    """Search until a study holds a number of ended trials; each process beside the first may add one more.

    The storage is an SQLAlchemy URL; a study that is there is gone on with, and more processes may join. `progress` is
    called with `images` or `trials`, how many are done and how many there are, and `begin` once nothing is refused any
    more.
    """
    require_optuna()
    check("trials", n_trials, Count, "Use `trials=1`.")
    show = progress or (lambda name, n_done, n_all: None)
    backbone = load_backbone(search.backbone, device)
    data = [search.load(seed) for seed in search.seeds]
    check_ends(search, backbone, data[0])
    begin()
    # every image once: a broken one is met now, and the workers find features in the store
    paths = dict.fromkeys(item.path for part in data for item in (*part.train, *part.val))
    place = ("classification", search.backbone, backbone)
    store_features(*place, list(paths), workers, device, partial(show, "images"))
    job = _Job(search, storage, study_name(search, backbone, data), n_trials)
    study = open_study(storage, job.study)
    first = default_values(search, data[0])
    if first is not None and not study.trials:
        study.enqueue_trial(first)
    if workers.is_this_process(device):
        job.work(device, partial(show, "trials"))
    else:
        calls = [(one,) for one in workers.devices(device)]
        n_left = partial(job.n_left, study, partial(show, "trials"))
        workers.run(job.work, calls, n_left, f"{n_trials} trials not done")
    return result_of(open_study(storage, job.study), first)


def check_ends(search: Search, backbone: DualEncoder, data: Dataset) -> None:
    """Try out both ends of every range, so that no trial is refused later; refuse what changes nothing."""
    of_steps = [name for name in search.space if name in {field.name for field in fields(Recipe)}]
    method = search.parts({}, data)[0]
    if of_steps and not method.is_trained:
        said = f"{of_steps[0]} is a setting of steps, but {search.method} takes none"
        raise UserError(f"{said}. Search with a method that learns in steps, such as coop.")
    refuse_idle_recipe(search.recipe, {search.method: method})
    for end in ("low", "high"):
        values = {name: getattr(limits, end) for name, limits in search.space.items()}
        try:
            method, recipe = search.parts(values, data)
            ClassificationTask.of(data).complete(recipe)
            method.build(backbone, data.class_names, template=data.template).class_features()
        except UserError as error:
            shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
            raise UserError(f"{error} The search would try {shown}: narrow a range, as in n_ctx=1:8.") from None


def study_name(search: Search, backbone: DualEncoder, data: list[Dataset]) -> str:
    """Return a name that two searches share only if they search for the same on the same."""
    identity = [
        backbone.fingerprint,
        [part.fingerprint for part in data],
        search.method,
        sorted(search.settings.items()),
        sorted(search.recipe.items()),
        sorted(search.space.items(), key=lambda pair: pair[0]),
        search.seeds,
    ]
    return f"{search.origin.name}-{search.method}-{sha256_bytes(repr(identity).encode())[:12]}"


def default_values(search: Search, data: Dataset) -> dict[str, Any] | None:
    """Return the values of the published settings and the data set's own; None if one is open or out of its range."""
    method, recipe = search.parts({}, data)
    known: dict[str, Any] = {
        field.name: getattr(part, field.name) for part in (*parts_of(method), recipe) for field in fields(part)
    }
    known["epochs"] = epochs_for(recipe, data.shots)
    if "n_ctx" in known:
        known["n_ctx"] = known["n_ctx"] or 16
    values = {name: known[name] for name in search.space}
    is_inside = all(values[name] is not None and limits.holds(values[name]) for name, limits in search.space.items())
    return values if is_inside else None


def result_of(study: Any, default: Mapping[str, Any] | None) -> SearchResult:
    """Return the trials of a study, and the best of those that were finished."""
    from optuna.trial import TrialState

    ended = [trial for trial in study.trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    tried = [
        Trial(trial.params, trial.value, trial.state == TrialState.PRUNED) for trial in ended if trial.value is not None
    ]
    whole = [trial for trial in tried if not trial.is_pruned]
    n_failed = sum(trial.state == TrialState.FAIL for trial in study.trials)
    if not whole:
        raise RunFailed(
            f"none of {len(study.trials)} trials came to an end, {n_failed} failed. Search a smaller range."
        )
    first = next((trial for trial in whole if default is not None and dict(trial.settings) == dict(default)), None)
    return SearchResult(tuple(tried), max(whole, key=lambda trial: trial.accuracy), first, n_failed)


class ReportValidation(Callback):
    """Report validation accuracy as a trial goes, and stop it when the pruner gives it up."""

    def __init__(self, trial: Any) -> None:
        self.trial = trial

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        """Measure, report, and perhaps stop."""
        import optuna

        share = N_REPORTS * (epoch + 1) // run.n_epochs
        if share == N_REPORTS * epoch // run.n_epochs:
            return
        accuracy = run.problem.validate()
        assert accuracy is not None, "a search was started without validation images"
        self.trial.report(accuracy, share)
        if epoch + 1 < run.n_epochs and self.trial.should_prune():
            raise optuna.TrialPruned


@dataclass(frozen=True)
class _Job:
    """What every process of a search is told: the search, and the study that shall hold a number of trials."""

    search: Search
    storage: str
    study: str
    n_trials: int

    def work(self, device: str, report: CountProgress | None = None) -> None:
        """Run trials in this process until the study holds enough."""
        features = ImageFeatures(load_backbone(self.search.backbone, device))
        data = [self.search.load(seed) for seed in self.search.seeds]
        study = open_study(self.storage, self.study)

        def run_trial(trial: Any) -> float:
            """Train with the values of a trial, once a seed; the mean accuracy on validation of what is kept.

            Only the first seed's accuracies are reported on the way, since others would be compared with it.
            """
            take_trial(study, trial)
            values = {name: limits.suggest(trial, name) for name, limits in self.search.space.items()}
            accuracies = []
            for index, (seed, part) in enumerate(zip(self.search.seeds, data, strict=True)):
                method, recipe = self.search.parts(values, part)
                task, listeners = ClassificationTask.of(part, features), [ReportValidation(trial)] if index == 0 else []
                steps = recipe if method.is_trained else None
                result = fit(method, features.backbone, task, None, steps, seed, listeners, progress=False)
                accuracies.append(result.evaluate(part.val).accuracy)
            return fmean(accuracies)

        def after_trial(study: Any, trial: Any) -> None:
            if self.n_left(study, report) <= 0:
                study.stop()

        if self.n_left(study, report) > 0:
            study.optimize(run_trial, callbacks=[after_trial], catch=(RunFailed,))

    def n_left(self, study: Any, report: CountProgress | None = None) -> int:
        """Return how many trials are missing, whoever ran the others, and report how many have ended."""
        n_done = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
        if report is not None:
            report(min(self.n_trials, n_done), self.n_trials)
        return self.n_trials - n_done


def write_search(search: Search, result: SearchResult, folder: Path, command: str) -> Path | None:
    """Write the recipe, `trials.csv` and, with the report extra, `sensitivity.png` and `report.html`.

    Return the path of the page, None without the extra.
    """
    make_folder(folder)
    recipe = recipe_yaml(search, result)
    write_bytes(folder / "recipe.yaml", recipe.encode())
    rows = []
    for trial in result.trials:
        settings = [trial.settings[name] for name in search.space]
        rows.append(tuple(map(str, (*settings, trial.accuracy, trial.is_pruned))))
    trials = Table((*search.space, "validation_accuracy", "pruned"), tuple(rows), 0)
    write_bytes(folder / "trials.csv", render(trials, "csv").encode())
    if missing_extra():
        return None
    ranked = sorted((trial for trial in result.trials if not trial.is_pruned), key=lambda trial: -trial.accuracy)
    near = [trial for trial in ranked if trial.accuracy >= result.best.accuracy - NEAR]
    return write_page(
        folder,
        "search",
        {"sensitivity": partial(draw_sensitivity, result.trials, list(search.space), result.best)},
        {},
        search=search,
        result=result,
        tried={name: [trial.settings[name] for trial in result.trials] for name in search.space},
        near={name: [trial.settings[name] for trial in near] for name in search.space},
        ranked=ranked[:N_SHOWN],
        recipe=recipe,
        command=command,
    )


def recipe_yaml(search: Search, result: SearchResult) -> str:
    """Return the chosen settings, with all else that a training needs to be the same; the seed if there was one."""
    place: dict[str, Any] = {"data": search.origin.data or search.origin.name}
    place |= {"root": search.origin.root, "datasets_dir": search.origin.datasets_dir}
    settings = {
        **{name: value for name, value in place.items() if value is not None},
        "backbone": search.backbone,
        "method": search.method,
        "shots": search.shots,
        **({"seed": search.seeds[0]} if len(search.seeds) == 1 else {}),
        **({"skip_broken": True} if search.origin.broken else {}),
        **search.settings,
        **search.recipe,
        **result.best.settings,
    }
    comment = (
        f"# Chosen by mmprompt tune: {percent(result.best.accuracy)} on the validation images, the best of "
        f"{len(result.trials)} trials.\n# The test part was not looked at. Use it with: mmprompt train --config FILE\n"
    )
    return comment + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
