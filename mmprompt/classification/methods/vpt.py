"""Visual prompt tuning: tokens beside the patches of the image tower (Jia et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Le

from mmprompt.classification.methods.base import PromptMethod, image_layers
from mmprompt.core.method import Start
from mmprompt.settings import Count

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmprompt.core.learned import Prompt
    from mmprompt.models.dual_encoder.interface import DualEncoder


@dataclass(frozen=True)
class VPT(PromptMethod):
    """Visual Prompt Tuning, shallow or deep (Jia et al. 2022, "Visual Prompt Tuning", section 3.2).

    On a dual encoder it is by default the form of MaPLe's released code (Khattak et al. 2023): tokens enter before
    CLIP's `ln_pre` and start from N(0, 0.02), and the text gives the class weights. With `form="jia"` they enter after
    it and start from a uniform distribution, as Jia et al. have it. On an image tower alone (`timm:NAME`) that is the
    default, and a linear classifier of its features learns with the tokens. The paper searches learning rate and weight
    decay for each data set, so the recipe here is CoOp's, and best searched too.
    """

    n_visual: Annotated[int, Ge(1), Le(10_000)] = 8
    """Number of visual prompt tokens in each prompted layer, 1 or more."""
    depth: Count = 1
    """Layers that receive tokens of their own, input included: 1 is VPT-Shallow, all layers is VPT-Deep."""
    form: Literal["clip", "jia"] | None = None
    """Where the first tokens enter: before the tower's first norm (clip, as in MaPLe's code) or after it (jia); by
    default clip on a dual encoder and jia on an image tower alone."""
    init: Literal["normal", "uniform"] | None = None
    """Random start, N(0, 0.02) or Jia et al.'s uniform one; normal for the form clip, uniform for jia by default."""

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Make free vectors at the input and at the inputs of the first `depth - 1` further layers."""
        from mmprompt.core.learned import Learned, Prompt
        from mmprompt.models.sites import Site

        depth = image_layers(backbone, self.depth, 1)
        first = Site("vision") if self._form(backbone) == "clip" else Site("vision", 0, "normed")
        sites = [first, *(Site("vision", layer) for layer in range(1, depth))][:depth]
        tokens = [Learned(site, self._start(backbone, start.generator)) for site in sites]
        return Prompt(start.template, *tokens).to(backbone.device)

    def _form(self, backbone: DualEncoder) -> str:
        return self.form or ("clip" if backbone.has_text else "jia")

    def _start(self, backbone: DualEncoder, generator: torch.Generator) -> Tensor:
        import torch

        from mmprompt.core.learned import random_vectors

        width = backbone.vision_width or 0
        if self.init == "normal" or (self.init is None and self._form(backbone) == "clip"):
            return random_vectors((self.n_visual, width), generator)
        patch = backbone.find_patch_size() or 0
        bound = math.sqrt(6 / (3 * patch**2 + width))  # as for a map from a patch to a token (Jia, released code)
        return torch.empty(self.n_visual, width).uniform_(-bound, bound, generator=generator)
