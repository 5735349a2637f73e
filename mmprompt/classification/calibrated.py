"""A classifier whose probabilities are scaled by a temperature; its answers are those of the same prompt without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from annotated_types import Gt, Lt
from torch import Tensor

from mmprompt.classification.predictor import CLASSIFIERS, Classifier
from mmprompt.core.learned import Outputs, Prompt
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.settings import check

Temperature = Annotated[float, Gt(0), Lt(1e6)]


class Calibrated(Classifier):
    """A classifier with its logits divided by a temperature (Guo et al. 2017, section 4.2).

    Args:
        backbone, prompt, class_names, class_features: see `Classifier`.
        temperature: above 0; above 1 makes it less sure.
    Raises:
        UserError: the temperature is not a number above 0, or as of `Classifier`.
    """

    form: ClassVar[str] = "calibrated"

    def __init__(
        self,
        backbone: DualEncoder,
        prompt: Prompt,
        class_names: Sequence[str],
        class_features: Tensor | None = None,
        temperature: float = 1.0,
    ) -> None:
        check("temperature", temperature, Temperature, "Use `temperature=1.0`.")
        self.temperature = temperature
        super().__init__(backbone, prompt, class_names, class_features)

    def outputs(self, image_features: Tensor, labels: Tensor | None = None, frozen: Outputs | None = None) -> Outputs:
        """See `Classifier`."""
        outputs = super().outputs(image_features, labels, frozen)
        return replace(outputs, logits=outputs.logits / self.temperature)

    def form_settings(self) -> dict[str, Any]:
        """Give the temperature."""
        return {"temperature": self.temperature}


def calibrated(classifier: Classifier, temperature: float) -> Calibrated:
    """Return a classifier of the same prompt with its logits divided by a temperature, on top of any before.

    One of a form of its own is refused.
    """
    if isinstance(classifier, Calibrated):
        temperature *= classifier.temperature
    elif classifier.form:
        raise UserError(f"a {classifier.form} classifier cannot be calibrated. Use a prompt of another method.")
    features = classifier.kept_tensors().get("class_features")
    return Calibrated(classifier.backbone, classifier.prompt, classifier.class_names, features, temperature)


CLASSIFIERS[Calibrated.form] = Calibrated
