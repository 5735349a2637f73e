"""Visual prompt tuning: tokens beside the patches of the image tower (Jia et al. 2022), on a dual encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le

from mmprompt.classification.methods.base import PromptMethod, image_layers
from mmprompt.core.method import Start
from mmprompt.settings import Count

if TYPE_CHECKING:
    from mmprompt.core.learned import Prompt
    from mmprompt.models.dual_encoder.interface import DualEncoder


@dataclass(frozen=True)
class VPT(PromptMethod):
    """Visual Prompt Tuning, shallow or deep (Jia et al. 2022, "Visual Prompt Tuning", section 3.2), for CLIP.

    This is the form of MaPLe's released code (Khattak et al. 2023): tokens enter before CLIP's `ln_pre` and start from
    N(0, 0.02). Read literally, Jia et al. put them after it and start from a uniform distribution; a plain vision
    transformer has no `ln_pre`, and there the two are the same function. Its paper searches learning rate and weight
    decay for each data set, so the recipe here is CoOp's.
    """

    n_visual: Annotated[int, Ge(1), Le(10_000)] = 8
    """Number of visual prompt tokens in each prompted layer, 1 or more."""
    depth: Count = 1
    """Layers that receive tokens of their own, input included: 1 is VPT-Shallow, all layers is VPT-Deep."""

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Make free vectors at `vision.input` and at the inputs of the first `depth - 1` further layers."""
        from mmprompt.core.learned import Learned, Prompt, random_vectors
        from mmprompt.models.sites import Site

        depth = image_layers(backbone, self.depth, 1)
        shape = (self.n_visual, backbone.vision_width or 0)
        tokens = [Learned(Site("vision", i), random_vectors(shape, start.generator)) for i in range(depth)]
        return Prompt(start.template, *tokens).to(backbone.device)
