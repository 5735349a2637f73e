"""One cell computed: fit a method or a baseline, test it, and say what it took.

It reads and writes no results; who computes which cell is decided elsewhere.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmprompt.classification.baselines import Scorer
from mmprompt.classification.nearest_words import context_words
from mmprompt.classification.task import Result, fit, probabilities
from mmprompt.core.confidence import auroc_of_new_classes
from mmprompt.core.metrics import evaluate_probabilities
from mmprompt.data.splits import Dataset
from mmprompt.experiments.cells import BASE, NEW, Cell
from mmprompt.experiments.results import Score
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.image_features import ImageFeatures
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


@dataclass(frozen=True)
class LearnedPrompt:
    """A trained prompt as a `Scorer`: other class names get the same vectors."""

    result: Result

    @property
    def n_parameters(self) -> int:
        """The learned numbers of the prompt."""
        return sum(p.numel() for p in self.result.classifier.prompt.parameters() if p.requires_grad)

    @property
    def reads_class_names(self) -> bool:
        """Whether the vectors serve other class names too."""
        return not self.result.classifier.prompt.is_class_specific

    def probabilities(self, paths: Sequence[Path], class_names: Sequence[str], template: str) -> np.ndarray:
        """Class probabilities [N, C] of picture files.

        Raises:
            UserError: the context is class-specific and the names are others.
        """
        classifier = self.result.classifier
        if tuple(class_names) != classifier.class_names:
            classifier = classifier.with_class_names(class_names)
        return probabilities(classifier, paths, self.result.features)


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
    started = time.monotonic()
    scorer, how = fit_cell(cell, backbone, data, tests, features)
    seconds = time.monotonic() - started
    readable = {n: t for n, t in tests.items() if scorer.reads_class_names or t.class_names == data.class_names}
    scores = [score_of(name, test, table_of(scorer, test)) for name, test in readable.items()]
    facts = {
        "seconds": round(seconds, 3),
        "n_parameters": scorer.n_parameters,
        "n_train": len(data.train),
        "protocol": data.protocol,
        "data_notes": list(dict.fromkeys(note for one in (data, *tests.values()) for note in one.notes)),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "device": str(backbone.device),
        "backbone_fingerprint": backbone.fingerprint,
        "data_fingerprint": data.fingerprint,
        "versions": {"mmprompt": __version__, "torch": torch.__version__, "python": platform.python_version()},
        **how,
    }
    if cell.is_divided and tests[NEW].test:
        facts["auroc_of_new_classes"] = auroc_of(scorer, tests[BASE], tests[NEW])
    return Outcome(facts, scores)


def fit_cell(
    cell: Cell, backbone: DualEncoder, data: Dataset, tests: Mapping[str, Dataset], features: ImageFeatures
) -> tuple[Scorer, dict[str, Any]]:
    """Fit a method or a baseline; the scorer, and which settings it came to, the words of each test among them."""
    made: Any = cell.make()
    if cell.is_baseline:
        selection = "strength on validation" if getattr(made, "inverse_strength", 0) is None else "none"
        return made.fit(backbone, data, features), {
            "settings": asdict(made),
            "selection": selection,
            "template": "/".join(dict.fromkeys(made.wording(one) for one in (data, *tests.values()))),
        }
    recipe = cell.make_recipe(data)
    result = fit(made, backbone, data, recipe=recipe, seed=cell.seed, features=features)
    selection = "last epoch" if recipe.patience is None else "best epoch on validation"
    template = "learned" if result.classifier.prompt.has("text") else data.template
    how = {"settings": dict(cell.settings), "recipe": asdict(recipe), "selection": selection, "template": template}
    return LearnedPrompt(result), how | {"nearest_words": context_words(result.classifier)}


def table_of(scorer: Scorer, test: Dataset) -> np.ndarray:
    """Class probabilities [N, C] of a test part."""
    return scorer.probabilities([item.path for item in test.test], test.class_names, test.template)


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


def auroc_of(scorer: Scorer, base: Dataset, new: Dataset) -> float:
    """How well the classifier of the base classes tells their pictures from those of new classes."""
    known, unknown = (
        scorer.probabilities([item.path for item in part.test], base.class_names, base.template) for part in (base, new)
    )
    return auroc_of_new_classes(known, unknown)
