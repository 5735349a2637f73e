"""The losses of pretraining, over the groups of a batch. Pure functions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from openart.batches import RELATIONS, Batch, Group
from openart.model import Heads

WEIGHTS = {
    "label": 1.0, "left": 1.0, "right": 1.0, "large": 0.7, "small": 0.7, "side": 1.5, "size": 0.5,
    "emotion": 0.7, "action": 0.7, "kind": 0.4, "tag": 0.2, "background": 0.15, "pair": 3.0, "heads": 1.0,
}  # fmt: skip


def several_true(logits: Tensor, truth: Tensor) -> Tensor:
    """Softmax loss with several true captions: each is held against the false ones only, then averaged.

    Args:
        logits: [n, m]; truth: [n, m] bool, at least one true in every row.
    """
    false = logits.masked_fill(truth, float("-inf")).logsumexp(1, keepdim=True)
    each = F.softplus(false - logits) * truth
    return (each.sum(1) / truth.sum(1)).mean()


def group_scores(group: Group, images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Logits [n, m] of one group."""
    return scale * images[group.images] @ texts[group.captions].T


def losses(batch: Batch, images: Tensor, texts: Tensor, scale: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Every group's loss, the pair loss, and what there is to watch (pair and group accuracies in percent)."""
    found: dict[str, Tensor] = {}
    seen: dict[str, float] = {}
    pair = []
    for group in batch.groups:
        if not len(group.images):
            continue
        logits = group_scores(group, images, texts, scale)
        found[group.name] = several_true(logits, group.truth)
        right = group.truth.gather(1, logits.argmax(1, keepdim=True))
        seen[f"acc_{group.name}"] = 100 * right.float().mean().item()
        if group.swapped is not None:
            gap = logits.gather(1, group.swapped[:, None])[:, 0] - logits[group.truth]
            pair.append(F.softplus(gap).mean())
            seen[f"pair_{group.name}"] = 100 * (gap < 0).float().mean().item()
    if pair:
        found["pair"] = torch.stack(pair).mean()
    return found, seen


def head_loss(batch: Batch, heads: Heads, token: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Cross entropy of the throw-away heads (all parts of every picture, the part in each relation), and the missed
    distance of one that says where a single piece stands; accuracies.
    """
    seen: dict[str, float] = {}
    alone = batch.place[:, 2] > 0
    missed = (heads("place", token[alone.to(token.device)])[:, :2] - batch.place[alone, :2].to(token.device)) / 0.125
    logits = heads("label", token)
    truth = torch.zeros(logits.shape, dtype=torch.bool)
    there = batch.parts >= 0
    truth[there.nonzero()[:, 0], batch.parts[there]] = True
    total = several_true(logits, truth.to(logits.device)) + missed.square().mean()
    seen["miss_place"] = missed.square().mean().item()
    for relation in RELATIONS:
        target = batch.related[relation].to(token.device)
        rows = (target >= 0).nonzero()[:, 0]
        if len(rows):
            logits = heads(relation, token[rows])
            seen[f"head_{relation}"] = 100 * (logits.argmax(1) == target[rows]).float().mean().item()
            total = total + F.cross_entropy(logits, target[rows])
    return total, seen


def total_loss(parts: dict[str, Tensor]) -> Tensor:
    """The weighted sum."""
    return torch.stack([WEIGHTS[name] * value for name, value in parts.items()]).sum()
