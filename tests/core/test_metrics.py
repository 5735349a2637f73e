import numpy as np
import pytest

from mmprompt.core.metrics import bootstrap_interval, evaluate_probabilities, paired_bootstrap

NAMES = ("cat", "dog", "owl")


def probabilities(*predicted):
    table = np.full((len(predicted), 3), 0.1)
    table[np.arange(len(predicted)), predicted] = 0.8
    return table


def test_accuracy_is_the_share_of_pictures_that_are_right():
    score = evaluate_probabilities(probabilities(0, 1, 2, 0), [0, 1, 0, 0], NAMES)
    assert score.accuracy == 0.75
    assert score.n == 4


def test_confusion_counts_true_class_by_predicted_class():
    score = evaluate_probabilities(probabilities(0, 2, 2), [0, 1, 1], NAMES)
    assert score.confusion.tolist() == [[1, 0, 0], [0, 0, 2], [0, 0, 0]]


def test_per_class_leaves_out_classes_without_pictures():
    score = evaluate_probabilities(probabilities(0, 1, 0), [0, 1, 1], NAMES)
    assert score.per_class == {"cat": 1.0, "dog": 0.5}


def test_interval_agrees_with_the_normal_approximation():
    correct = np.arange(1000) % 10 < 7
    low, high = bootstrap_interval(correct)
    half = 1.96 * np.sqrt(0.7 * 0.3 / 1000)
    assert low == pytest.approx(0.7 - half, abs=0.004)
    assert high == pytest.approx(0.7 + half, abs=0.004)


def test_paired_interval_cancels_what_both_sides_share():
    rng = np.random.default_rng(0)
    shared = rng.random(500) < 0.5
    better = shared | (np.arange(500) % 20 == 0)
    low, high = paired_bootstrap(better[None], shared[None])
    assert 0 < low < (better.mean() - shared.mean()) < high
    assert high - low < 0.04


def test_paired_interval_widens_when_runs_disagree():
    b = np.zeros((4, 400))
    steady = np.tile(np.arange(400) < 100, (4, 1))
    shaky = np.stack([np.arange(400) < n for n in (0, 0, 200, 200)])
    width = [high - low for low, high in (paired_bootstrap(a, b) for a in (steady, shaky))]
    assert width[1] > 2 * width[0]


def test_interval_is_the_same_for_the_same_seed():
    values = np.arange(50) % 3 == 0
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)


def test_top5_is_the_share_of_pictures_whose_class_is_among_the_five_most_probable():
    rng = np.random.default_rng(2)
    table, labels = rng.dirichlet(np.ones(9), 50), rng.integers(0, 9, 50)
    expected = np.mean([label in np.argsort(-row)[:5] for row, label in zip(table, labels, strict=True)])
    assert evaluate_probabilities(table, labels, [str(c) for c in range(9)]).top5 == pytest.approx(expected)


def test_top5_is_one_with_few_classes():
    assert evaluate_probabilities(probabilities(0, 1), [1, 0], NAMES).top5 == 1.0


def test_macro_f1_is_the_mean_of_the_f1_of_classes_with_pictures():
    score = evaluate_probabilities(probabilities(0, 0, 1, 2), [0, 1, 1, 1], NAMES)
    f1 = [2 * 1 / (2 * 1 + 1 + 0), 2 * 1 / (2 * 1 + 0 + 2)]  # 2 tp / (2 tp + fp + fn) of cat and dog; owl has none
    assert score.macro_f1 == pytest.approx(np.mean(f1))


def test_calibration_error_is_the_gap_between_probability_and_accuracy():
    score = evaluate_probabilities(probabilities(0, 1, 2, 0, 0), [0, 1, 2, 0, 1], NAMES)
    assert score.calibration_error == pytest.approx(0.0, abs=1e-12)  # four of five right at 80 %


def test_six_right_of_six_are_no_certainty() -> None:
    assert bootstrap_interval(np.ones(6, dtype=bool)) == (pytest.approx(0.6097, abs=1e-4), 1.0)  # Wilson 1927
    assert bootstrap_interval(np.zeros(6, dtype=bool)) == (0.0, pytest.approx(0.3903, abs=1e-4))


def test_many_draws_at_once_are_those_drawn_one_by_one(monkeypatch):
    monkeypatch.setattr("mmprompt.core.metrics.N_RESAMPLES", 7)
    right = np.arange(2**17) % 3 == 0  # two at once, and one is left
    draw = np.random.default_rng(0)
    means = [right[draw.integers(len(right), size=len(right))].mean() for _ in range(7)]
    expected = tuple(np.percentile(means, [2.5, 97.5]))
    assert paired_bootstrap(right[None], np.zeros((1, len(right)))) == pytest.approx(expected, rel=1e-12)
