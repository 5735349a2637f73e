"""Adapters: small networks behind the sublayers of either tower or both (Houlsby et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from mmprompt.classification.methods.base import PromptMethod, image_layers
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
            UserError: the image tower is to be adapted and has no blocks that are known.
        """
        from mmprompt.core.learned import Prompt
        from mmprompt.core.sources import Bottlenecks

        shapes = {}
        if self.adapter_towers != "vision":
            shapes["text"] = (backbone.text_layers, backbone.text_width)
        if self.adapter_towers != "text":
            n_layers = image_layers(backbone, None, backbone.vision_layers, use="`adapter_towers='text'`")
            shapes["vision"] = (n_layers, backbone.vision_width or 0)
        parts = ("attention", "mlp") if self.adapter_places == "both" else (self.adapter_places,)
        places = {
            f"{tower}.block[{layer}].{part}": width
            for tower, (n_layers, width) in shapes.items()
            for layer in range(n_layers)
            for part in parts
        }
        source = Bottlenecks(places, self.adapter_width).start_from(start.generator)
        return Prompt(start.template, source).to(backbone.device)
