"""Which parts of an image a score rests on, by gradients: through the attentions of a tower with image tokens, through
the pixels of any other.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder
from mmprompt.models.dual_encoder.forward.views import BlockView, VisionView
from mmprompt.models.sites import Insert, Site

GRID = 14
"""Cells a side, of a map made of pixels."""


@dataclass(frozen=True)
class WatchedBlock(BlockView):
    """A block that also keeps its attention [B, H, L, L] and what leaves it [B, L, D]."""

    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def whole(self, x: Tensor, is_causal: bool = False) -> Tensor:
        """Run the whole block over all slots [B, L, D], which all see each other."""
        query, key, value = (self.split_heads(part) for part in self.in_proj(self.entering(x)))  # [B, H, L, D/H]
        attention = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(-1)
        out = self.finish(x, self.join_heads(attention @ value))
        self.seen.append((attention, out))
        return out


def relevance(
    backbone: FrozenDualEncoder,
    images: Tensor,
    score: Callable[[Tensor], Tensor],
    inserts: Mapping[Site, Insert] | None = None,
    raw: bool = False,
) -> Tensor:
    """Map what speaks for a score in each image.

    With image tokens it is relevance through the attentions of all blocks, each weighed by its positive gradient
    (Chefer et al. 2021, "Generic Attention-model Explainability", as in their released code for CLIP), begun at the
    slots that the pooling reads. Else it is the gradient times the input, over a grid of 14 cells a side.

    Args:
        backbone: the frozen model.
        images: [B, 3, H, W], as `preprocess` gives them.
        score: from features, as `encode_image` gives them, to a number [B] for each image.
        inserts: what is learned at vision sites.
        raw: as of `encode_image`.
    Returns:
        [B, G, G] float32, 0 or more, the first row at the top of the image.
    """
    images = images.to(backbone.device, backbone.dtype).detach().requires_grad_()
    with torch.enable_grad():
        if not isinstance(backbone.vision, VisionView):
            (gradient,) = torch.autograd.grad(score(backbone.encode_image(images, inserts, raw)).sum(), images)
            return F.adaptive_avg_pool2d((gradient * images.detach()).float().abs().sum(1), GRID).cpu()
        seen: list[tuple[Tensor, Tensor]] = []
        watched = copy.copy(backbone)
        watched.vision = replace(
            backbone.vision, blocks=tuple(_watched(block, seen) for block in backbone.vision.blocks)
        )
        total = score(watched.encode_image(images, inserts, raw)).sum()
        attentions, last = [attention for attention, _ in seen], seen[-1][1]
        *gradients, read = torch.autograd.grad(total, [*attentions, last])
    weight = read.float().norm(dim=-1)  # [B, L], nothing but at the slots that the pooling reads
    weight = weight / weight.sum(1, keepdim=True).clamp_min(1e-30)
    for attention, gradient in zip(reversed(attentions), reversed(gradients), strict=True):
        through = (gradient * attention).float().clamp_min(0).mean(1)  # [B, L, L]
        weight = weight[:, : through.shape[1]]  # further prompts joined above
        weight = weight + torch.einsum("bq,bqk->bk", weight, through)
    with torch.no_grad():
        n_own = backbone.vision.embed(images[:1]).shape[1]
    side = math.isqrt(n_own)
    return weight[:, n_own - side**2 : n_own].unflatten(1, (side, side)).detach().cpu()


def _watched(block: BlockView, seen: list[tuple[Tensor, Tensor]]) -> WatchedBlock:
    return WatchedBlock(**{part.name: getattr(block, part.name) for part in fields(BlockView)}, seen=seen)
