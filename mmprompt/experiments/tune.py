"""A search for the settings that do best on validation pictures, with Optuna: pruned, resumable, in several processes.

The test part is not in reach: the search takes a data set apart and keeps no test pictures. The result is a recipe;
it is measured by training with it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from statistics import fmean
from typing import Any

import torch

from mmprompt.classification.methods import make_method
from mmprompt.classification.task import ClassificationTask
from mmprompt.core.fit import fit
from mmprompt.core.method import resolved_recipe
from mmprompt.data.splits import Dataset
from mmprompt.errors import UserError
from mmprompt.experiments.cells import Origin
from mmprompt.experiments.search_space import Range
from mmprompt.experiments.study import N_REPORTS, missing_optuna, n_ended, open_study
from mmprompt.experiments.workers import device_of
from mmprompt.files import sha256_bytes
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.image_features import ImageFeatures
from mmprompt.models.image_reading import end_with_parent
from mmprompt.reports.curves import Trial
from mmprompt.settings import Count, check
from mmprompt.training.callbacks import Callback
from mmprompt.training.problem import Run, RunFailed
from mmprompt.training.recipe import Recipe, epochs_for

PAUSE_S = 0.2
Show = Callable[[str, int, int], None]
"""Told what is counted, how many are done and how many there are."""
Counted = Callable[[int, int], None]


@dataclass(frozen=True)
class Search:
    """What is searched for, on what.

    Args:
        origin: where the pictures are.
        backbone: the name of the frozen model.
        method: by name.
        settings: of the method, fixed.
        recipe: what is fixed and differs from the published recipe.
        space: what varies.
        shots: training pictures a class, None for all.
        seeds: of draw and start; a trial is worth its mean over them.
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
        """Return the data set without its test part.

        Raises:
            UserError: something about the set is wrong, or it has nothing to train or to choose on.
        """
        data = replace(self.origin.load(self.shots, seed), test=())
        if not data.train or not data.val:
            part = "validation" if data.train else "training"
            raise UserError(
                f"{data.name} has no {part} pictures, and a search chooses on validation alone. "
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
    """What a search came to.

    Args:
        trials: all that ended, in order; pruned ones with the accuracy they had then.
        best: the chosen one.
        default: the one with the published settings, which the search starts from; None if it is not in the space.
        n_failed: trials whose training broke down.
    """

    trials: tuple[Trial, ...]
    best: Trial
    default: Trial | None
    n_failed: int


def without_broken(search: Search, device: str = "auto", progress: Counted | None = None) -> Search:
    """Return the same search without the images that cannot be read; those of the test part are not looked at.

    Args:
        search: whose images are opened, but for those whose features are stored.
        device: as for `load_backbone`.
        progress: called with how many are opened and how many there are.
    Raises:
        UserError: something about the data set is wrong.
    """
    draws = [(search.shots, seed) for seed in search.seeds]
    known = ImageFeatures(load_backbone(search.backbone, device)).stored
    return replace(search, origin=search.origin.without_broken(draws, ("train", "val"), progress, known))


def tune(
    search: Search,
    storage: str,
    n_trials: int,
    workers: int = 1,
    device: str = "auto",
    progress: Show | None = None,
) -> SearchResult:
    """Search until a study holds a number of trials.

    Args:
        search: what is searched for.
        storage: an SQLAlchemy URL such as `sqlite:///runs/study.db`; a study that is there is gone on with.
        n_trials: ended trials in all, at least 1; each process beside the first may add one more.
        workers: processes; more may join from elsewhere with the same storage.
        device: as for `load_backbone`.
        progress: called with `pictures` or `trials`, how many are done and how many there are.
    Raises:
        UserError: optuna is missing, the data has no validation part, a picture is broken, or a value is out of range.
        RunFailed: no trial came to an end, or the worker processes died.
    """
    problem = missing_optuna()
    if problem:
        raise UserError(problem)
    check("trials", n_trials, Count, "Use `trials=1`.")
    check("workers", workers, Count, "Use `workers=1`.")
    show = progress or (lambda name, n_done, n_all: None)
    backbone = load_backbone(search.backbone, device)
    data = [search.load(seed) for seed in search.seeds]
    check_ends(search, backbone, data[0])
    # every image once: a broken one is met now, and the workers find features in the store
    paths = dict.fromkeys(item.path for part in data for item in (*part.train, *part.val))
    ImageFeatures(backbone, progress=partial(show, "pictures")).of(list(paths))
    job = _Job(search, storage, study_name(search, backbone, data), n_trials)
    study = open_study(storage, job.study)
    first = default_values(search, data[0])
    if first is not None and not study.trials:
        study.enqueue_trial(first)
    if workers == 1:
        job.work(device, 0, partial(show, "trials"))
    else:
        _work_together(job, device, workers, partial(show, "trials"))
    return result_of(open_study(storage, job.study), first)


def check_ends(search: Search, backbone: DualEncoder, data: Dataset) -> None:
    """Try out both ends of every range, so that no trial is refused later.

    Raises:
        UserError: one is refused, such as more context vectors than the text tower has room for.
    """
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
        field.name: getattr(part, field.name)
        for part in (*getattr(method, "methods", (method,)), recipe)
        for field in fields(part)
    }
    known["epochs"] = epochs_for(recipe, data.shots)
    if "n_ctx" in known:
        known["n_ctx"] = known["n_ctx"] or 16
    values = {name: known[name] for name in search.space}
    return values if all(limits.holds(values[name]) for name, limits in search.space.items()) else None


def result_of(study: Any, default: Mapping[str, Any] | None) -> SearchResult:
    """Return the trials of a study, and the best of those that were finished.

    Raises:
        RunFailed: none was.
    """
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
    """Measure validation accuracy as a trial goes and stop it when the pruner gives it up.

    Args:
        trial: of Optuna.
        may_prune: only the first seed's accuracies are reported, since others would be compared with it.
    """

    def __init__(self, trial: Any, may_prune: bool) -> None:
        self.trial = trial
        self.may_prune = may_prune
        self.accuracy = 0.0

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        """Measure, report, and perhaps stop."""
        import optuna

        is_last = epoch + 1 == run.n_epochs
        share = N_REPORTS * (epoch + 1) // run.n_epochs
        is_new = self.may_prune and share > N_REPORTS * epoch // run.n_epochs
        if not (is_new or is_last):
            return
        accuracy = run.problem.validate()
        assert accuracy is not None, "a search was started without validation pictures"
        self.accuracy = logs["val_accuracy"] = accuracy
        if self.may_prune:
            self.trial.report(accuracy, share)
            if not is_last and self.trial.should_prune():
                raise optuna.TrialPruned


@dataclass(frozen=True)
class _Job:
    """What every process of a search is told: the search, and the study that shall hold a number of trials."""

    search: Search
    storage: str
    study: str
    n_trials: int

    def work(self, device: str, worker: int, report: Counted) -> None:
        """Run trials in this process until the study holds enough."""
        features = ImageFeatures(load_backbone(self.search.backbone, device))
        data = [self.search.load(seed) for seed in self.search.seeds]
        study = open_study(self.storage, self.study, worker)

        def run_trial(trial: Any) -> float:
            """Train with the values of a trial, once a seed; the mean accuracy on validation after the last epoch."""
            values = {name: limits.suggest(trial, name) for name, limits in self.search.space.items()}
            accuracies = []
            for index, (seed, part) in enumerate(zip(self.search.seeds, data, strict=True)):
                method, recipe = self.search.parts(values, part)
                listener = ReportValidation(trial, may_prune=index == 0)
                task = ClassificationTask.of(part, features)
                fit(method, features.backbone, task, recipe=recipe, seed=seed, callbacks=[listener], progress=False)
                accuracies.append(listener.accuracy)
            return fmean(accuracies)

        def after_trial(study: Any, trial: Any) -> None:
            if self.count(study, report) >= self.n_trials:
                study.stop()

        if self.count(study, report) < self.n_trials:
            study.optimize(run_trial, callbacks=[after_trial], catch=(RunFailed,))

    def count(self, study: Any, report: Counted) -> int:
        """Return how many trials have ended, whoever ran them, and report it."""
        n_done = n_ended(study)
        report(min(self.n_trials, n_done), self.n_trials)
        return n_done


def _work_together(job: _Job, device: str, workers: int, report: Counted) -> None:
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // workers)
    children = [
        context.Process(target=_child, args=(threads, job, device_of(index, device), index), daemon=True)
        for index in range(workers)
    ]
    study = open_study(job.storage, job.study)
    try:
        for child in children:
            child.start()
        while any(child.is_alive() for child in children):
            job.count(study, report)
            time.sleep(PAUSE_S)
    finally:
        for child in children:
            if child.pid is not None:
                child.terminate()
                child.join()
    n_left = job.n_trials - job.count(study, report)
    if n_left > 0:
        raise RunFailed(
            f"the worker processes ended with {n_left} of {job.n_trials} trials not done; memory may have run out. "
            "Run it again with fewer `workers`: what is done is kept."
        )


def _child(threads: int, job: _Job, device: str, worker: int) -> None:
    """Work in a process that ends with its parent."""
    end_with_parent()
    torch.set_num_threads(threads)
    with contextlib.suppress(KeyboardInterrupt):
        job.work(device, worker, lambda n_done, n_all: None)
