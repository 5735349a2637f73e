"""CLIP-LoRA: low-rank terms in the attention of either tower or both (Zanella and Ben Ayed 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from mmprompt.classification.methods.base import PromptMethod, block_places, tower_shapes
from mmprompt.core.method import Start
from mmprompt.settings import Count
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from mmprompt.core.learned import Prompt
    from mmprompt.models.dual_encoder.interface import DualEncoder


@dataclass(frozen=True)
class CLIPLoRA(PromptMethod):
    """Low-rank adaptation of queries, keys and values (Zanella and Ben Ayed 2024, "CLIP-LoRA", section 3).

    The terms are scaled by alpha over the root of the rank, as in the released code. Joined with a method that learns
    vectors, such as `coop+clip-lora`, both learn together, by the recipe of the first.
    """

    rank: Count = 2
    """Rank of each term, 1 or more."""
    alpha: Annotated[float, Gt(0)] = 1.0
    """Scale of the terms, before it is divided by the root of the rank."""
    lora_dropout: Annotated[float, Ge(0), Lt(1)] = 0.25
    """Share of what enters a term that is dropped in training."""
    lora_towers: Literal["both", "text", "vision"] = "both"
    """Which towers are adapted."""

    group: ClassVar[str] = "weights"
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adamw",
        lr=2e-4,
        weight_decay=1e-2,
        batch_size=32,
        steps_per_shot=500,
        warmup_epochs=0,
        schedule="step",
        min_lr=1e-6,
    )

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Make a term beside every query, key and value of the towers.

        Raises:
            UserError: a tower is to be adapted that is not there or has no blocks of attention that are known.
        """
        from mmprompt.core.learned import Prompt
        from mmprompt.core.sources import LowRankTerms

        places = block_places(tower_shapes(backbone, self.lora_towers, "lora_towers"), ("query", "key", "value"))
        terms = LowRankTerms(places, self.rank, self.alpha / math.sqrt(self.rank), self.lora_dropout)
        return Prompt(start.template, terms.start_from(start.generator)).to(backbone.device)
