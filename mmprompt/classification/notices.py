"""What a careful reader should know of a training beside zero-shot: names that say nothing, learning gone astray."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmprompt.training.callbacks import Callback
from mmprompt.training.problem import Run

FEWEST_IMAGES = 20  # of fewer a test tells little
MOST_IMAGES = 1000
SURE_BELOW = 0.05
N_EPOCHS = 5
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ZeroShotScore:
    """How many training images the class names alone name right.

    `chance` is the share that would be right if names were given without looking, as often as they were given.
    """

    n_right: int
    n_images: int
    chance: float

    @classmethod
    def of(cls, predictions: np.ndarray, labels: np.ndarray, n_classes: int) -> ZeroShotScore:
        """Count the predictions [N] that are their labels [N], class indices both."""
        given, true = (np.bincount(each, minlength=n_classes) / len(labels) for each in (predictions, labels))
        return cls(int((predictions == labels).sum()), len(labels), float(given @ true))

    @property
    def accuracy(self) -> float:
        """The share that is right, 0..1."""
        return self.n_right / self.n_images

    @property
    def p_value(self) -> float:
        """How likely as many right names are by chance alone: the upper tail of a binomial distribution."""
        n, p = self.n_images, self.chance
        return min(1.0, math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(self.n_right, n + 1)))


def at_chance(problem: Any, n_images: int) -> list[str]:
    """Say so where zero-shot on the training images is not surely above chance."""
    if n_images < FEWEST_IMAGES or (score := problem.zero_shot_score).p_value < SURE_BELOW:
        return []
    return [
        f"zero-shot names {score.n_right} of {score.n_images} training images right, where chance gives "
        f"{score.chance * score.n_images:.0f}: to this backbone the class names say nothing of these images. Try "
        "another backbone, clearer class names or another template, or linear-probe, which needs no names."
    ]


class BelowZeroShot(Callback):
    """Notices a training accuracy that stays below zero-shot's on the same images while the loss does not fall.

    An accuracy below zero-shot's alone is no bad sign: from a random start it takes epochs to get there.
    """

    def on_train_begin(self, run: Run) -> None:
        """Look again at the epochs before a resume."""
        self._is_said = False
        for n_epochs in range(len(run.history)):
            self._look(run, run.history[: n_epochs + 1])

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        """Look at the latest epochs; zero-shot is asked only where the loss did not fall in them."""
        self._look(run, [*run.history, logs])

    def _look(self, run: Run, records: Sequence[dict[str, Any]]) -> None:
        recent = records[run.recipe.warmup_epochs :][-N_EPOCHS:]
        if self._is_said or len(recent) < N_EPOCHS:
            return
        first, *others = (record["loss"] for record in recent)
        if min(others) < first:
            return
        problem: Any = run.problem
        below = problem.zero_shot_score.accuracy
        if max(record["accuracy"] for record in recent) >= below:
            return
        self._is_said = True
        problem.noticed.append(
            f"for {N_EPOCHS} epochs up to epoch {len(records)} the training accuracy was below zero-shot's "
            f"({100 * below:.1f} %, now {100 * recent[-1]['accuracy']:.1f} %) and the loss did not fall. Try a lower "
            f"lr (it is {run.recipe.lr:g})."
        )
        _log.warning("%s", problem.noticed[-1])
