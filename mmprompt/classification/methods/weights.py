"""Methods that change what the towers compute: low-rank terms, adapters, layer norms, or all of their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from mmprompt.classification.methods.base import PromptMethod, block_places, need_text, tower_shapes, towers_of
from mmprompt.core.method import Method, Start, leading, parts_of
from mmprompt.errors import UserError
from mmprompt.settings import Width
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from mmprompt.core.learned import Prompt
    from mmprompt.models.dual_encoder.interface import DualEncoder
    from mmprompt.training.callbacks import Callback

ADAMW: Mapping[str, Any] = {
    "optimizer": "adamw",
    "lr": 2e-4,
    "weight_decay": 1e-2,
    "batch_size": 32,
    "warmup_epochs": 0,
    "schedule": "step",
    "min_lr": 1e-6,
}
"""What the released code of CLIP-LoRA and that of 2SFS take alike."""


@dataclass(frozen=True)
class CLIPLoRA(PromptMethod):
    """Low-rank adaptation of queries, keys and values (Zanella and Ben Ayed 2024, "CLIP-LoRA", section 3).

    The terms are scaled by alpha over the root of the rank, as in the released code. Joined with a method that learns
    vectors, such as `coop+clip-lora`, both learn together, by the recipe of the first.
    """

    rank: Width = 2
    """Rank of each term, 1 or more."""
    alpha: Annotated[float, Gt(0)] = 1.0
    """Scale of the terms, before it is divided by the root of the rank."""
    lora_dropout: Annotated[float, Ge(0), Lt(1)] = 0.25
    """Share of what enters a term that is dropped in training."""
    lora_towers: Literal["both", "text", "vision"] = "both"
    """Which towers are adapted."""

    group: ClassVar[str] = "weights"
    recipe: ClassVar[Recipe] = Recipe(**ADAMW, steps_per_shot=500)

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


@dataclass(frozen=True)
class Adapters(PromptMethod):
    """Bottleneck adapters (Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", section 2.1).

    They stand behind the attention and the MLP of each block, or behind the MLP alone (Pfeiffer et al. 2021,
    "AdapterFusion"). Layer norms learn too in Houlsby et al.: join `layer-norm` for that. For CLIP no recipe is
    published, so this is that of CLIP-LoRA.
    """

    adapter_width: Width = 8
    """Width of each network, 1 or more."""
    adapter_places: Literal["both", "attention", "mlp"] = "both"
    """Behind which part of each block they stand."""
    adapter_towers: Literal["both", "text", "vision"] = "both"
    """Which towers are adapted."""

    recipe: ClassVar[Recipe] = CLIPLoRA.recipe

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Make the networks; refuse a tower that is not there or has no blocks that are known."""
        from mmprompt.core.learned import Prompt
        from mmprompt.core.sources import Bottlenecks

        parts = ("attention", "mlp") if self.adapter_places == "both" else (self.adapter_places,)
        places = block_places(tower_shapes(backbone, self.adapter_towers, "adapter_towers"), parts)
        source = Bottlenecks(places, self.adapter_width).start_from(start.generator)
        return Prompt(start.template, source).to(backbone.device)


@dataclass(frozen=True)
class LayerNormTuning(PromptMethod):
    """The layer norms of either tower or both learn (Farina et al. 2025, "Rethinking Few-Shot Adaptation", section 3).

    What is learned is added to the frozen weights and biases, so weight decay pulls towards those and not towards 0.
    The released code leaves out the norms outside of the blocks; here they learn, as the paper says.
    """

    norm_towers: Literal["both", "text", "vision"] = "both"
    """Which towers are adapted."""

    recipe: ClassVar[Recipe] = Recipe(**ADAMW, steps_per_shot=300)

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Add something to every layer norm of the towers; refuse a tower that has none which are known."""
        from mmprompt.core.learned import Prompt
        from mmprompt.core.sources import NormDeltas

        shapes = tower_shapes(backbone, self.norm_towers, "norm_towers")
        places = {str(site): shapes[site.tower][1] for site in backbone.norm_sites if site.tower in shapes}
        if not places:
            raise UserError(f"{backbone.name} has no layer norms in the {self.norm_towers} tower. Use `coop`.")
        return Prompt(start.template, NormDeltas(places)).to(backbone.device)


@dataclass(frozen=True)
class TwoStage(LayerNormTuning):
    """Layer norms learn, then a classifier that starts from the text (Farina et al. 2025, section 4, "2SFS").

    `restart_after` of the recipe is the share of the first stage. Class names that were not learned are told apart by
    their text alone ("selective inference").
    """

    makes_head: ClassVar[bool] = True
    recipe: ClassVar[Recipe] = Recipe(**ADAMW, steps_per_shot=300, restart_after=0.6)

    def check_whole(self, whole: Method) -> None:
        """Refuse to be trained by the recipe of another, which has one stage, and an average over both stages."""
        if leading(whole) is not self:
            raise UserError("two-stage has a recipe of two stages. Name it first, as in two-stage+coop.")
        for part in parts_of(whole):
            if part.averages_weights:
                said = "two-stage learns one thing after the other, so an average over epochs is of neither"
                raise UserError(f"{said}. Leave out {type(part).__name__}.")

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Make the norms' part, and a classifier that waits for the second stage."""
        from mmprompt.core.heads import TextStarted
        from mmprompt.core.learned import Prompt

        need_text(backbone)
        prompt = super().prompt(backbone, start)
        scale, bias = backbone.logit_scale, backbone.logit_bias
        head = TextStarted(len(start.class_names), backbone.embed_dim, scale, bias)
        return Prompt(prompt.template, *prompt.sources, head=head).to(backbone.device)

    def callbacks(self, n_epochs: int) -> Sequence[Callback]:
        """Begin the second stage when it is time."""
        from mmprompt.classification.second_stage import SecondStage

        return [SecondStage()]


@dataclass(frozen=True)
class FullTuning(PromptMethod):
    """Weights of its own in place of all of the towers' (Wortsman et al. 2022, "WiSE-FT", fine-tuning end to end).

    It is what prompts are compared with: the file is as large as what it tunes, in single precision (600 MB for both
    towers of ViT-B/16; files above 2 GB are not read), training takes four times that and all activations of both
    towers, and no features are stored. The frozen model is not changed: the weights stand in its place while it
    computes, for all threads. The text gives the class weights; scale and bias of the logits, and the statistics of
    batch norms, stay. The recipe is that of the released code for ImageNet, without its clipping of gradients and its
    warm-up of 500 steps.
    """

    tuned_towers: Literal["both", "text", "vision"] = "both"
    """Whose weights learn."""

    group: ClassVar[str] = "weights"
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adamw",
        lr=3e-5,
        weight_decay=0.1,
        batch_size=512,
        epochs=10,
        warmup_epochs=0,
        schedule="step",
    )

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Make weights that start as the towers' own."""
        from mmprompt.core.learned import Prompt
        from mmprompt.core.sources import Weights

        own = {
            f"{tower}.part[{name}]": value
            for tower in towers_of(backbone, self.tuned_towers, "tuned_towers")
            for name, value in backbone.weights_of(tower).items()
        }
        weights = Weights({name: list(value.shape) for name, value in own.items()})
        return Prompt(start.template, weights.start_from(list(own.values()))).to(backbone.device)
