"""Temperature scaling against plain loops and a grid of temperatures."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmprompt.core.confidence import fit_temperature, log_loss, scaled


def drawn(temperature: float, n: int = 300, n_classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are that much too sure, and labels drawn from the right ones."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (n, n_classes))
    right = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([rng.choice(n_classes, p=row) for row in right])
    sharp = np.exp(logits * temperature)
    return sharp / sharp.sum(1, keepdims=True), labels


def plain_loss(probabilities: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    total = 0.0
    for row, label in zip(probabilities, labels, strict=True):
        powers = [p ** (1 / temperature) for p in row]
        total -= math.log(powers[label] / sum(powers))
    return total / len(labels)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_the_best_of_a_fine_grid(temperature: float) -> None:
    probabilities, labels = drawn(temperature)
    found = fit_temperature(probabilities, labels)
    grid = np.exp(np.linspace(math.log(0.1), math.log(10), 400))
    best = min(grid, key=lambda each: plain_loss(probabilities, labels, each))
    assert found == pytest.approx(best, rel=0.02)
    assert found == pytest.approx(temperature, rel=0.25)
    assert log_loss(scaled(probabilities, found), labels) == pytest.approx(
        plain_loss(probabilities, labels, found), rel=1e-9
    )


def test_no_answer_changes_and_rows_still_sum_to_one() -> None:
    probabilities, _ = drawn(2.0)
    for temperature in (0.1, 7.0):
        changed = scaled(probabilities, temperature)
        assert (changed.argmax(1) == probabilities.argmax(1)).all()
        assert np.allclose(changed.sum(1), 1)


def test_certainty_stays_finite() -> None:
    sure = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert 1 < fit_temperature(sure, np.array([0, 1, 1])) <= 50.0
    assert math.isfinite(log_loss(sure, np.array([1, 0, 0])))
