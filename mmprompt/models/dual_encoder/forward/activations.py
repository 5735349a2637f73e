"""Activations that the libraries write in several steps, as one step that keeps less for the backward pass."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

QUICK = 1.702


def quick_gelu(x: Tensor) -> Tensor:
    """`x * sigmoid(1.702 x)`, the approximation of GELU in the published CLIP weights, as a scaled SiLU."""
    return F.silu(QUICK * x) / QUICK
