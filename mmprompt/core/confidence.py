"""What the probability of a prediction is worth: its calibration, the temperature that mends it, whether it tells new
classes from known ones, and which labels speak against it.

It sees numbers alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

N_BINS = 15
LOWEST, HIGHEST = 0.02, 50.0
"""Temperatures that are looked between."""
SMALLEST = 1e-300
MOST_FOLDS = 5


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy: [K] means and shares, 0..1, and counts of K equal bins that hold a prediction."""

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def error(self) -> float:
        """The expected calibration error: mean distance of confidence and accuracy over predictions, 0..1."""
        distance = np.abs(np.subtract(self.confidence, self.accuracy))
        return float(np.average(distance, weights=self.counts))


def reliability(probabilities: Sequence[float] | np.ndarray, correct: Sequence[bool] | np.ndarray) -> Reliability:
    """Return the reliability diagram of N predictions, 15 bins (Guo et al. 2017, section 2)."""
    from sklearn.calibration import calibration_curve

    confidence = np.clip(np.asarray(probabilities, dtype=float), 0.0, 1.0)  # a sum of floats may exceed 1 by an ulp
    right = np.asarray(correct, dtype=bool)
    accuracy, mean = calibration_curve(right, confidence, n_bins=N_BINS, pos_label=True)
    inner = np.linspace(0, 1, N_BINS + 1)[1:-1]
    counts = np.bincount(np.searchsorted(inner, confidence), minlength=N_BINS)  # the bins of calibration_curve
    return Reliability(tuple(map(float, mean)), tuple(map(float, accuracy)), tuple(int(n) for n in counts if n))


def auroc_of_new_classes(known: np.ndarray, new: np.ndarray) -> float:
    """Return how well the largest probability tells pictures of known classes [N, C] from those of new ones [M, C].

    That is the area under the ROC curve of the maximum softmax probability (Hendrycks and Gimpel 2017): 1 where every
    known picture has the larger maximum, 0.5 where it says nothing.
    """
    from sklearn.metrics import roc_auc_score

    is_known = np.repeat([True, False], [len(known), len(new)])
    return float(roc_auc_score(is_known, np.concatenate([known.max(1), new.max(1)])))


def scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Divide the logits of probabilities [N, C] by a temperature (Guo et al. 2017, section 4.2); the order stays."""
    from scipy.special import softmax

    return np.asarray(softmax(np.log(np.maximum(probabilities, SMALLEST)) / temperature, axis=1))


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Compute the mean cross entropy, in nats, of class probabilities [N, C] against labels [N]."""
    own = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, SMALLEST)).mean())


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Find the temperature, 0.02 to 50, of least cross entropy on held-out labels [N] (Guo et al. 2017, section 4.2).

    It is above 1 where the probabilities [N, C] were surer than right.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return log_loss(scaled(probabilities, math.exp(log_temperature)), labels)

    bounds = (math.log(LOWEST), math.log(HIGHEST))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-5}).x)


def out_of_fold(features: Tensor, labels: Sequence[int]) -> np.ndarray:
    """Compute probabilities [N, C] of items by a probe fitted without them; each label is there at least twice."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedKFold(min(MOST_FOLDS, min(Counter(labels).values())), shuffle=True, random_state=0)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    values = features.double().cpu().numpy()
    return np.asarray(cross_val_predict(probe, values, np.array(labels), cv=folds, method="predict_proba"))


def doubtful(probabilities: np.ndarray, labels: Sequence[int]) -> list[int]:
    """List the places of labels that out-of-fold probabilities [N, C] speak against, the most doubtful first."""
    from cleanlab.filter import find_label_issues

    found = find_label_issues(np.array(labels), probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    return [int(place) for place in found]
