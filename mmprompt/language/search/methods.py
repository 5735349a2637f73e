"""How prompts in words are searched: the settings of each way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge

from mmprompt.core.soft import RECIPE
from mmprompt.settings import Count, check_settings
from mmprompt.training.recipe import Recipe


@dataclass(frozen=True)
class WordSearch:
    """What both ways of searching share."""

    n_steps: Count = 100
    """Most steps; the best words on the way are kept."""
    batch_size: Count = 16
    """Rows of a gradient, and of a first look at a prompt; what does well there is scored on all."""
    n_rows: Count = 128
    """Most training rows that prompts are scored on, as many of each class."""
    ascii_only: bool = True
    """Leave out tokens beyond ASCII. Special tokens and what cannot be printed are always left out."""
    fluency: Annotated[float, Ge(0)] = 0.0
    """Weight of the prompt's own improbability to the model, in nats a token, beside the loss; 0 for none."""

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def recipe(self) -> Recipe:
        """Steps and rows as a training has them; a step counts as an epoch."""
        return replace(RECIPE, epochs=self.n_steps, batch_size=self.batch_size)


@dataclass(frozen=True)
class Projection(WordSearch):
    """Soft vectors are moved by the gradient at the nearest words (Wen et al. 2023, "Hard Prompts Made Easy", PEZ)."""

    lr: float = 0.3
    """Learning rate, in units of the token embeddings' size."""
    weight_decay: float = 0.0
    """Pull of the soft vectors towards zero."""

    @property
    def recipe(self) -> Recipe:
        """Its optimiser, too; checks learning rate and weight decay."""
        return replace(super().recipe, lr=self.lr, weight_decay=self.weight_decay)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.recipe  # noqa: B018


@dataclass(frozen=True)
class CoordinateSearch(WordSearch):
    """One token a step is exchanged for the best of some that the gradient proposes (Shin et al. 2020, "AutoPrompt"),
    candidates drawn over all places (Zou et al. 2023, "Universal and Transferable Adversarial Attacks").
    """

    n_steps: Count = 14
    """Most steps; in each of them one token is exchanged, or none."""
    n_candidates: Count = 24
    """Prompts that are scored in a step."""
    top_k: Count = 64
    """Tokens that the gradient proposes for each place, of which candidates are drawn."""
    patience: Count = 5
    """Steps without a gain after which the search ends."""


SEARCHES: dict[str, type[WordSearch]] = {"projection": Projection, "coordinates": CoordinateSearch}
