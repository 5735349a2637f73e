from __future__ import annotations

import cmath
import copy
import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from mmprompt.errors import UserError
from mmprompt.training.recipe import Recipe, epochs_for, learning_rate, steps_of_first_stage


def test_the_defaults_are_the_papers() -> None:
    recipe = Recipe()
    assert (recipe.optimizer, recipe.lr, recipe.momentum, recipe.weight_decay) == ("sgd", 0.002, 0.9, 5e-4)
    assert (recipe.batch_size, recipe.warmup_epochs, recipe.warmup_lr) == (32, 1, 1e-5)


@pytest.mark.parametrize(
    ("shots", "epochs"), [(1, 50), (2, 100), (3, 100), (4, 100), (7, 100), (8, 200), (16, 200), (None, 200)]
)
def test_the_papers_epochs_follow_from_the_shots(shots: int | None, epochs: int) -> None:
    assert epochs_for(Recipe(), shots) == epochs


def test_epochs_that_are_given_win_over_the_table() -> None:
    assert epochs_for(Recipe(epochs=7), 1) == 7


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimizer", "sdg"),
        ("precision", "fp8"),
        ("augment", "cop"),
        ("lr", 0.0),
        ("lr", -1.0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("lr", 101.0),
        ("lr", "0.1"),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("weight_decay", -1e-9),
        ("warmup_lr", -1e-9),
        ("warmup_epochs", -1),
        ("warmup_epochs", 0.5),
        ("batch_size", 0),
        ("batch_size", True),
        ("epochs", 0),
        ("patience", 0),
        ("checkpoint_every", 0),
        ("checkpoint_seconds", -1.0),
        ("n_steps", 0),
        ("n_steps", 2.5),
        ("eps", 0.0),
        ("eps", 2.0),
        ("min_lr", -1e-9),
        ("schedule", "steps"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name_and_value(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"{field}.*{value}") as caught:
        Recipe(**{field: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"), [("momentum", 0.0), ("warmup_epochs", 0), ("weight_decay", 0.0), ("lr", 100.0)]
)
def test_the_ends_of_a_range_are_allowed(field: str, value: Any) -> None:
    assert getattr(Recipe(**{field: value}), field) == value


def test_a_misspelt_choice_gets_the_nearest_one() -> None:
    with pytest.raises(UserError, match="Did you mean 'sgd'"):
        Recipe(optimizer="sdg")  # type: ignore[arg-type]


def test_equal_values_make_equal_recipes_whatever_their_type() -> None:
    recipe = Recipe(lr=1, batch_size=np.int64(8))
    assert [type(value) for value in (recipe.lr, recipe.batch_size)] == [float, int]


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().lr = 1.0  # type: ignore[misc]


def test_a_recipe_remembers_what_it_was_given() -> None:
    assert Recipe().given == {}
    assert Recipe("adamw", epochs=30).given == {"optimizer": "adamw", "epochs": 30}
    assert Recipe(lr=0.002).given == {"lr": 0.002}  # the default, but given


@pytest.mark.parametrize("same", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
def test_a_copy_remembers_it_too(same: Any) -> None:
    assert same(Recipe(epochs=30)).given == {"epochs": 30}


def test_what_was_given_plays_no_part_in_equality() -> None:
    assert Recipe(lr=0.002) == Recipe()


def test_steps_and_epochs_together_are_refused() -> None:
    with pytest.raises(UserError, match=r"n_steps is 30, but epochs is given too \(5\)"):
        Recipe(n_steps=30, epochs=5)


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


@pytest.mark.parametrize(("n_epochs", "n_steps"), [(5, 8), (7, 3), (30, 1), (1, 1)])
def test_a_second_cosine_starts_where_the_first_ends(n_epochs: int, n_steps: int) -> None:
    recipe = Recipe(lr=0.01, min_lr=0.002, warmup_epochs=0, schedule="step", restart_after=0.6)
    rates = [
        learning_rate(recipe, epoch, n_epochs, step, n_steps) for epoch in range(n_epochs) for step in range(n_steps)
    ]
    first = int(0.6 * n_epochs * n_steps)
    assert steps_of_first_stage(recipe, n_epochs * n_steps) == first
    expected = []
    for length in (first, n_epochs * n_steps - first):
        expected += [0.002 + 0.008 * (1 + math.cos(math.pi * done / length)) / 2 for done in range(length)]
    assert rates == pytest.approx(expected, rel=1e-9)
