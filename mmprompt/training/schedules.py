"""The learning rate of an epoch or a step, as a pure function; it knows no optimiser."""

from __future__ import annotations

import math

from mmprompt.training.recipe import Recipe


def learning_rate(recipe: Recipe, epoch: int, n_epochs: float, step: int = 0, n_steps: int = 1) -> float:
    """Compute the rate of one epoch or step: constant warm-up, then a cosine (Zhou et al. 2022, released code of CoOp).

    The cosine's period is the whole training with the warm-up counted again, so that the last epoch
    stays a little above zero: that is what the papers' numbers were trained with.

    Args:
        recipe: its `lr`, `min_lr`, `schedule`, `warmup_epochs` and `warmup_lr` are used.
        epoch: counted from 0, below `n_epochs`.
        n_epochs: length of the training; not a whole number where it is counted in steps.
        step: within the epoch, counted from 0; it counts where the schedule is by the step.
        n_steps: of an epoch.
    """
    if epoch < recipe.warmup_epochs:
        return recipe.warmup_lr
    done = epoch - recipe.warmup_epochs + (step / n_steps if recipe.schedule == "step" else 0)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * done / n_epochs)) / 2
