"""Vectors in one layer or several, of the image tower (VPT), the text tower, or both; PromptSRC holds both to the
frozen model, and in MaPLe those of the image tower are made of the text tower's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from mmprompt.classification.methods.base import PromptMethod, image_layers, text_layers
from mmprompt.classification.methods.coop import first_words
from mmprompt.classification.methods.parts import Consistency, Epoch, Epochs, GaussianAverage, Weight
from mmprompt.core.method import Start
from mmprompt.settings import Count
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmprompt.core.learned import Outputs, Prompt
    from mmprompt.models.dual_encoder.interface import DualEncoder
    from mmprompt.training.callbacks import Callback


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


@dataclass(frozen=True)
class DeepText(PromptMethod):
    """Deep prompts of the text tower alone (Khattak et al. 2023, "MaPLe", section 4.2, "deep language prompting").

    The first `n_ctx` tokens of the words learn and the others stay, as in the released code.
    """

    n_ctx: Count = 4
    """Number of context vectors in each prompted layer of the text tower, 1 or more."""
    ctx_init: str | None = "a photo of a"
    """Words to start from; random N(0, 0.02) where None, or where they are fewer tokens than `n_ctx`."""
    text_depth: Count | None = None
    """Layers of the text tower that receive vectors of their own, input included; 12, or all where fewer."""

    recipe: ClassVar[Recipe] = Recipe(lr=0.0025, batch_size=4, epochs=5)
    paper_depth: ClassVar[int] = 12

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Make free vectors at the input of the text tower and of its first further layers."""
        from mmprompt.classification.template import ClassTemplate
        from mmprompt.core.learned import Learned, Prompt, random_vectors
        from mmprompt.models.sites import Site

        depth = text_layers(backbone, self.text_depth, self.paper_depth, "text_depth")
        values, rest = first_words(backbone, self.ctx_init, self.n_ctx, start)
        deeper = [random_vectors(tuple(values.shape), start.generator) for _ in range(depth - 1)]
        sources = [Learned(Site("text", layer), each) for layer, each in enumerate([values, *deeper])]
        template = ClassTemplate(f"{{soft*{self.n_ctx}}} {rest} {{name}}.".replace("  ", " "))
        return Prompt(template, *sources).to(backbone.device)


@dataclass(frozen=True)
class IVLP(DeepText):
    """Deep prompts of both towers, independent of each other (Khattak et al. 2023, "MaPLe", section 4.2)."""

    n_ctx: Count = 2
    """Number of context vectors in each prompted layer of the text tower, 1 or more."""
    n_visual: Count = 2
    """Number of visual prompt tokens in each prompted layer of the image tower, 1 or more."""
    visual_depth: Count | None = None
    """Layers of the image tower that receive tokens of their own, input included; 12, or all where fewer."""

    recipe: ClassVar[Recipe] = Recipe(lr=0.0035, batch_size=4, epochs=5)

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Make free vectors in both towers."""
        depth = image_layers(backbone, self.visual_depth, self.paper_depth, "visual_depth")
        return super().prompt(backbone, start).join(VPT(self.n_visual, depth).prompt(backbone, start))


@dataclass(frozen=True)
class PromptSRC(IVLP):
    """Self-regulating prompts (Khattak et al. 2023, "Self-regulating Prompts", section 3.2), from base to new classes.

    For few-shot learning the paper takes 50 epochs and an average about epoch 30 with a deviation of 30.
    """

    n_ctx: Count = 4
    """Number of context vectors in each prompted layer of the text tower, 1 or more."""
    n_visual: Count = 4
    """Number of visual prompt tokens in each prompted layer of the image tower, 1 or more."""
    text_depth: Count | None = None
    """Layers of the text tower that receive vectors of their own, input included; 9, or all where fewer."""
    visual_depth: Count | None = None
    """Layers of the image tower that receive tokens of their own, input included; 9, or all where fewer."""
    text_weight: Weight = 25.0
    """Weight of the L1 distance of class features from those of 60 templates."""
    image_weight: Weight = 10.0
    """Weight of the L1 distance of image features from those without a prompt."""
    logit_weight: Weight = 1.0
    """Weight of the divergence of the logits from the frozen model's."""
    gpa_mean: Epoch = 15.0
    """Epoch, counted from 1, whose weights count most in the average."""
    gpa_std: Epochs = 1.0
    """Standard deviation of the average, in epochs."""

    averages_weights: ClassVar[bool] = True
    recipe: ClassVar[Recipe] = Recipe(lr=0.0025, batch_size=4, epochs=20)
    paper_depth: ClassVar[int] = 9

    @property
    def _consistency(self) -> Consistency:
        return Consistency(self.text_weight, self.image_weight, self.logit_weight)

    def teacher(self, backbone: DualEncoder, class_names: Sequence[str], template: str) -> Tensor:
        """See `Consistency`."""
        return self._consistency.teacher(backbone, class_names, template)

    def loss_terms(self, outputs: Outputs) -> Mapping[str, Tensor]:
        """Compute cross entropy and the three distances from the frozen model."""
        return {**super().loss_terms(outputs), **self._consistency.loss_terms(outputs)}

    def callbacks(self, n_epochs: int) -> Sequence[Callback]:
        """Average the weights over epochs."""
        return GaussianAverage(self.gpa_mean, self.gpa_std).callbacks(n_epochs)


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
