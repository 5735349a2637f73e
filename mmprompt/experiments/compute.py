"""Cells checked and computed: fit a method in a run folder, test it, and say what it took.

It goes through classification, captioning and language alike: their tasks say what is learned and how it is scored.
Who computes which cell, and where it is kept, is decided in `results`.
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from mmprompt.classification.words import context_words
from mmprompt.core.confidence import auroc_of_new_classes
from mmprompt.core.fit import Result, describe_method, fit
from mmprompt.core.header import HEADER, TENSORS
from mmprompt.core.metrics import Evaluation
from mmprompt.data.splits import SPLITS
from mmprompt.errors import UserError
from mmprompt.experiments.encode import features_of, store_features
from mmprompt.experiments.grid import BASE, NEW, Cell, Grid, Part
from mmprompt.experiments.memory import forget_peak, peak_bytes
from mmprompt.experiments.results import Outcome, Score, is_settled, reopen, settle
from mmprompt.experiments.workers import PAUSE_S, Workers
from mmprompt.files import write_bytes
from mmprompt.models.dual_encoder.load import MODEL_OF, load_backbone
from mmprompt.progress import CountProgress, doing
from mmprompt.training.callbacks import Callback
from mmprompt.training.problem import Run
from mmprompt.training.recipe import Recipe
from mmprompt.version import __version__

if TYPE_CHECKING:
    from mmprompt.captioning.metrics.adherence import FocusScores
    from mmprompt.language.measure import LanguageScore

BEGUN = "cell.json"
"""What of a cell is written first."""


class Bench:
    """The frozen model in use and the features of its images; one at a time, so that memory holds one model."""

    def __init__(self, device: str = "auto") -> None:
        self.device = device
        self.clear()

    def clear(self) -> None:
        """Let the model and its features go."""
        self.model: Any = None
        self.features: Any = None
        self._in_use = ("", "")

    def take(self, kind: str, name: str) -> Any:
        """Return the frozen model of that name for a kind of task."""
        if self._in_use != (kind, name):
            self.clear()  # the old model goes before the new one comes
            self.model = load_backbone(name, self.device, kind=MODEL_OF[kind])
            self.features = features_of(kind, self.model)
            self._in_use = kind, name
        return self.model

    def share(self, task: Any) -> Any:
        """Give a task the features of the model in use."""
        if self.features is not None:
            task.features = self.features
        return task


class Planned(NamedTuple):
    """A cell, its key, and the data that it needs."""

    cell: Cell
    key: str
    source: Part
    tests: Mapping[str, Part]


@doing("planning the cells")
def plan(grid: Grid, bench: Bench) -> list[Planned]:
    """Check every cell of a grid and find its key, before anything is computed."""
    planned: list[Planned] = []
    loaded: dict[Any, tuple[Part, dict[str, Part]]] = {}
    for cell in grid.cells():
        draw = (cell.source.name, cell.shots, cell.seed)
        if draw not in loaded:
            loaded[draw] = cell.load()
        source, tests = loaded[draw]
        for test in tests.values():
            if not test.items:
                raise UserError(f"{test.data.name} has no test images, so nothing can be compared on it. Leave it out.")
        task, model = source.task, bench.take(source.task.kind, cell.backbone)
        if cell.method.is_trained:
            cell.make_recipe(task)
        bench.share(task).predictor(cell.settled_method(task), model, seed=0)
        planned.append(Planned(cell, cell.key(model, source, tests), source, tests))
    return planned


def read_images(
    planned: Sequence[Planned], bench: Bench, workers: Workers, progress: CountProgress | None = None
) -> None:
    """Encode the images of cells once, so that a broken one is met now and the workers find features in the store."""
    images: dict[tuple[str, str], dict[Path, None]] = {}
    for cell, _, source, tests in planned:
        paths = images.setdefault((source.task.kind, cell.backbone), {})
        for part in (source, *tests.values()):
            if part.task.kind == "classification":
                paths |= dict.fromkeys(item.path for split in SPLITS for item in part.data.items(split))
            elif part.task.kind == "captioning":
                paths |= dict.fromkeys(item.image for item in (*part.task.items, *part.items))
    for (kind, name), paths in images.items():
        if paths:
            store_features(kind, name, bench.take(kind, name), list(paths), workers, bench.device, progress)


def fill(folder: Path, cells: Mapping[str, Cell], workers: Workers, bench: Bench, progress: CountProgress) -> None:
    """Compute all cells, by key, that are not finished; those that failed before are tried again."""

    def n_left() -> int:
        n_settled = sum(is_settled(folder / key) for key in cells)
        progress(n_settled, len(cells))
        return len(cells) - n_settled

    for key in cells:
        reopen(folder / key)
    if workers.is_this_process(bench.device):
        work(folder, cells, bench, n_left)
        return
    bench.clear()  # each process has its own
    calls = [(folder, cells, Bench(device)) for device in workers.devices(bench.device)]
    workers.run(work, calls, n_left, f"{len(cells)} cells not computed")


def work(folder: Path, cells: Mapping[str, Cell], bench: Bench, report: Callable[[], object] = lambda: None) -> None:
    """Compute one cell after the other until all are settled, waiting for those that others compute.

    A cell that was begun comes last: it may have cost a worker its life, and would the next.
    """
    report()
    while waiting := [key for key in cells if not is_settled(folder / key)]:
        n_settled = 0
        for key in sorted(waiting, key=lambda key: (folder / key / BEGUN).exists()):
            n_settled += settle(folder / key, partial(compute, cells[key], folder / key, bench))
            report()
        if not n_settled:
            time.sleep(PAUSE_S)


def compute(cell: Cell, folder: Path, bench: Bench) -> Outcome:
    """Fit and test one cell in its run folder; what an interrupted training left there is gone on with."""
    source, tests = cell.load()
    model = bench.take(source.task.kind, cell.backbone)
    tasks = [bench.share(part.task) for part in (source, *tests.values())]
    described = cell.describe(tasks[0]) | {"name": cell.name, "source": cell.source.name, "tests": list(tests)}
    write_bytes(folder / BEGUN, (json.dumps(described, indent=2, default=repr) + "\n").encode())
    forget_peak(model.device)
    started = time.monotonic(), time.process_time()
    result = fit_in(folder, cell, model, tasks[0])
    spent = {"seconds": time.monotonic() - started[0], "cpu_seconds": time.process_time() - started[1]}
    predictors = {name: predictor_for(cell, result.predictor, test.task) for name, test in tests.items()}
    tested = {name: predictor for name, predictor in predictors.items() if predictor is not None}
    evaluations = {name: tests[name].task.evaluate(one, tests[name].items) for name, one in tested.items()}
    facts = {
        # of a training that was gone on with, what it took before is in its records
        **{name: round(max(n, sum(record.get(name, 0) for record in result.history)), 3) for name, n in spent.items()},
        "peak_bytes": peak_bytes(model.device),
        "file_bytes": sum((folder / name).stat().st_size for name in (HEADER, TENSORS) if (folder / name).exists()),
        "n_parameters": sum(parameter.numel() for parameter in result.predictor.prompt.parameters()),
        **facts_of(cell, source, tests, result),
        "template": "/".join(dict.fromkeys(words_of(one, source.task.kind) for one in tested.values())),
    }
    if source.task.kind == "classification" and cell.method.is_trained:
        facts["nearest_words"] = context_words(result.predictor)
    if cell.is_divided:
        known, new = (
            result.predictor.probabilities([item.path for item in tests[name].items], bench.features)
            for name in (BASE, NEW)
        )
        facts["auroc_of_new_classes"] = auroc_of_new_classes(known, new)
    return Outcome(facts, {name: SCORES[source.task.kind](one) for name, one in evaluations.items()})


class _Clock(Callback):
    """Adds the processor's time to each epoch's record."""

    def on_epoch_begin(self, run: Run, epoch: int) -> None:
        """Start the clock."""
        self._started = time.process_time()

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        """Read the clock."""
        logs["cpu_seconds"] = round(time.process_time() - self._started, 3)


def fit_in(folder: Path, cell: Cell, model: Any, task: Any) -> Result[Any]:
    """Fit the method of a cell in its folder, where an earlier process may have stopped."""
    (folder / HEADER).unlink(missing_ok=True)  # trained and not tested: the last checkpoint has all of it
    recipe, has_begun = Recipe(**cell.recipe), (folder / "checkpoint").is_dir()
    fit_again = partial(fit, cell.method, model, task, folder, recipe, cell.seed, [_Clock()], progress=False)
    try:
        return fit_again(resume=has_begun)
    except UserError:  # such as a checkpoint that another device wrote
        if not has_begun:
            raise
    shutil.rmtree(folder / "checkpoint")
    return fit_again()


def predictor_for(cell: Cell, predictor: Any, task: Any) -> Any:
    """Give the predictor for the task of a test, None where it belongs to other classes.

    What learns nothing is made anew, since each data set has words of its own.
    """
    if not cell.method.needs_shots:
        return fit(cell.method, predictor.backbone, task, seed=cell.seed, progress=False).predictor
    names = getattr(task, "class_names", None)
    if names is None or predictor.class_names == names:
        return predictor
    return None if predictor.prompt.is_class_specific else predictor.with_class_names(names)


def facts_of(cell: Cell, source: Part, tests: Mapping[str, Part], result: Result[Any]) -> dict[str, Any]:
    """Say on what and with which settings a cell was computed, and how what was kept of its training was chosen."""
    task, method, model = source.task, cell.method, result.predictor.backbone
    data = task.describe(result.predictor)["data"]
    facts = {
        "n_train": data["sizes"]["train"],
        **({"protocol": data["protocol"]} if "protocol" in data else {}),
        "data_notes": list(dict.fromkeys(note for part in (source, *tests.values()) for note in part.data.notes)),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "backbone_fingerprint": model.fingerprint,
        "data_fingerprint": data["fingerprint"],
        "versions": {"mmprompt": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    if not method.is_trained:
        selection = "strength on validation" if getattr(method, "inverse_strength", 0) is None else "none"
        return facts | {"settings": asdict(method), "selection": selection}  # type: ignore[call-overload]
    recipe = cell.make_recipe(task)
    settings = describe_method(cell.settled_method(task), {})["settings"]
    return facts | {
        "settings": {name: value for name, value in settings.items() if value is not None},
        "recipe": asdict(recipe),
        "selection": "last epoch" if recipe.patience is None else "best epoch on validation",
    }


def words_of(predictor: Any, kind: str) -> str:
    """Say which words stand around what is asked, for people to compare."""
    prompt = predictor.prompt
    if kind != "classification":
        return prompt.template.text
    if getattr(prompt.head, "is_class_specific", False):
        return "none"
    if prompt.has("text"):
        return "learned"
    lines = prompt.template.text.split("\n")
    return lines[0] if len(lines) == 1 else f"mean of {len(lines)}"


def score_labels(found: Evaluation) -> Score:
    """Keep what images, or texts with labels, were taken for."""
    measures = ("top5", "macro_f1", "calibration_error")
    numbers = {name: getattr(found, name) for name in measures}
    return Score(found.correct, found.predictions, np.array(found.probabilities), numbers, found.per_class)


def score_captions(found: FocusScores) -> Score:
    """Keep how far each caption keeps to the focus, and all measures of them together."""
    parts, wholes = found.counts["adherence"]
    numbers = {name: value for name, value in found.values.items() if value is not None}
    return Score(parts / wholes, numbers=numbers)


def score_texts(found: LanguageScore) -> Score:
    """Keep the answers to rows of text, and which of them were right."""
    if found.labels is not None:
        return score_labels(found.labels)
    assert found.texts is not None, "texts were generated where there are no labels"
    numbers = {name: getattr(found.texts, name) for name in ("exact_match", "bleu", "chrf", "rouge_l")}
    return Score(found.degrees, found.answers, numbers=numbers)


SCORES: Mapping[str, Callable[[Any], Score]] = {
    "classification": score_labels,
    "captioning": score_captions,
    "language": score_texts,
}
