"""One cell computed: fit a method, test it, and say what it took.

It reads and writes no results; who computes which cell is decided elsewhere.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mmprompt.classification.methods import ClassificationMethod
from mmprompt.classification.nearest_words import context_words
from mmprompt.classification.predictor import Classifier
from mmprompt.classification.task import ClassificationTask
from mmprompt.core.confidence import auroc_of_new_classes
from mmprompt.core.fit import Result, describe_method, fit
from mmprompt.core.method import settled
from mmprompt.core.metrics import evaluate_probabilities
from mmprompt.data.splits import Dataset
from mmprompt.experiments.cells import BASE, NEW, Cell
from mmprompt.experiments.results import Score
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.image_features import ImageFeatures
from mmprompt.training.recipe import Recipe
from mmprompt.version import __version__


@dataclass(frozen=True)
class Outcome:
    """What a cell came to.

    Args:
        facts: what it took and what it was, JSON-ready.
        scores: one a test.
    """

    facts: dict[str, Any]
    scores: list[Score]


def compute(cell: Cell, backbone: DualEncoder, features: ImageFeatures) -> Outcome:
    """Fit and test one cell.

    Args:
        cell: what to compute.
        backbone: its frozen model.
        features: shared features of picture files.
    Raises:
        UserError: something in the cell or its pictures is wrong.
        RunFailed: the loss stopped being finite.
    """
    data, tests = cell.load()
    method, started = cell.make(), time.monotonic()
    result = fit_cell(cell, method, backbone, data, features)
    seconds = time.monotonic() - started
    classifiers = {name: classifier_for(cell, method, result.predictor, test, features) for name, test in tests.items()}
    scores = [
        score_of(name, tests[name], classifier.probabilities([item.path for item in tests[name].test], features))
        for name, classifier in classifiers.items()
        if classifier is not None
    ]
    prompt = result.predictor.prompt
    facts = {
        "seconds": round(seconds, 3),
        "n_parameters": sum(parameter.numel() for parameter in prompt.parameters()),
        "n_train": len(data.train),
        "protocol": data.protocol,
        "data_notes": list(dict.fromkeys(note for one in (data, *tests.values()) for note in one.notes)),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "device": str(backbone.device),
        "backbone_fingerprint": backbone.fingerprint,
        "data_fingerprint": data.fingerprint,
        "versions": {"mmprompt": __version__, "torch": torch.__version__, "python": platform.python_version()},
        **settings_of(cell, method, data),
        "template": "/".join(dict.fromkeys(words_of(one) for one in classifiers.values() if one is not None)),
    }
    if method.is_trained:
        facts["nearest_words"] = context_words(result.predictor)
    if cell.is_divided and tests[NEW].test:
        facts["auroc_of_new_classes"] = auroc_of(result.predictor, tests[BASE], tests[NEW], features)
    return Outcome(facts, scores)


def fit_cell(
    cell: Cell, method: ClassificationMethod, backbone: DualEncoder, data: Dataset, features: ImageFeatures
) -> Result[Classifier]:
    """Fit the method of a cell."""
    task, recipe = ClassificationTask.of(data, features), Recipe(**cell.recipe)
    return fit(method, backbone, task, recipe=recipe, seed=cell.seed, progress=False)


def classifier_for(
    cell: Cell, method: ClassificationMethod, classifier: Classifier, test: Dataset, features: ImageFeatures
) -> Classifier | None:
    """Give the classifier for the classes of a test, None where it belongs to other classes.

    What learns nothing is made anew, since each data set has words of its own.
    """
    if not method.needs_shots:
        return fit_cell(cell, method, classifier.backbone, test, features).predictor
    if classifier.class_names == test.class_names:
        return classifier
    return None if classifier.prompt.is_class_specific else classifier.with_class_names(test.class_names)


def settings_of(cell: Cell, method: ClassificationMethod, data: Dataset) -> dict[str, Any]:
    """Say with which settings a cell was computed, and how what was kept of its training was chosen."""
    if not method.is_trained:
        selection = "strength on validation" if getattr(method, "inverse_strength", 0) is None else "none"
        return {"settings": asdict(method), "selection": selection}  # type: ignore[call-overload]
    recipe = cell.make_recipe(data)
    settings = describe_method(settled(method, cell.backbone, "classification"), {})["settings"]
    chosen = {name: value for name, value in settings.items() if name in cell.settings or value is not None}
    selection = "last epoch" if recipe.patience is None else "best epoch on validation"
    return {"settings": chosen, "recipe": asdict(recipe), "selection": selection}


def words_of(classifier: Classifier) -> str:
    """Say which words stand around the class names, for people to compare."""
    prompt, lines = classifier.prompt, classifier.prompt.template.text.split("\n")
    if getattr(prompt.head, "is_class_specific", False):
        return "none"
    if prompt.has("text"):
        return "learned"
    return lines[0] if len(lines) == 1 else f"mean of {len(lines)}"


def score_of(name: str, test: Dataset, table: np.ndarray) -> Score:
    """What a test came to."""
    found = evaluate_probabilities(table, [item.label for item in test.test], test.class_names)
    numbers: Mapping[str, Any] = {
        "accuracy": found.accuracy,
        "interval": list(found.interval),
        "top5": found.top5,
        "macro_f1": found.macro_f1,
        "calibration_error": found.calibration_error,
        "n_classes": len(test.class_names),
        "per_class": found.per_class,
    }
    return Score(name, numbers, found.correct, np.array(found.predictions), np.array(found.probabilities))


def auroc_of(classifier: Classifier, base: Dataset, new: Dataset, features: ImageFeatures) -> float:
    """Measure how well the classifier of the base classes tells their images from those of new classes."""
    known, unknown = (classifier.probabilities([item.path for item in part.test], features) for part in (base, new))
    return auroc_of_new_classes(known, unknown)
