"""Layer norms that learn, alone or as the first stage before a classifier (Farina et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mmprompt.classification.methods.base import PromptMethod, need_text, tower_shapes
from mmprompt.core.method import Start
from mmprompt.errors import UserError
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmprompt.core.learned import Prompt
    from mmprompt.models.dual_encoder.interface import DualEncoder
    from mmprompt.training.callbacks import Callback

PUBLISHED: Mapping[str, Any] = {
    "optimizer": "adamw",
    "lr": 2e-4,
    "weight_decay": 1e-2,
    "batch_size": 32,
    "steps_per_shot": 300,
    "warmup_epochs": 0,
    "schedule": "step",
    "min_lr": 1e-6,
}


@dataclass(frozen=True)
class LayerNormTuning(PromptMethod):
    """The layer norms of either tower or both learn (Farina et al. 2025, "Rethinking Few-Shot Adaptation", section 3).

    What is learned is added to the frozen weights and biases, so weight decay pulls towards those and not towards 0.
    The released code leaves out the norms outside of the blocks; here they learn, as the paper says.
    """

    norm_towers: Literal["both", "text", "vision"] = "both"
    """Which towers are adapted."""

    recipe: ClassVar[Recipe] = Recipe(**PUBLISHED)

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Add something to every layer norm of the towers.

        Raises:
            UserError: a tower is to be adapted that is not there or has no layer norms which are known.
        """
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

    recipe: ClassVar[Recipe] = Recipe(**PUBLISHED, restart_after=0.6)

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
