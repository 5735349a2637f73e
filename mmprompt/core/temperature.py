"""Temperature scaling: one number that makes probabilities as sure as they are right, and changes no answer."""

from __future__ import annotations

import math

import numpy as np

LOWEST, HIGHEST = 0.02, 50.0
"""Temperatures that are looked between."""
SMALLEST = 1e-300


def scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Divide the logits of class probabilities [N, C] by a temperature (Guo et al. 2017, section 4.2).

    Returns:
        [N, C], rows sum to 1; the largest of a row stays the largest.
    """
    from scipy.special import softmax

    return np.asarray(softmax(np.log(np.maximum(probabilities, SMALLEST)) / temperature, axis=1))


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Compute the mean cross entropy, in nats, of class probabilities [N, C] against labels [N]."""
    own = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, SMALLEST)).mean())


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Find the temperature of least cross entropy on held-out labels (Guo et al. 2017, section 4.2).

    Args:
        probabilities: [N, C], N at least 1.
        labels: [N] in 0..C-1.
    Returns:
        a number between 0.02 and 50; above 1 where the probabilities were surer than right.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return log_loss(scaled(probabilities, math.exp(log_temperature)), labels)

    bounds = (math.log(LOWEST), math.log(HIGHEST))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-5}).x)
