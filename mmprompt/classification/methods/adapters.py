"""Adapters: small networks behind the sublayers of either tower or both (Houlsby et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from mmprompt.classification.methods.base import PromptMethod, block_places, tower_shapes
from mmprompt.classification.methods.lora import CLIPLoRA
from mmprompt.core.method import Start
from mmprompt.settings import Count
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from mmprompt.core.learned import Prompt
    from mmprompt.models.dual_encoder.interface import DualEncoder


@dataclass(frozen=True)
class Adapters(PromptMethod):
    """Bottleneck adapters (Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", section 2.1).

    They stand behind the attention and the MLP of each block, or behind the MLP alone (Pfeiffer et al. 2021,
    "AdapterFusion"). Layer norms learn too in Houlsby et al.: join `layer-norm` for that. For CLIP no recipe is
    published, so this is that of CLIP-LoRA.
    """

    adapter_width: Count = 8
    """Width of each network, 1 or more."""
    adapter_places: Literal["both", "attention", "mlp"] = "both"
    """Behind which part of each block they stand."""
    adapter_towers: Literal["both", "text", "vision"] = "both"
    """Which towers are adapted."""

    recipe: ClassVar[Recipe] = CLIPLoRA.recipe

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Make the networks.

        Raises:
            UserError: a tower is to be adapted that is not there or has no blocks that are known.
        """
        from mmprompt.core.learned import Prompt
        from mmprompt.core.sources import Bottlenecks

        parts = ("attention", "mlp") if self.adapter_places == "both" else (self.adapter_places,)
        places = block_places(tower_shapes(backbone, self.adapter_towers, "adapter_towers"), parts)
        source = Bottlenecks(places, self.adapter_width).start_from(start.generator)
        return Prompt(start.template, source).to(backbone.device)
