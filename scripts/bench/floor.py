"""The multiply-adds that no exact method can avoid in one training step of a text prompt.

Left out is all that stays the same from step to step and could be kept: the start token, whatever stands
before the first vector, and the queries, keys and values of words in the first block. Norms, activations and
softmax are left out too, so the floor cannot quite be reached.
"""

import time
from dataclasses import dataclass

import torch

from mmprompt.models.dual_encoder.forward.text import common_length
from mmprompt.models.sites import TextSlots


@dataclass(frozen=True)
class Tower:
    """Width, blocks and joint width."""

    width: int
    n_blocks: int
    embed_dim: int


def step_madds(tower: Tower, slots: TextSlots, is_shared: bool, n_images: int, n_deep: int) -> float:
    """Multiply-adds of forward and backward, for class features of `n_images` images if the context depends on them.

    At the input of `n_deep` blocks stand vectors of their own: slots that they take over need keys and values alone in
    the block before.
    """
    square, last = tower.width**2, tower.n_blocks - 1
    n_common = common_length(slots, is_shared)
    learned_common = int((slots.ctx_index[0, :n_common] >= 0).sum())
    own_lengths = (slots.lengths - n_common).double()
    n_own, n_classes = float(own_lengths.sum()), len(own_lengths)
    own_ctx = float((slots.ctx_index[:, n_common:] >= 0).sum())
    whole_blocks = last - n_deep  # of the common slots; before a deep vector, keys and values are enough
    common = learned_common * square * (12 * whole_blocks + 2 * n_deep + 2)
    first = 9 * n_own + 3 * own_ctx
    own = square * (first + 12 * n_own * (last - 1) + 2 * n_own + 10 * n_classes)
    seen = float((own_lengths * (n_common + (own_lengths + 1) / 2)).sum())
    attention = 2 * tower.width * (seen * last + float((n_common + own_lengths).sum()))
    projection = n_classes * tower.width * tower.embed_dim
    forward = common + own + attention + projection
    backward = forward + attention  # the gradient of a weighted sum is two products for each one
    return n_images * (forward + backward)


def product_rate(n_rows: int, width: int) -> float:
    """Multiply-adds per CPU second of the widest products, forward and backward, on as many rows as a step has."""
    rows = min(n_rows, 4096)
    x, hidden, weight = torch.randn(rows, width), torch.randn(rows, 4 * width), torch.randn(4 * width, width)
    best, repeats = 0.0, max(1, 4096 // rows)
    for _ in range(5):
        started = time.process_time()
        for _ in range(repeats):
            torch.mm(x, weight.T)
            torch.mm(hidden, weight)
        best = max(best, repeats * 2 * rows * 4 * width**2 / (time.process_time() - started))
    return best
