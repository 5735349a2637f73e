"""Where prompt vectors come from. A source is an `nn.Module` whose call gives `Vectors`; it knows no site."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmprompt.models.sites import Scope, Vectors


class FreeVectors(nn.Module):
    """Vectors that are learned directly.

    Args:
        values: `"shared"` [M, D] or `"class"` [C, M, D] float32; where learning starts.
        scope: what the vectors are shared over.
    """

    def __init__(self, values: Tensor, scope: Scope = "shared") -> None:
        super().__init__()
        self.values = nn.Parameter(values.detach().clone().float())
        self.scope = scope

    def forward(self) -> Vectors:
        """The vectors as they are now."""
        return Vectors(self.values, self.scope)


class ScaledVectors(nn.Module):
    """Vectors that are learned in units of their own size, so that one learning rate serves models of any scale.

    Args:
        values: [M, D]; where learning starts.
        scope: what the vectors are shared over.
        unit: their size, one number or one for each of the D; by default their root mean square.
    """

    unit: Tensor

    def __init__(self, values: Tensor, scope: Scope = "shared", unit: Tensor | None = None) -> None:
        super().__init__()
        values = values.detach().float()
        unit = values.square().mean().sqrt() if unit is None else unit.detach().float()
        self.register_buffer("unit", torch.where(unit > 0, unit, torch.ones_like(unit)))
        self.values = nn.Parameter(values / self.unit)
        self.scope = scope

    def forward(self) -> Vectors:
        """The vectors as they are now, in the model's own size."""
        return Vectors(self.values * self.unit, self.scope)


def random_vectors(shape: tuple[int, ...], generator: torch.Generator, std: float = 0.02) -> Tensor:
    """Draw the published random start N(0, 0.02) on the CPU, so that every device starts from the same bytes.

    Args:
        shape: `(M, D)` or `(C, M, D)`.
        generator: a CPU generator.
        std: the standard deviation; 0.02 in Zhou et al. 2022, section 4.1.
    """
    return torch.empty(shape).normal_(0.0, std, generator=generator)
