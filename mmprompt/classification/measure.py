"""What a trained classifier is worth on test images, beside the frozen model with words alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmprompt.classification.predictor import Classifier
from mmprompt.classification.task import BARE_NAME, zero_shot
from mmprompt.classification.task import evaluate as score_items
from mmprompt.core.metrics import Evaluation, paired_bootstrap
from mmprompt.data.splits import Dataset, Item
from mmprompt.files import write_json
from mmprompt.models.image_features import ImageFeatures
from mmprompt.progress import doing
from mmprompt.settings import checked


@checked
def evaluate(
    classifier: Classifier, data: Dataset | Sequence[Item], split: str = "test", features: ImageFeatures | None = None
) -> Evaluation:
    """Score a classifier on a part of a data set, or on items labelled as its class names; see `core.fit.evaluate`.

    Where the names of a data set are others, or in another order, the same prompt tells those apart.
    """
    if isinstance(data, Sequence):
        return score_items(classifier, data, features)
    if data.class_names != classifier.class_names:
        classifier = classifier.with_class_names(data.class_names)
    return score_items(classifier, data.items(split), features)


@checked
@doing("testing beside zero-shot")
def measure(
    classifier: Classifier, data: Dataset, folder: Path | None = None, features: ImageFeatures | None = None
) -> dict[str, Any]:
    """Test a classifier beside zero-shot with the bare class name and with the hand-written template.

    Return, and write as `metrics.json` to a run folder: for each of `zero_shot_name`, `zero_shot_template` and
    `learned` the accuracy, its interval, per-class accuracy and confusion; for `learned` also the paired gain over
    each; and every test prediction. An image tower alone has no zero-shot. Nothing is chosen by these numbers.
    """
    features = features or ImageFeatures(classifier.backbone)
    words = {"zero_shot_name": BARE_NAME, "zero_shot_template": data.template} if classifier.backbone.has_text else {}
    baselines = {name: zero_shot(classifier.backbone, data.class_names, text) for name, text in words.items()}
    classifiers = baselines | {"learned": classifier}
    scores = {name: score_items(each, data.test, features) for name, each in classifiers.items()}
    metrics: dict[str, Any] = {name: _summary(score, data.test) for name, score in scores.items()}
    learned = scores["learned"]
    for name in baselines:
        gain = paired_bootstrap(learned.correct[None], scores[name].correct[None])
        difference = learned.accuracy - scores[name].accuracy
        metrics["learned"][f"gain_over_{name}"] = {"gain": difference, "interval": list(gain)}
    metrics["class_names"] = list(data.class_names)
    metrics["predictions"] = [
        {"path": str(item.path), "label": item.label, "predicted": predicted, "probability": probability}
        for item, predicted, probability in zip(data.test, learned.predictions, learned.probabilities, strict=True)
    ]
    if folder is not None:
        write_json(folder / "metrics.json", metrics)
    return metrics


def _summary(score: Evaluation, items: Sequence[Item]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "accuracy": score.accuracy,
        "interval": list(score.interval),
        "n": score.n,
        "top5": score.top5,
        "macro_f1": score.macro_f1,
        "calibration_error": score.calibration_error,
        "per_class": score.per_class,
        "confusion": score.confusion.tolist(),
    }
    novel = np.array([item.novel for item in items])
    if novel.any():
        summary["novel"] = {"accuracy": float(score.correct[novel].mean()), "n": int(novel.sum())}
    return summary
