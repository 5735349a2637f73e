"""TPT: a prompt for each image, tuned when it is predicted, without labels (Shu et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Ge, Gt, Le

from mmprompt.classification.methods.base import Part
from mmprompt.classification.methods.coop import CoOp
from mmprompt.core.method import Start
from mmprompt.settings import Count

if TYPE_CHECKING:
    from mmprompt.classification.predictor import Classifier
    from mmprompt.core.learned import Prompt
    from mmprompt.models.dual_encoder.interface import DualEncoder


@dataclass(frozen=True)
class TPT(Part):
    """Test-time Prompt Tuning (Shu et al. 2022, "Test-Time Prompt Tuning", section 3.2).

    Alone it starts from words and needs no image to learn from; joined to a method, as `coop+tpt`, it starts from what
    that has learned. Views are drawn as in the released code: crops and mirror images, which AugMix changes for all
    data sets but ImageNet and its variants.
    """

    tpt_init: str = "a photo of a"
    """Words to start from where it stands alone."""
    n_views: Annotated[int, Ge(2)] = 64
    """Views of each image, the image itself counted."""
    confident_share: Annotated[float, Gt(0), Le(1)] = 0.1
    """Share of the views that counts, those with the lowest entropy."""
    step_size: Annotated[float, Gt(0)] = 5e-3
    """Learning rate of AdamW."""
    n_tuning_steps: Count = 1
    """Steps for each image."""
    augmix: bool = True
    """Whether AugMix changes the views; the paper leaves it out for ImageNet and its variants."""
    group: ClassVar[str] = "test time"
    needs_shots: ClassVar[bool] = False
    is_trained: ClassVar[bool] = False

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Make vectors of the words, which change at prediction alone."""
        return CoOp(ctx_init=self.tpt_init).prompt(backbone, start).requires_grad_(False)

    def predictor(self, backbone: DualEncoder, prompt: Prompt, class_names: Sequence[str]) -> Classifier:
        """Make a classifier that tunes its prompt on each image."""
        from mmprompt.classification.forms import TestTimeClassifier
        from mmprompt.errors import UserError

        if not prompt.has("text"):
            raise UserError(
                "TPT tunes what is learned in the text tower, but nothing is. Join it to coop, or use it alone."
            )
        return TestTimeClassifier(
            backbone,
            prompt,
            class_names,
            n_views=self.n_views,
            confident_share=self.confident_share,
            step_size=self.step_size,
            n_tuning_steps=self.n_tuning_steps,
            augmix=self.augmix,
        )
