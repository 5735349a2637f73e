"""What methods of classification share beside the core's hooks: they can be built by hand, and added together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from mmprompt.core.method import Combined, Method, Start, settled

if TYPE_CHECKING:
    from mmprompt.classification.predictor import Classifier
    from mmprompt.models.dual_encoder.interface import DualEncoder


class ClassificationMethod(Method, Protocol):
    """A method whose prompt makes a classifier of a dual encoder."""

    kinds: ClassVar[tuple[str, ...]] = ("classification",)

    def build(
        self, backbone: DualEncoder, class_names: Sequence[str], seed: int = 1, template: str = "a photo of a {}."
    ) -> Classifier:
        """Make an untrained classifier: an ordinary `nn.Module` whose `parameters()` are what is learned alone.

        Args:
            backbone: the frozen model.
            class_names: C names, the order of the logits.
            seed: seed of the random start.
            template: the words around the class name where the method learns no text context.
        Raises:
            UserError: a class name or a setting cannot be used with this backbone.
        """
        import torch

        from mmprompt.classification.predictor import Classifier
        from mmprompt.classification.template import ClassTemplate, check_class_names
        from mmprompt.models.dual_encoder.interface import DualEncoder
        from mmprompt.settings import check

        check("backbone", backbone, DualEncoder, "Use load_backbone.")
        check_class_names(class_names)
        method = settled(self, backbone.name, "classification")
        start = Start(torch.Generator().manual_seed(seed), ClassTemplate(template), class_names)
        prompt = method.prompt(backbone, start)
        return method.predictor(backbone, prompt, class_names) or Classifier(backbone, prompt, class_names)

    def __add__(self, other: ClassificationMethod) -> Together:
        return Together((self, other)) if hasattr(other, "prompt") else NotImplemented


@dataclass(frozen=True)
class Together(Combined, ClassificationMethod):
    """Several methods of classification, trained as one prompt."""
