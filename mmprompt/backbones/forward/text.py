"""Class features from a frozen text tower with vectors spliced in, without the work that changes nothing.

A causal tower read at its end token needs neither padding nor anything after that token, and classes
that begin alike begin with the same keys and values. So three shortcuts are exact there: only real
tokens are computed (packed over classes), the common beginning is run once, and the last block is
computed for the end token alone. A bidirectional tower attends to its padding, so it is run at full
length, except for the last block's one slot. This file knows slots and vectors, not class names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmprompt.backbones.forward.views import BlockView, TextView
from mmprompt.backbones.sites import Site, TextSlots, Vectors


def encode_slots(view: TextView, slots: TextSlots, vectors: Mapping[Site, Vectors]) -> Tensor:
    """Raw class features of a text tower.

    Args:
        view: the tower.
        slots: what stands where; on the tower's device.
        vectors: for `text.input` the context vectors that `slots.ctx_index` names; for `text.layer[i]`
            vectors that replace the first of those slots at the input of block i (Khattak et al. 2023,
            "MaPLe", section 3.2).
    Returns:
        [C, E], not normalised.
    """
    deep = {site.layer: given for site, given in vectors.items() if site.layer > 0}
    given = vectors.get(Site("text"))
    x = splice(view.token_embedding(slots.token_ids), slots.ctx_index, given)  # [C, L, D]
    if view.is_causal and view.pooling == "eos":
        length = int(slots.lengths.max())
        x = x[:, :length] + view.position[:length]
        shared = all(v.scope == "shared" for v in vectors.values())
        packing = pack(slots, common_length(slots, shared))
        pooled = run_packed(view, x, packing, deep)
    else:
        x = x + view.position[: x.shape[1]]
        pooled = run_full(view, x, slots, deep)
    return view.project(view.final_norm(pooled))


def splice(x: Tensor, ctx_index: Tensor, vectors: Vectors | None) -> Tensor:
    """Put vectors where `ctx_index` names them.

    Args:
        x: [C, L, D].
        ctx_index: [C, L]; m for the m-th vector, -1 to keep x; an index beyond the M vectors keeps x.
        vectors: `"shared"` [M, D] or `"class"` [C, M, D].
    Returns:
        [C, L, D].
    """
    if vectors is None or vectors.n_vectors == 0:
        return x
    index = ctx_index.clamp(0, vectors.n_vectors - 1)
    values = vectors.values.to(x.dtype)
    if vectors.scope == "shared":
        spliced = values[index]  # [C, L, D]
    else:
        rows = torch.arange(x.shape[0], device=x.device)[:, None]
        spliced = values[rows, index]
    here = (ctx_index >= 0) & (ctx_index < vectors.n_vectors)
    return torch.where(here[..., None], spliced, x)


def common_length(slots: TextSlots, shared: bool) -> int:
    """How many leading slots are the same for every class; at least one slot of each class is left out.

    Args:
        slots: the slots of C classes.
        shared: whether the vectors are shared over classes; if not, a context slot ends the common part.
    """
    same = (slots.token_ids == slots.token_ids[:1]) & (slots.ctx_index == slots.ctx_index[:1])
    if not shared:
        same &= slots.ctx_index < 0
    leading = int(same.all(0).int().cumprod(0).sum())
    return min(leading, int(slots.lengths.min()) - 1)


@dataclass(frozen=True)
class Packing:
    """Which slots are computed: S common ones once, and N packed ones, T per class at most.

    Args:
        n_common: S.
        rows, columns: [N]; class and place after the common part of each packed slot, in order of classes.
        ends: [C]; where in the N packed slots each class has its end token.
        ctx_common: [1, S] and ctx_packed: [N, 1]; the context index of each.
        width: T, the most slots of a class after the common part.
    """

    n_common: int
    rows: Tensor
    columns: Tensor
    ends: Tensor
    ctx_common: Tensor
    ctx_packed: Tensor
    width: int

    def pad(self, packed: Tensor, n_classes: int) -> Tensor:
        """Packed [N, D] to one row per class [C, T, D], zeros where a class is shorter."""
        padded = packed.new_zeros(n_classes, self.width, packed.shape[-1])
        return padded.index_put((self.rows, self.columns), packed)


def pack(slots: TextSlots, n_common: int) -> Packing:
    """Lay out the slots that have to be computed."""
    own = slots.lengths - n_common  # [C]
    width = int(own.max())
    real = torch.arange(width, device=own.device)[None] < own[:, None]  # [C, T]
    rows, columns = real.nonzero(as_tuple=True)
    ctx_index = slots.ctx_index[rows, columns + n_common]
    return Packing(
        n_common, rows, columns, own.cumsum(0) - 1, slots.ctx_index[:1, :n_common], ctx_index[:, None], width
    )


def run_packed(view: TextView, x: Tensor, packing: Packing, deep: Mapping[int, Vectors]) -> Tensor:
    """The blocks of a causal tower over the common slots and the packed ones.

    Args:
        view: the tower.
        x: [C, L, D], all slots with positions.
        packing: which of them are computed.
        deep: vectors by the block at whose input they replace context slots.
    Returns:
        [C, D], the end token after the last block.
    """
    n_classes = x.shape[0]
    common = x[:1, : packing.n_common]  # [1, S, D]
    own = x[packing.rows, packing.columns + packing.n_common]  # [N, D]
    later = torch.ones(packing.width, packing.width, dtype=torch.bool, device=x.device).triu(1)
    last = len(view.blocks) - 1
    for layer, block in enumerate(view.blocks):
        if layer in deep:
            common = splice(common, packing.ctx_common, deep[layer])
            own = splice_packed(own, packing, deep[layer])
        kept = packing.ends if layer == last else None
        common, own = packed_block(block, common, own, packing, later, n_classes, kept)
    return own


def splice_packed(own: Tensor, packing: Packing, vectors: Vectors) -> Tensor:
    """`splice` for packed slots [N, D], each with its class's vectors."""
    if vectors.scope == "class":
        vectors = Vectors(vectors.values[packing.rows], "class")  # [N, M, D]
    return splice(own[:, None], packing.ctx_packed, vectors)[:, 0]


def packed_block(
    block: BlockView,
    common: Tensor,
    own: Tensor,
    packing: Packing,
    later: Tensor,
    n_classes: int,
    kept: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One block; with `kept` [C], its outputs for those packed slots alone."""
    normed_common, normed_own = block.norm1(common), block.norm1(own)
    key, value = block.key_value(normed_own)
    if kept is None:
        common_query, common_key, common_value = block.in_proj(normed_common)
        query = packing.pad(block.query(normed_own), n_classes)
    else:
        common_key, common_value = block.key_value(normed_common)
        query = block.query(normed_own[kept])[:, None]  # [C, 1, D]
        later = own_places_after_end(packing, kept)
    heads = block.split_heads
    attended = attend(
        heads(query),
        (heads(packing.pad(key, n_classes)), heads(packing.pad(value, n_classes))),
        (heads(common_key)[0], heads(common_value)[0]),
        later,
    )
    joined = block.join_heads(attended)  # [C, T or 1, D]
    if kept is not None:
        return common, block.finish(own[kept], joined[:, 0])
    self_attended = F.scaled_dot_product_attention(
        heads(common_query), heads(common_key), heads(common_value), is_causal=True
    )
    common = block.finish(common, block.join_heads(self_attended))
    return common, block.finish(own, joined[packing.rows, packing.columns])


def own_places_after_end(packing: Packing, ends: Tensor) -> Tensor:
    """[C, 1, 1, T]: the padded places that the end token must not attend to."""
    places = torch.arange(packing.width, device=ends.device)
    return (places[None] > packing.columns[ends][:, None])[:, None, None]


def attend(query: Tensor, own: tuple[Tensor, Tensor], common: tuple[Tensor, Tensor], later: Tensor) -> Tensor:
    """Attention of each class's slots to the common slots and to its own earlier ones.

    The keys of the common slots are multiplied once for all classes and never copied per class.

    Args:
        query: [C, H, T, D/H].
        own: keys and values of each class's own slots, [C, H, T', D/H].
        common: keys and values of the common slots, [H, S, D/H].
        later: boolean, broadcast to [C, H, T, T']; true where attending is forbidden.
    Returns:
        [C, H, T, D/H].
    """
    query = query * query.shape[-1] ** -0.5
    own_scores = (query @ own[0].mT).masked_fill(later, float("-inf"))
    common_scores = torch.einsum("chtd,hsd->chts", query, common[0])
    scores = torch.cat([common_scores, own_scores], dim=-1)
    precise = torch.float32 if scores.dtype in (torch.float16, torch.bfloat16) else scores.dtype
    weights = scores.softmax(dim=-1, dtype=precise).to(scores.dtype)
    to_common, to_own = weights.split([common[0].shape[-2], own[0].shape[-2]], dim=-1)
    return torch.einsum("chts,hsd->chtd", to_common, common[1]) + to_own @ own[1]


def run_full(view: TextView, x: Tensor, slots: TextSlots, deep: Mapping[int, Vectors]) -> Tensor:
    """The blocks over every slot, the last one for the pooled slot alone where the tower sees all slots.

    Args:
        view: the tower.
        x: [C, L, D], all slots with positions.
        slots: which of them hold context vectors, and the lengths.
        deep: vectors by the block at whose input they replace context slots.
    Returns:
        [C, D], the pooled slot after the last block.
    """
    rows = torch.arange(x.shape[0], device=x.device)
    pooled = slots.lengths - 1 if view.pooling == "eos" else torch.full_like(rows, x.shape[1] - 1)
    *earlier, last = view.blocks
    for layer, block in enumerate(earlier):
        x = block.whole(splice(x, slots.ctx_index, deep.get(layer)), view.is_causal)
    x = splice(x, slots.ctx_index, deep.get(len(earlier)))
    if view.is_causal:
        return last.whole(x, is_causal=True)[rows, pooled]
    normed = last.norm1(x)
    key, value = (last.split_heads(part) for part in last.key_value(normed))
    query = last.split_heads(last.query(normed[rows, pooled][:, None]))  # [C, H, 1, D/H]
    attended = F.scaled_dot_product_attention(query, key, value)
    return last.finish(x[rows, pooled], last.join_heads(attended)[:, 0])
