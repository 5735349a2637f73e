"""Heads: from the features of images and classes to logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Head(nn.Module):
    """A module from image features [B, E] and class features, both of unit norm, to logits [B, C].

    Attributes:
        kind: the name under which a prompt file keeps its settings and state; a key of `HEADS` when it is read.
        is_class_specific: whether it belongs to the classes it was made for, so that no others can be named.
    """

    kind: ClassVar[str] = ""
    is_class_specific: bool = True
    if TYPE_CHECKING:

        def __call__(self, image_features: Tensor, class_features: Tensor) -> Tensor:  # noqa: D102
            ...

    def settings(self) -> dict[str, Any]:
        """Give the keyword arguments, JSON-ready, with which `HEADS[kind]` makes a head of the same shapes."""
        return {}


class Cosine(Head):
    """The scaled cosine (Radford et al. 2021, "Learning Transferable Visual Models", section 2.3); it learns nothing.

    Args:
        scale: linear multiplier, about 100 for CLIP.
        bias: added to the logits (SigLIP).
    """

    is_class_specific = False

    def __init__(self, scale: float, bias: float = 0.0) -> None:
        super().__init__()
        self.scale, self.bias = scale, bias

    def forward(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Compute logits [B, C] from class features [C, E], or [B, C, E] where they depend on the image."""
        if class_features.dim() == 2:
            return self.scale * image_features @ class_features.T + self.bias
        return self.scale * torch.einsum("be,bce->bc", image_features, class_features) + self.bias


class ClassMeans(Head):
    """The scaled cosine to a vector of each class.

    Args:
        n_classes: C.
        width: E.
        scale, bias: as of the cosine.
    """

    kind = "class-means"

    def __init__(self, n_classes: int, width: int, scale: float, bias: float) -> None:
        super().__init__()
        self.scale, self.bias = scale, bias
        self.means = nn.Parameter(torch.zeros(n_classes, width), requires_grad=False)

    def settings(self) -> dict[str, Any]:
        """See `Head`."""
        return {"n_classes": len(self.means), "width": self.means.shape[1], "scale": self.scale, "bias": self.bias}

    def forward(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Compute logits [B, C]; class features are not looked at."""
        return self.scale * image_features @ self.means.to(image_features.dtype).T + self.bias


class Linear(Head):
    """A linear map of image features, in double precision as its solver has it.

    Args:
        n_classes: C.
        width: E.
    """

    kind = "linear"

    def __init__(self, n_classes: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_classes, width, dtype=torch.float64), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(n_classes, dtype=torch.float64), requires_grad=False)

    def settings(self) -> dict[str, Any]:
        """See `Head`."""
        return {"n_classes": self.weight.shape[0], "width": self.weight.shape[1]}

    def forward(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Compute logits [B, C]; class features are not looked at."""
        return F.linear(image_features.double(), self.weight, self.bias)


HEADS: dict[str, Callable[..., Head]] = {"class-means": ClassMeans, "linear": Linear}
"""The kinds of heads that a prompt file may name; a head of your own is added here."""
