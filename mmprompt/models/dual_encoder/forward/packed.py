"""A text tower over packed slots: the common beginning once, then the slots that each class has of its own.

The slots of all classes lie one behind the other on one axis, classes of equal length side by side, so that the linear
layers see no padding and attention needs none either. Which slots are worth computing is decided in `text.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from mmprompt.models.dual_encoder.forward.views import BlockView, TextView
from mmprompt.models.sites import Site, TextSlots, Vectors

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of the common slots in one block: [B or 1, H, S, D/H] each."""


@dataclass(frozen=True)
class PackedSlots:
    """N slots on one axis.

    Args:
        token_ids: [N]; the token in each.
        classes: [N]; the class that each belongs to.
        columns: [N]; the place of each in its class's text.
        ctx_index: [N]; m where the m-th context vector stands, else -1.
        lengths: slots per class, in the order in which the classes lie; equal ones side by side.
    """

    token_ids: Tensor
    classes: Tensor
    columns: Tensor
    ctx_index: Tensor
    lengths: tuple[int, ...]

    @property
    def groups(self) -> list[tuple[int, int]]:
        """Return runs of equal length: how many classes, and of how many slots each."""
        return [(len(list(run)), length) for length, run in groupby(self.lengths)]


def pack(slots: TextSlots, classes: Tensor, columns: range, lengths: Sequence[int]) -> PackedSlots:
    """Put the slots of classes [C'], whose lengths are given, on one axis: of each these columns, cut at its length."""
    own = [min(length, columns.stop) - columns.start for length in lengths]
    counts = torch.tensor(own)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    rows = classes.cpu().repeat_interleave(counts).to(slots.token_ids.device)  # [N]
    places = (torch.arange(int(counts.sum())) - starts + columns.start).to(rows.device)
    return PackedSlots(slots.token_ids[rows, places], rows, places, slots.ctx_index[rows, places], tuple(own))


def embed(view: TextView, packed: PackedSlots, vectors: Vectors | None) -> Tensor:
    """Embed tokens or context vectors, with positions: [B or 1, N, D]."""
    x = splice(view.token_embedding(packed.token_ids)[None], packed, vectors)
    return view.pre_norm(x + view.position[packed.columns])


def splice(x: Tensor, packed: PackedSlots, vectors: Vectors | None) -> Tensor:
    """Put vectors into x [B or 1, N, D] where `ctx_index` names them; an index beyond M keeps what is there.

    The result is [B, N, D] if the vectors belong to images and one of them stands in a slot, else as x.
    """
    if vectors is None:
        return x
    (places,) = ((packed.ctx_index >= 0) & (packed.ctx_index < vectors.n_vectors)).nonzero(as_tuple=True)
    if len(places) == 0:
        return x  # and none that could learn, so that no graph is kept
    index = packed.ctx_index[places]
    if vectors.scope == "class":
        values = vectors.values[packed.classes[places], index][None]
    else:
        values = vectors.values[..., index, :].reshape(-1, len(places), x.shape[-1])
    n_images = max(len(x), len(values))
    return x.expand(n_images, -1, -1).index_copy(1, places, values.to(x.dtype).expand(n_images, -1, -1))


def run_common(view: TextView, common: PackedSlots, vectors: Mapping[Site, Vectors]) -> list[KeyValue]:
    """Return the keys and values of the slots that all classes begin with, for every block."""
    x = embed(view, common, vectors.get(Site("text")))
    found: list[KeyValue] = []
    for layer, block in enumerate(view.block_views):
        x = splice(x, common, vectors.get(Site("text", layer)) if layer else None)
        normed = block.entering(x)
        if layer == len(view.blocks) - 1:
            key, value = map(block.split_heads, block.key_value(normed))
        else:
            query, key, value = map(block.split_heads, block.in_proj(normed))
            attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = block.finish(x, block.join_heads(attended))
        found.append((key, value))
    return found


def run_own(
    view: TextView,
    own: PackedSlots,
    vectors: Mapping[Site, Vectors],
    common: Sequence[KeyValue | None],
    end_only: bool,
) -> Tensor:
    """Run the blocks over the slots that C' classes have of their own, and pool them: [B or 1, C', D].

    Args:
        view: the tower.
        own: the slots, each class ending in its end token.
        vectors: by site.
        common: what `run_common` gave, None per block where there are no common slots.
        end_only: whether the last block is computed for the end tokens alone, if those are read.
    """
    ends = torch.tensor(own.lengths).cumsum(0).to(own.token_ids.device) - 1
    groups = [(n_classes, length, length) for n_classes, length in own.groups]
    x = embed(view, own, vectors.get(Site("text")))
    for layer, block in enumerate(view.block_views):
        x = splice(x, own, vectors.get(Site("text", layer)) if layer else None)
        normed = block.entering(x)
        if end_only and view.pooling == "eos" and layer == len(view.blocks) - 1:
            key, value = block.key_value(normed)
            ends_alone = [(n_classes, 1, length) for n_classes, length in own.groups]
            queries = block.query(normed[:, ends])
            attended = attend(block, (queries, key, value), common[layer], ends_alone, view.is_causal)
            return block.finish(x[:, ends], attended)
        x = block.finish(x, attend(block, block.in_proj(normed), common[layer], groups, view.is_causal))
    if view.pooling == "mean":
        parts = x.split([n_classes * length for n_classes, length in own.groups], dim=1)
        sides = zip(parts, own.groups, strict=True)
        return torch.cat([part.unflatten(1, (-1, length)).mean(dim=2) for part, (_, length) in sides], dim=1)
    return x[:, ends]


def attend(
    block: BlockView,
    own: tuple[Tensor, Tensor, Tensor],
    common: KeyValue | None,
    groups: Sequence[tuple[int, int, int]],
    is_causal: bool,
) -> Tensor:
    """Attend from each class's slots to the common ones and to its own: the joined heads [B, N', D].

    The common keys are multiplied once for all classes and never copied per class.

    Args:
        block: for its heads.
        own: queries [B or 1, N', D], keys and values [B or 1, N, D] of the packed slots.
        common: keys and values of the common slots, if there are any.
        groups: per run of equal length the number of classes, of queries per class, and of keys per class; a
            class's queries are its last slots.
        is_causal: whether a slot sees none of its class that is behind it.
    """
    query, key, value = (block.split_heads(part) for part in own)  # [B, H, N, D/H]
    query = query * query.shape[-1] ** -0.5
    queries, keys = [c * q for c, q, _ in groups], [c * k for c, _, k in groups]
    to_common = query @ common[0].mT if common else query[..., :0]  # [B, H, N', S]
    n_images, n_common = len(to_common), to_common.shape[-1]
    weights, sums = [], []
    parts = zip(groups, query.split(queries, 2), key.split(keys, 2), value.split(keys, 2), strict=True)
    for (group, q, k, v), scores in zip(parts, to_common.split(queries, 2), strict=True):
        n_classes, n_queries, n_keys = group
        q, k, v = (part.unflatten(2, (n_classes, -1)) for part in (q, k, v))  # [B, H, C', T, D/H]
        to_own = q @ k.mT
        if is_causal:
            to_own = to_own.masked_fill(later_slots(n_queries, n_keys, k.device), float("-inf"))
        to_own = to_own.expand(n_images, -1, -1, -1, -1)
        weight = softmax(torch.cat([scores.unflatten(2, (n_classes, -1)), to_own], dim=-1))
        weights.append(weight[..., :n_common].flatten(2, 3))
        sums.append((weight[..., n_common:] @ v).flatten(2, 3))
    attended = torch.cat(sums, dim=2)  # [B, H, N', D/H]
    if common:
        attended = attended + torch.cat(weights, dim=2) @ common[1]
    return block.join_heads(attended)


def later_slots(n_queries: int, n_keys: int, device: torch.device) -> Tensor:
    """Return [T', T], true where a slot would see a later one; the queries are the last T' of the T slots."""
    return torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).triu(1 + n_keys - n_queries)


def softmax(scores: Tensor) -> Tensor:
    """Apply softmax over the last axis, in single precision at least."""
    precise = torch.float32 if scores.dtype in (torch.float16, torch.bfloat16) else scores.dtype
    return scores.softmax(dim=-1, dtype=precise).to(scores.dtype)
