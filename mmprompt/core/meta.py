"""Reptile's outer loop: a start that is learned over several tasks, from which a new one is soon learned.

A prompt is trained for a few steps on one task, and the start moves towards where that led, task after task (Nichol et
al. 2018, "On First-Order Meta-Learning Algorithms"). What a task is, a room of the package says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

import torch
from annotated_types import Gt, Le

from mmprompt.errors import UserError, bad_value
from mmprompt.settings import Count, check
from mmprompt.training.loop import train
from mmprompt.training.problem import Problem
from mmprompt.training.recipe import LENGTHS, Recipe
from mmprompt.training.seeds import derive_seed, epoch_order

Item = TypeVar("Item")


@dataclass(frozen=True)
class Rounds:
    """How often and how far a start is moved: `n_rounds` tasks in turn, each equally often, with `n_inner` steps each.

    `rate` is the share of the way to a task's vectors that the start moves, falling to zero with the last round.
    """

    n_rounds: int
    n_inner: int
    rate: float

    def check(self, n_tasks: int) -> None:
        """Refuse what cannot be."""
        if n_tasks < 2:
            raise UserError(f"there are {n_tasks} tasks, but a start is learned over two or more. Give more.")
        check("n_rounds", self.n_rounds, Count, "Use `n_rounds=24`.")
        check("n_inner", self.n_inner, Count, "Use `n_inner=10`.")
        check("rate", self.rate, Annotated[float, Gt(0), Le(1)], "Use `rate=1`.")

    def learn(
        self, names: Sequence[str], problem_of: Callable[[int, int], Problem], recipe: Recipe, seed: int
    ) -> list[dict[str, Any]]:
        """Move the start, whatever the modules of all problems share, in place.

        `problem_of` takes the place of a task and a seed to a problem of `n_inner` batches. The recipe's steps begin
        anew in every round, and its rate stays as it is; the seed is that of the order of tasks and items and of what
        is drawn. Of each round `round`, `task` and `loss`, the mean over its steps, are returned.
        """
        history = []
        for number in range(self.n_rounds):
            order = epoch_order(derive_seed(seed, "tasks"), number // len(names), len(names))
            place = order[number % len(names)]
            problem = problem_of(place, derive_seed(seed, "rows", number))
            share = self.rate * (1 - number / self.n_rounds)
            loss = _round(problem, recipe, derive_seed(seed, "round", number), share)
            history.append({"round": number + 1, "task": names[place], "loss": loss})
        return history


def of_rounds(recipe: Recipe, user: Recipe | None) -> Recipe:
    """Return a recipe for steps that begin anew in every round: one pass, no warm-up, no restart, no early stopping.

    A setting that the user gave and that counts for nothing there is refused.
    """
    idle: dict[str, Any] = dict.fromkeys((*LENGTHS, "restart_after", "patience"))
    steps = replace(recipe, **idle, warmup_epochs=0, augment="none", views=Recipe.views)
    for name, value in ({} if user is None else user.given).items():
        if getattr(steps, name) != value:
            expected = "a round takes n_inner steps at the full rate, on what is learned from as it is"
            raise bad_value(name, value, expected, f"Leave `{name}` out.")
    return steps


def drawn(items: Sequence[Item], n_items: int, seed: int) -> tuple[Item, ...]:
    """Draw so many items, in passes over all of them, each in an order of its own."""
    n_passes = -(-n_items // len(items))
    order = [place for turn in range(n_passes) for place in epoch_order(seed, turn, len(items))]
    return tuple(items[place] for place in order[:n_items])


def _round(problem: Problem, recipe: Recipe, seed: int, share: float) -> float:
    """Train on one task and move the start a part of the way there; return the mean loss of the steps."""
    parameters = list(problem.module.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    (record,) = train(problem, recipe, seed, 1)
    with torch.no_grad():
        for parameter, old in zip(parameters, before, strict=True):
            parameter.copy_(old + share * (parameter - old))
    return float(record["loss"])
