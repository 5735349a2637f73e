"""CoCoOp: context vectors that a small network shifts for each image (Zhou et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mmprompt.classification.methods.coop import CoOp
from mmprompt.core.method import Start
from mmprompt.errors import UserError
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from mmprompt.core.learned import Prompt
    from mmprompt.models.dual_encoder.interface import DualEncoder


@dataclass(frozen=True)
class CoCoOp(CoOp):
    """Conditional Context Optimization (Zhou et al. 2022, "Conditional Prompt Learning", section 3.2).

    The released code takes one image a step; here a step takes as many as `batch_size` says, each with its own
    context, and its loss and gradient are those of the single images.
    """

    ctx_init: str | None = "a photo of a"
    """Words to start from; random N(0, 0.02) where None."""

    recipe: ClassVar[Recipe] = Recipe(batch_size=1, epochs=10)

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Make the context of CoOp and a network of one hidden layer, 1/16 as wide as the image features.

        Raises:
            UserError: one context per class was asked for.
        """
        from mmprompt.classification.template import ClassTemplate
        from mmprompt.core.learned import Prompt
        from mmprompt.core.sources import Conditioned

        if self.class_specific:
            raise UserError("CoCoOp learns one context for all classes. Leave out `class_specific`, or use CoOp.")
        values = self.start_vectors(backbone, start)
        source = Conditioned(len(values), backbone.text_width, backbone.embed_dim).start_from(values, start.generator)
        return Prompt(ClassTemplate.of_context(len(values), self.class_position), source).to(backbone.device)
