"""Losses as pure functions of what a classifier put out; they know no model and no optimiser."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """What one step of a classifier puts out.

    Args:
        logits: [B, C], already multiplied by the linear `logit_scale`.
        labels: [B] int64 in 0..C-1; None where nothing is known of the images.
        image_features: [B, E] of unit norm.
        class_features: [C, E] of unit norm, or [B, C, E] where they depend on the image.
        frozen: the same images by the backbone without anything learned, for methods with a teacher.
    """

    logits: Tensor
    labels: Tensor | None
    image_features: Tensor
    class_features: Tensor
    frozen: Outputs | None = None


def cross_entropy(outputs: Outputs) -> Tensor:
    """Mean cross entropy over the batch, in float32 at least (Zhou et al. 2022, "Learning to Prompt", section 3.2)."""
    assert outputs.labels is not None, "a loss is taken of labelled images"
    logits = outputs.logits
    return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), outputs.labels)
