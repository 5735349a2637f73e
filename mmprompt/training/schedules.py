"""The learning rate of an epoch, as a pure function; it knows no optimiser and no step."""

from __future__ import annotations

import math

from mmprompt.training.recipe import Recipe


def learning_rate(recipe: Recipe, epoch: int, n_epochs: int) -> float:
    """The rate of one epoch: constant warm-up, then a cosine (Zhou et al. 2022, released code of CoOp).

    The cosine's period is the whole training with the warm-up counted again, so that the last epoch
    stays a little above zero: that is what the papers' numbers were trained with.

    Args:
        recipe: its `lr`, `warmup_epochs` and `warmup_lr` are used.
        epoch: counted from 0, below `n_epochs`.
        n_epochs: length of the training, at least 1.
    """
    if epoch < recipe.warmup_epochs:
        return recipe.warmup_lr
    return recipe.lr * (1 + math.cos(math.pi * (epoch - recipe.warmup_epochs) / n_epochs)) / 2
