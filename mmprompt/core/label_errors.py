"""Labels that the other items speak against, by what cross-validation on frozen features gives them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from torch import Tensor

MOST_FOLDS = 5


def out_of_fold(features: Tensor, labels: Sequence[int]) -> np.ndarray:
    """Compute class probabilities [N, C] of items by a probe that was fitted without them.

    Args:
        features: [N, E] of the frozen model.
        labels: [N] in 0..C-1, each twice at least.
    """
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
