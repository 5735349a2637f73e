from __future__ import annotations

import cmath

import pytest

from mmprompt.training.recipe import Recipe
from mmprompt.training.schedules import learning_rate


def slow_rates(lr: float, warmup: int, warmup_lr: float, n_epochs: int) -> list[float]:
    """One epoch after the other, with the cosine as the real part of a rotating pointer."""
    rates, pointer, turn = [], 1 + 0j, cmath.exp(1j * cmath.pi / n_epochs)
    for epoch in range(n_epochs):
        if epoch < warmup:
            rates.append(warmup_lr)
        else:
            rates.append(lr * (1 + pointer.real) / 2)
            pointer *= turn
    return rates


@pytest.mark.parametrize("warmup", [0, 1, 3])
@pytest.mark.parametrize("n_epochs", [1, 2, 5, 50, 200])
def test_the_rates_are_a_constant_warm_up_and_a_cosine_over_all_epochs(n_epochs: int, warmup: int) -> None:
    recipe = Recipe(lr=0.0035, warmup_epochs=warmup, warmup_lr=1e-4)
    rates = [learning_rate(recipe, epoch, n_epochs) for epoch in range(n_epochs)]
    assert rates == pytest.approx(slow_rates(0.0035, warmup, 1e-4, n_epochs), rel=1e-12, abs=1e-15)


def test_the_papers_rates_at_some_epochs() -> None:
    rates = [learning_rate(Recipe(), epoch, 200) for epoch in (0, 1, 101, 199)]
    assert rates == pytest.approx([1e-5, 0.002, 0.001, 4.9344e-7], rel=1e-4)


def test_the_last_rate_stays_above_zero() -> None:
    assert learning_rate(Recipe(), 49, 50) > 0


@pytest.mark.parametrize("warmup", [0, 1])
def test_by_the_step_the_rate_falls_along_the_same_cosine(warmup: int) -> None:
    recipe = Recipe(schedule="step", warmup_epochs=warmup)
    rates = [learning_rate(recipe, epoch, 5, step, 8) for epoch in range(5) for step in range(8)]
    by_epoch = [learning_rate(Recipe(warmup_epochs=warmup), epoch, 5) for epoch in range(5)]
    assert rates[::8] == by_epoch
    assert rates == pytest.approx(
        [1e-5] * 8 * warmup + slow_rates(0.002, 0, 0, 40)[: 40 - 8 * warmup], rel=1e-12, abs=1e-15
    )


def test_within_an_epoch_the_rate_stays_unless_it_falls_by_the_step() -> None:
    assert len({learning_rate(Recipe(), 2, 5, step, 8) for step in range(8)}) == 1


def test_the_cosine_ends_where_it_is_told_to() -> None:
    recipe = Recipe(lr=0.01, min_lr=0.002, warmup_epochs=0, schedule="step")
    rates = [learning_rate(recipe, epoch, 50, step, 100) for epoch in range(50) for step in range(100)]
    assert rates[0] == 0.01
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.002, abs=1e-8)
    assert rates[2500] == pytest.approx(0.006)
