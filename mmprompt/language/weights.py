"""Methods of a language model that learn beside, behind or in place of its own layers, which stay as they are.

They learn at a rate of their own. Where they are trained with vectors of a prompt, by the recipe of those, their
numbers are learned in units of the ratio of the two rates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from mmprompt.core.method import Start
from mmprompt.core.soft import RECIPE, WeightMethod
from mmprompt.errors import UserError
from mmprompt.settings import Count
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from mmprompt.core.learned import Prompt


@dataclass(frozen=True)
class Adapter(WeightMethod):
    """A network of one small hidden layer behind every block (Houlsby et al. 2019; one as Pfeiffer et al. 2021)."""

    width: Count = 16
    """Width of the hidden layer."""

    recipe: ClassVar[Recipe] = replace(RECIPE, lr=2e-3)

    def prompt(self, backbone: Any, start: Start) -> Prompt:
        """Make the networks; they add nothing before the first step."""
        from mmprompt.core.learned import Prompt
        from mmprompt.language.sources import Bottlenecks
        from mmprompt.models.decoder.weights import block_names

        names = block_names(backbone.lm)
        if not names:
            raise UserError(f"the blocks of {backbone.name} are not found, so it takes no adapters. Use lora.")
        width = backbone.lm.config.get_text_config().hidden_size
        networks = Bottlenecks({f"lm.part[{name}]": width for name in names}, self.width, self.unit(start))
        return Prompt(start.template, networks.start_from(start.generator)).to(backbone.device)


@dataclass(frozen=True)
class FullTuning(WeightMethod):
    """Weights of its own in place of all of the model's; as large as the model."""

    recipe: ClassVar[Recipe] = replace(RECIPE, lr=3e-5)

    def prompt(self, backbone: Any, start: Start) -> Prompt:
        """Make weights that start as the model's own."""
        from mmprompt.core.learned import Prompt
        from mmprompt.core.sources import Weights

        own = dict(backbone.lm.named_parameters())
        weights = Weights({f"lm.part[{name}]": list(value.shape) for name, value in own.items()}, self.unit(start))
        return Prompt(start.template, weights.start_from(list(own.values()))).to(backbone.device)
