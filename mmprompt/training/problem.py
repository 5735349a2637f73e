"""What the loop asks of whatever is trained, and what callbacks see of a run.

A task (classification, captioning, a language model) satisfies `Problem`; the loop never learns
which one it is. Nothing here imports torch at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from mmprompt.errors import visible

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mmprompt.training.recipe import Recipe

    GradientRule = Callable[[Mapping[str, Sequence[Tensor]]], Sequence[Tensor]]
    """From the gradients of each loss, one a parameter, to those that the optimiser takes; of a loss [B], [B, ...]."""


class RunFailed(Exception):  # noqa: N818 - named for what happened, as KeyboardInterrupt is
    """A training that cannot go on, through nobody's mistake in the input; its text is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(visible(" ".join(message.split())))


@dataclass(frozen=True)
class StepResult:
    """What one batch came to.

    Attributes:
        losses: scalar tensors by name, with their graph; the loop minimises their sum. One of each item, [B], where a
            gradient rule wants the gradient of each.
        n_correct: items predicted correctly, 0 to the batch's size; None where right and wrong have no meaning.
        gradient_rule: what is made of the gradients of the losses; their sum where there is none.
        n_counted: over how many the losses are means, such as the tokens of the batch; its items where None.
    """

    losses: Mapping[str, Tensor]
    n_correct: int | None = None
    gradient_rule: GradientRule | None = None
    n_counted: int | None = None


class Problem(Protocol):
    """What is trained and on what."""

    @property
    def module(self) -> nn.Module:
        """What is trained; its training mode is left as it is.

        All that its `state_dict()` holds is kept in checkpoints and must be finite: a frozen backbone is not in it.
        """
        ...

    @property
    def n_items(self) -> int:
        """The number of training items, at least 1."""
        ...

    def step(self, indices: list[int], epoch: int) -> StepResult:
        """Compute the losses of one batch.

        Must be a pure function of the module's weights, the indices and the epoch: random numbers
        come from `seeds.generator(seed, ..., epoch, index)`. (torch's own generator, which dropout uses,
        is seeded by the loop before each step.) The indices are 0 to `n_items` - 1, epochs count from 0.
        """
        ...

    def validate(self) -> float | None:
        """Compute the accuracy (0..1) on items kept for that, None if there are none."""
        ...


@dataclass
class Run:
    """A training under way, as callbacks see it.

    Attributes:
        problem, recipe: what is trained and how.
        n_epochs, n_steps: epochs in all; steps in each.
        history: one record per finished epoch, the finished ones of an interrupted run included.
        is_stopped: set to True by a callback to end the training after this epoch.
    """

    problem: Problem
    recipe: Recipe
    n_epochs: int
    n_steps: int
    history: list[dict[str, Any]] = field(default_factory=list)
    is_stopped: bool = False
