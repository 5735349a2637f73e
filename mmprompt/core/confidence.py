"""What the probability of a prediction is worth: its calibration, and whether it tells new classes from known ones.

It sees numbers alone: the probability given to each prediction, and which predictions were right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

N_BINS = 15


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy, in bins of equal width that hold at least one prediction.

    Args:
        confidence: [K] mean probability of the predictions of each bin, 0..1.
        accuracy: [K] share of them that is right, 0..1.
        counts: [K] predictions in each bin.
    """

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def error(self) -> float:
        """The expected calibration error: mean distance of confidence and accuracy over predictions, 0..1."""
        distance = np.abs(np.subtract(self.confidence, self.accuracy))
        return float(np.average(distance, weights=self.counts))


def reliability(probabilities: Sequence[float] | np.ndarray, correct: Sequence[bool] | np.ndarray) -> Reliability:
    """The reliability diagram of the predicted classes, 15 bins (Guo et al. 2017, section 2).

    Args:
        probabilities: [N] the probability given to each prediction, 0..1; N at least 1.
        correct: [N] whether it was right.
    """
    from sklearn.calibration import calibration_curve

    confidence = np.clip(np.asarray(probabilities, dtype=float), 0.0, 1.0)  # a sum of floats may exceed 1 by an ulp
    right = np.asarray(correct, dtype=bool)
    accuracy, mean = calibration_curve(right, confidence, n_bins=N_BINS, pos_label=True)
    inner = np.linspace(0, 1, N_BINS + 1)[1:-1]
    counts = np.bincount(np.searchsorted(inner, confidence), minlength=N_BINS)  # the bins of calibration_curve
    return Reliability(tuple(map(float, mean)), tuple(map(float, accuracy)), tuple(int(n) for n in counts if n))


def auroc_of_new_classes(known: np.ndarray, new: np.ndarray) -> float:
    """How well the largest probability tells pictures of known classes from those of new ones.

    The score is the maximum softmax probability (Hendrycks and Gimpel 2017).

    Args:
        known: [N, C] class probabilities of pictures of the C classes; N at least 1.
        new: [M, C] the same of pictures of other classes; M at least 1.
    Returns:
        The area under the ROC curve: 1 where every known picture has the larger maximum, 0.5 where it says nothing.
    """
    from sklearn.metrics import roc_auc_score

    is_known = np.repeat([True, False], [len(known), len(new)])
    return float(roc_auc_score(is_known, np.concatenate([known.max(1), new.max(1)])))
