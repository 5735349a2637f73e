"""MaPLe: context vectors of the text tower, and the image tower's that are made of them (Khattak et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mmprompt.classification.methods.base import PromptMethod, image_layers, text_layers
from mmprompt.classification.methods.coop import first_words
from mmprompt.core.method import Start
from mmprompt.settings import Count
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from mmprompt.core.learned import Prompt
    from mmprompt.models.dual_encoder.interface import DualEncoder


@dataclass(frozen=True)
class MaPLe(PromptMethod):
    """Multi-modal Prompt Learning (Khattak et al. 2023, "MaPLe", section 3.2), from base classes to new ones.

    The first `n_ctx` tokens of the words learn and the others stay, as in the released code, where "a photo" learns and
    "of a" stays. Across data sets the paper takes lr 0.0026, depth 3 and 2 epochs.
    """

    n_ctx: Count = 2
    """Number of context vectors in each prompted layer of both towers, 1 or more."""
    ctx_init: str | None = "a photo of a"
    """Words to start from; random N(0, 0.02) where None, or where they are fewer tokens than `n_ctx`."""
    depth: Count | None = None
    """Layers of both towers that receive vectors of their own, input included; 9 by default, or all where fewer."""

    recipe: ClassVar[Recipe] = Recipe(lr=0.0035, batch_size=4, epochs=5)

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Make vectors for the text tower and a linear map of each layer's to the image tower."""
        from mmprompt.classification.template import ClassTemplate
        from mmprompt.core.learned import Prompt
        from mmprompt.core.sources import Coupled

        depth = min(image_layers(backbone, self.depth, 9), text_layers(backbone, self.depth, 9))
        values, rest = first_words(backbone, self.ctx_init, self.n_ctx, start)
        assert backbone.vision_width is not None, "image_layers refuses towers without tokens"
        source = Coupled(self.n_ctx, backbone.text_width, backbone.vision_width, depth).start_from(
            values, start.generator
        )
        template = ClassTemplate(f"{{soft*{self.n_ctx}}} {rest} {{name}}.".replace("  ", " "))
        return Prompt(template, source).to(backbone.device)
