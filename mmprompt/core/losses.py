"""Losses as pure functions of what a classifier put out; they know no model and no optimiser."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """What one training step of a classifier puts out.

    Args:
        logits: [B, C], already multiplied by the linear `logit_scale`.
        labels: [B] int64 in 0..C-1.
        image_features: [B, E] of unit norm.
        class_features: [C, E] of unit norm.
    """

    logits: Tensor
    labels: Tensor
    image_features: Tensor
    class_features: Tensor


def cross_entropy(outputs: Outputs) -> Tensor:
    """Mean cross entropy over the batch (Zhou et al. 2022, "Learning to Prompt", section 3.2)."""
    return F.cross_entropy(outputs.logits.float(), outputs.labels)
