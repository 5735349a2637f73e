"""Full fine-tuning of either tower or both: all weights learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from mmprompt.classification.methods.base import PromptMethod, towers_of
from mmprompt.core.method import Start
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from mmprompt.core.learned import Prompt
    from mmprompt.models.dual_encoder.interface import DualEncoder


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
        """Make weights that start as the towers' own.

        Raises:
            UserError: the text tower is to be tuned, and there is none.
        """
        from mmprompt.core.learned import Prompt
        from mmprompt.core.sources import Weights

        own = {
            f"{tower}.part[{name}]": value
            for tower in towers_of(backbone, self.tuned_towers, "tuned_towers")
            for name, value in backbone.weights_of(tower).items()
        }
        weights = Weights({name: list(value.shape) for name, value in own.items()})
        return Prompt(start.template, weights.start_from(list(own.values()))).to(backbone.device)
