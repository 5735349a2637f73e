"""What a method is: which prompts, which losses. It knows no data and no loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mmprompt.classification.predictor import Classifier
from mmprompt.core.losses import Outputs, cross_entropy
from mmprompt.core.prompt import Prompt
from mmprompt.core.template import check_class_names
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.interface import DualEncoder


class Method(Protocol):
    """A frozen dataclass of settings that says which prompt is learned and by which losses."""

    def prompt(
        self, backbone: DualEncoder, class_names: Sequence[str], generator: torch.Generator, template: str
    ) -> Prompt:
        """The untrained prompt for a backbone.

        Args:
            backbone: the frozen model.
            class_names: C names.
            generator: CPU generator of the random start.
            template: the words around the class name where the method learns no text context.
        """
        ...

    def losses(self, outputs: Outputs) -> dict[str, Tensor]:
        """The named scalar terms whose sum is minimised."""
        return {"cross_entropy": cross_entropy(outputs)}

    def build(
        self, backbone: DualEncoder, class_names: Sequence[str], seed: int = 1, template: str = "a photo of a {}."
    ) -> Classifier:
        """An untrained classifier: an ordinary `nn.Module` whose `parameters()` are the prompt alone.

        Args:
            backbone: the frozen model.
            class_names: C names, the order of the logits.
            seed: seed of the random start.
            template: see `prompt`.
        Raises:
            UserError: a class name or a setting cannot be used with this backbone.
        """
        check_class_names(class_names)
        generator = torch.Generator().manual_seed(seed)
        return Classifier(backbone, self.prompt(backbone, class_names, generator, template), class_names)

    def __add__(self, other: Method) -> Together:
        return Together((self, other))


@dataclass(frozen=True)
class Together(Method):
    """Several methods that learn at different sites, trained as one prompt by the first one's losses.

    Args:
        methods: two or more; no two may learn at the same site.
    """

    methods: tuple[Method, ...]

    def prompt(
        self, backbone: DualEncoder, class_names: Sequence[str], generator: torch.Generator, template: str
    ) -> Prompt:
        """The sources of all methods in one prompt."""
        if len(self.methods) < 2:
            raise UserError("a combination needs at least two methods. Write CoOp(...) + VPT(...).")
        joined, *rest = (method.prompt(backbone, class_names, generator, template) for method in self.methods)
        for prompt in rest:
            joined = joined.join(prompt)
        return joined

    def losses(self, outputs: Outputs) -> dict[str, Tensor]:
        """The loss terms of every method, each once."""
        return {name: term for method in self.methods for name, term in method.losses(outputs).items()}
