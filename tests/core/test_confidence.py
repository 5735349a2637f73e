import numpy as np
import pytest

from mmprompt.core.confidence import auroc_of_new_classes, reliability


def plain_calibration_error(probabilities, correct, n_bins=15):
    total = 0.0
    for b in range(n_bins):
        low, high = b / n_bins, (b + 1) / n_bins
        members = [i for i, p in enumerate(probabilities) if low < p <= high or (b == 0 and p == 0)]
        if members:
            gap = np.mean([probabilities[i] for i in members]) - np.mean([correct[i] for i in members])
            total += len(members) / len(probabilities) * abs(gap)
    return total


def test_calibration_error_agrees_with_a_plain_loop_over_bins():
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(0.2, 1, 400)
    correct = rng.random(400) < probabilities**2
    found = reliability(probabilities, correct).error
    assert found == pytest.approx(plain_calibration_error(probabilities, correct), abs=1e-12)


def test_a_sure_classifier_that_is_always_right_has_no_calibration_error():
    assert reliability([1.0, 1.0], [True, True]).error == 0


def test_bins_without_predictions_are_left_out():
    bins = reliability([0.1, 0.9, 0.92], [False, True, True])
    assert bins.counts == (1, 2)
    assert bins.accuracy == (0.0, 1.0)
    assert bins.confidence == pytest.approx((0.1, 0.91))


def test_auroc_is_the_share_of_pairs_in_which_the_known_picture_is_surer():
    rng = np.random.default_rng(1)
    known, new = (rng.dirichlet(np.full(4, a), 30) for a in (0.4, 1.0))
    pairs = [(k > n) + 0.5 * (k == n) for k in known.max(1) for n in new.max(1)]
    assert auroc_of_new_classes(known, new) == pytest.approx(np.mean(pairs))


def test_auroc_is_a_half_where_all_are_equally_sure():
    same = np.full((5, 2), 0.5)
    assert auroc_of_new_classes(same, same) == 0.5
