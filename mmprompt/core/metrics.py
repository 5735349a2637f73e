"""Numbers from predictions: accuracy with its interval, top 5, macro F1, per class, confusion.

scikit-learn computes what it has. Nothing here chooses a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import mmprompt.display as display
from mmprompt.core.confidence import reliability
from mmprompt.errors import bad_value
from mmprompt.settings import Share, check, checked

if TYPE_CHECKING:
    from pandas import DataFrame

N_RESAMPLES = 2000
TOP = 5
N_CONFUSED = 3
Z_95 = 1.959964


@dataclass(frozen=True)
class Evaluation:
    """How well predictions fit labels.

    Args:
        class_names: C names.
        labels: [N] class indices.
        predictions: [N] class indices.
        probabilities: [N] the probability given to each prediction.
        accuracy: share of predictions that are right, 0..1.
        interval: 95 % bootstrap interval of the accuracy over images.
        top5: share of images whose class is among the five most probable, 0..1; 1 with five classes or fewer.
    """

    class_names: tuple[str, ...]
    labels: tuple[int, ...]
    predictions: tuple[int, ...]
    probabilities: tuple[float, ...]
    accuracy: float
    interval: tuple[float, float]
    top5: float

    def __repr__(self) -> str:
        low, high = self.interval
        return f"<Evaluation: accuracy {self.accuracy:.1%} (95 % {low:.1%} to {high:.1%}) of {self.n:,} images>"

    def _repr_html_(self) -> str:
        low, high = self.interval
        measures = {
            "macro F1": f"{self.macro_f1:.1%}",
            "among the five most probable": f"{self.top5:.1%}",
            "calibration error": f"{self.calibration_error:.1%}",
        }
        rows = most_confused(self.confusion, self.class_names)[:N_CONFUSED]
        confused = [(row["label"], row["predicted"], row["count"]) for row in rows]
        return display.section(
            f"accuracy {self.accuracy:.1%} (95 % {low:.1%} to {high:.1%}) of {self.n:,} images",
            display.facts(measures),
            display.bars(dict(sorted(self.per_class.items(), key=lambda pair: pair[1]))),
            display.table(("is", "taken for", "times"), confused) if confused else "",
        )

    def answered(self, threshold: float) -> tuple[float, float | None]:
        """What a threshold for "I don't know" costs and gains; choose one on validation images.

        Args:
            threshold: the least probability with which a label is given, 0..1.
        Returns:
            The share of images that are given a label, and the accuracy among these, None if there are none.
        """
        check("threshold", threshold, Share, "Use `threshold=0.5`.")
        sure = np.asarray(self.probabilities) >= threshold
        return float(sure.mean()), float(self.correct[sure].mean()) if sure.any() else None

    def to_frame(self) -> DataFrame:
        """Return a row for each image: class, predicted, probability and correct, as a pandas DataFrame.

        Raises:
            UserError: pandas is not installed.
        """
        return display.frame(
            {
                "class": [self.class_names[label] for label in self.labels],
                "predicted": [self.class_names[label] for label in self.predictions],
                "probability": self.probabilities,
                "correct": self.correct.tolist(),
            }
        )

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def correct(self) -> np.ndarray:
        """[N] booleans."""
        return np.asarray(self.labels) == np.asarray(self.predictions)

    @property
    def per_class(self) -> dict[str, float]:
        """Share of each class's pictures that are right; classes without pictures are left out."""
        labels, correct = np.asarray(self.labels), self.correct
        present = np.unique(labels)
        return {self.class_names[c]: float(correct[labels == c].mean()) for c in present}

    @property
    def confusion(self) -> np.ndarray:
        """[C, C] counts, true class by predicted class."""
        from sklearn.metrics import confusion_matrix

        return confusion_matrix(self.labels, self.predictions, labels=range(len(self.class_names)))

    @property
    def macro_f1(self) -> float:
        """The mean of the F1 scores of the classes that have pictures, 0..1."""
        from sklearn.metrics import f1_score

        present = sorted(set(self.labels))
        return float(f1_score(self.labels, self.predictions, labels=present, average="macro", zero_division=0))

    @property
    def calibration_error(self) -> float:
        """The expected calibration error of the predicted classes, 15 bins, 0..1 (Guo et al. 2017)."""
        return reliability(self.probabilities, self.correct).error


def evaluate_probabilities(probabilities: np.ndarray, labels: Sequence[int], class_names: Sequence[str]) -> Evaluation:
    """Score class probabilities [N, C], N at least 1, by labels [N] in 0..C-1."""
    from sklearn.metrics import top_k_accuracy_score

    predictions, n_classes = probabilities.argmax(1), probabilities.shape[1]
    correct = predictions == np.asarray(labels)
    all_five = {"k": TOP, "labels": np.arange(n_classes)}
    top5 = 1.0 if n_classes <= TOP else top_k_accuracy_score(labels, probabilities, **all_five)
    return Evaluation(
        tuple(class_names),
        tuple(int(label) for label in labels),
        tuple(int(p) for p in predictions),
        tuple(float(p) for p in probabilities.max(1)),
        float(correct.mean()),
        bootstrap_interval(correct),
        float(top5),
    )


def most_confused(confusion: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the most frequent mistakes, as rows of a table, from [C, C] counts, true class by predicted class."""
    counts = confusion * (1 - np.eye(len(class_names), dtype=int))
    totals = confusion.sum(axis=1)
    pairs = sorted(np.argwhere(counts > 0).tolist(), key=lambda p: (-counts[p[0], p[1]], p))
    return [
        {
            "label": class_names[true],
            "predicted": class_names[predicted],
            "count": int(counts[true, predicted]),
            "share": f"{100 * counts[true, predicted] / totals[true]:.0f} %",
        }
        for true, predicted in pairs
    ]


def one_a_class(places: Iterable[int], labels: Sequence[int] | np.ndarray) -> list[int]:
    """Order some places so that the first of every class comes before the second of any."""
    n_before: Counter[int] = Counter()
    turns = []
    for place in map(int, places):
        turns.append((n_before[int(labels[place])], place))
        n_before[int(labels[place])] += 1
    return [place for _, place in sorted(turns)]


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over images of numbers or booleans [N] (Efron 1979).

    Where all images are right, or all wrong, resampling finds nothing else, and the interval is Wilson's (1927).
    """
    if values.dtype == bool and values.all() == values.any():
        reach = Z_95**2 / (len(values) + Z_95**2)
        return (1 - reach, 1.0) if values.all() else (0.0, reach)
    return paired_bootstrap(values[None], np.zeros_like(values, dtype=float)[None], seed)


@checked
def paired_bootstrap(a: np.ndarray, b: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of mean(a - b), resampling runs and pictures together.

    The same runs and pictures are drawn for both sides, so what they share cancels.

    Args:
        a: [S, N] right or wrong, of S runs (seeds) on the same N pictures.
        b: [S, N], what `a` is compared with.
        seed: of the resampling.
    Raises:
        UserError: the two are not of the same runs and pictures, one of each at least.
    """
    if a.ndim != 2 or not a.size:
        raise bad_value("a", f"of shape {a.shape}", "runs x pictures were expected", "Use `a[None]` for one run.")
    if a.shape != b.shape:
        raise bad_value(
            "b", f"of shape {b.shape}", f"a is of shape {a.shape}", "Give both of the same runs and pictures."
        )
    difference = a.astype(float) - b.astype(float)
    n_runs, n_pictures = difference.shape
    rng = np.random.default_rng(seed)
    means = np.empty(N_RESAMPLES)
    n_at_once = max(1, 2**18 // n_pictures)
    for i in range(0, N_RESAMPLES if n_runs == 1 else 0, n_at_once):  # the same draws as below, many at once
        some = means[i : i + n_at_once]
        some[:] = difference[0, rng.integers(n_pictures, size=(len(some), n_pictures))].mean(axis=1)
    for i in range(N_RESAMPLES if n_runs > 1 else 0):
        runs = np.bincount(rng.integers(n_runs, size=n_runs), minlength=n_runs)  # how often each was drawn
        pictures = np.bincount(rng.integers(n_pictures, size=n_pictures), minlength=n_pictures)
        means[i] = runs @ (difference @ pictures) / (n_runs * n_pictures)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
