"""The parts of a frozen tower that a forward needs, by reference to the library's own modules.

No weight is copied. The forwards in this folder know only these views; which library built the blocks, and where their
weights came from, is known to the readers (`open_clip.py`, `transformers_clip.py`) alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprompt.errors import UserError, bad_value
from mmprompt.models.sites import (
    INSIDE_BLOCKS,
    NORMS,
    PROJECTIONS,
    SUBLAYERS,
    Bottleneck,
    Insert,
    LowRank,
    NormDelta,
    Site,
    Tower,
)

TensorMap = Callable[[Tensor], Tensor]
Pooling = Literal["eos", "last", "mean"]
QUICK = 1.702


def unchanged(x: Tensor) -> Tensor:
    """Return what is given."""
    return x


def quick_gelu(x: Tensor) -> Tensor:
    """Compute `x * sigmoid(1.702 x)`, as published CLIP weights expect, in one step that keeps less memory."""
    return F.silu(QUICK * x) / QUICK


@dataclass(frozen=True)
class BlockView:
    """One transformer block: `x + scale1(attention(norm1(x)))`, then `x + scale2(mlp(norm2(x)))`.

    A post-norm block is `norm1(x + scale1(attention(x)))`, then `norm2(x + scale2(mlp(x)))`, as in BERT.

    Every map works on the last axis, [..., D] to [..., D], so packed tokens need no batch axis.

    Args:
        norm1, norm2: before the attention and before the MLP; behind each sum in a post-norm block.
        project: the queries, keys and values, all three in one product where the library stores them so.
        project_query, project_key_value: the same where only one side is needed.
        out_proj: after the heads are joined, with whatever norm or scale of heads the block has around it.
        mlp: the feed-forward part.
        n_heads: H; scores are scaled by 1/sqrt(D/H).
        scale1, scale2: layer scale, where the block has it.
        query_norm, key_norm: after the projection, per head, where the block does that.
        low_rank: learned terms beside the projections, before those norms.
        adapters: learned networks behind the attention and the MLP, before what entered is added.
        is_post_norm: which of the two it is.
    """

    norm1: TensorMap
    norm2: TensorMap
    project: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    project_query: TensorMap
    project_key_value: Callable[[Tensor], tuple[Tensor, Tensor]]
    out_proj: TensorMap
    mlp: TensorMap
    n_heads: int
    scale1: TensorMap = unchanged
    scale2: TensorMap = unchanged
    query_norm: TensorMap = unchanged
    key_norm: TensorMap = unchanged
    low_rank: Mapping[str, LowRank] = field(default_factory=dict)
    adapters: Mapping[str, Bottleneck] = field(default_factory=dict)
    is_post_norm: bool = False

    def entering(self, x: Tensor) -> Tensor:
        """Return what the attention sees of the slots [..., D] that enter the block."""
        return x if self.is_post_norm else self.norm1(x)

    def in_proj(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values [..., D] of normed slots [..., D]."""
        query, key, value = self.project(x)
        return self._finish_query(x, query), *self._finish_key_value(x, key, value)

    def query(self, x: Tensor) -> Tensor:
        """Compute the queries alone."""
        return self._finish_query(x, self.project_query(x))

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute keys and values alone."""
        return self._finish_key_value(x, *self.project_key_value(x))

    def _finish_query(self, x: Tensor, query: Tensor) -> Tensor:
        return self.query_norm(self._with_term("query", x, query))

    def _finish_key_value(self, x: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return self.key_norm(self._with_term("key", x, key)), self._with_term("value", x, value)

    def _with_term(self, part: str, x: Tensor, projected: Tensor) -> Tensor:
        return projected + self.low_rank[part].term(x) if part in self.low_rank else projected

    def split_heads(self, x: Tensor) -> Tensor:
        """Heads before slots: [B, L, D] to [B, H, L, D/H]."""
        return x.unflatten(-1, (self.n_heads, -1)).transpose(-3, -2)

    def join_heads(self, x: Tensor) -> Tensor:
        """Slots before heads again: [B, H, L, D/H] to [B, L, D]."""
        return x.transpose(-3, -2).flatten(-2)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Compute the rest of the block from what entered it and the joined heads of the same slots, both [..., D]."""
        x = x + self._adapted("attention", self.scale1(self.out_proj(attended)))
        if self.is_post_norm:
            x = self.norm1(x)
            return self.norm2(x + self._adapted("mlp", self.scale2(self.mlp(x))))
        return x + self._adapted("mlp", self.scale2(self.mlp(self.norm2(x))))

    def _adapted(self, part: str, x: Tensor) -> Tensor:
        return x + self.adapters[part].term(x) if part in self.adapters else x

    def whole(self, x: Tensor, is_causal: bool = False) -> Tensor:
        """Run the whole block over all slots [B, L, D], each slot attending to all, or to those up to itself."""
        query, key, value = (self.split_heads(part) for part in self.in_proj(self.entering(x)))  # [B, H, L, D/H]
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
        return self.finish(x, self.join_heads(attended))


def per_head(norm: nn.Module | None, n_heads: int) -> TensorMap:
    """Return a norm of queries or keys over each head's part of the last axis; the identity where there is none."""
    if norm is None or isinstance(norm, nn.Identity):
        return nn.Identity()
    return lambda x: norm(x.unflatten(-1, (n_heads, -1))).flatten(-2)


@dataclass(frozen=True)
class OpaqueBlock:
    """A block whose inside is no `BlockView`: its library's own forward over all slots [B, L, D], the mask included."""

    forward: TensorMap

    def whole(self, x: Tensor, is_causal: bool = False) -> Tensor:
        """Run the block over all slots [B, L, D]; it brings its own mask."""
        return self.forward(x)


@dataclass(frozen=True)
class Frame:
    """The ids around the words of a text: an optional start, the end, then padding up to the last slot."""

    start_id: int | None
    end_id: int
    pad_id: int


@dataclass(frozen=True)
class TextView:
    """A text tower: tokens and positions, norm before the blocks, blocks, final norm, pooling, projection.

    Args:
        token_embedding: [V, D].
        read_position: gives [L, D], added after vectors are spliced in; L is the context length.
        blocks: views of all blocks, or all of them whole.
        final_norm: after the last block.
        project: the pooled slot [N, D] to raw features [N, E].
        is_causal: whether a slot sees only those before it. If not, padding is attended to and slots are full length,
            unless it is pooled by `"mean"`.
        pooling: `"eos"` reads the end token's slot, `"last"` the last of all L slots, `"mean"` the average of all
            slots up to the end token, in a tower whose slots do not see the padding.
        frame: the tokens around the words.
        pre_norm: the norm before the first block, else the identity.
    """

    token_embedding: nn.Embedding
    read_position: Callable[[], Tensor]
    blocks: tuple[BlockView | OpaqueBlock, ...]
    final_norm: TensorMap
    project: TensorMap
    is_causal: bool
    pooling: Pooling
    frame: Frame
    pre_norm: TensorMap = unchanged

    @property
    def position(self) -> Tensor:
        """The positions [L, D] as they are now."""
        return self.read_position()

    @property
    def context_length(self) -> int:
        """L, the number of text slots."""
        return self.position.shape[0]

    @property
    def width(self) -> int:
        """D."""
        return self.position.shape[1]

    @property
    def block_views(self) -> tuple[BlockView, ...]:
        """All blocks, or none if they are whole."""
        return tuple(block for block in self.blocks if isinstance(block, BlockView))

    @property
    def stops_at_end(self) -> bool:
        """Whether nothing after the end token has an influence, so that slots may stop there."""
        return self.pooling == "mean" or (self.is_causal and self.pooling == "eos" and len(self.block_views) > 0)


@dataclass(frozen=True)
class VisionView:
    """An image tower with image tokens: embedding, norm before the blocks, blocks, pooling.

    Args:
        embed: pixels [B, 3, H, W] to [B, T, D], the class token (if there is one) and the P patches with their
            positions, before `pre_norm`.
        pre_norm: the norm before the first block, else the identity.
        pool: the T slots after the last block, prompts taken off, [B, T, D] to raw features [B, E]: `final_norm`,
            which is given to it, pooling and projection, in the tower's own order.
        width: D.
        final_norm: after the last block, else the identity.
    """

    embed: TensorMap
    pre_norm: TensorMap
    blocks: tuple[BlockView, ...]
    pool: Callable[[TensorMap, Tensor], Tensor]
    width: int
    final_norm: TensorMap = unchanged


Block = TypeVar("Block", bound=BlockView | OpaqueBlock)


def adapted_blocks(
    tower: Tower, blocks: tuple[Block, ...], width: int, inserts: Mapping[Site, Insert]
) -> tuple[Block, ...]:
    """Put what is learned inside the blocks of a tower of width D into them; refuse what does not fit.

    Inserts of other sites are left alone.
    """
    own = [site for site in inserts if site.part in INSIDE_BLOCKS]
    adapted = list(blocks)
    for layer in {site.layer for site in own}:
        here = {site.part: inserts[site] for site in own if site.layer == layer}
        if layer >= len(blocks):
            site = Site(tower, layer, next(iter(here)))
            raise bad_value("site", site, f"this {tower} tower has {len(blocks)} layers", "Use fewer layers.")
        block = blocks[layer]
        if not isinstance(block, BlockView):
            raise UserError(
                f"something is learned inside the blocks, but those of this {tower} tower have no parts that are "
                "known. Use a prompt, or a backbone with plain attention."
            )
        low_rank: dict[str, LowRank] = {}
        adapters: dict[str, Bottleneck] = {}
        for part, term in here.items():
            if part in PROJECTIONS:
                rank = len(term.tensors[0])
                refuse_unfit(Site(tower, layer, part), term, LowRank, ([rank, width], [width, rank]))
                low_rank[part] = term  # type: ignore[assignment]
            elif part in SUBLAYERS:
                rank = len(term.tensors[0])
                refuse_unfit(
                    Site(tower, layer, part), term, Bottleneck, ([rank, width], [rank], [width, rank], [width])
                )
                adapters[part] = term  # type: ignore[assignment]
        norm1, norm2 = (
            moved_norm(norm, Site(tower, layer, part), here.get(part), width)
            for norm, part in zip((block.norm1, block.norm2), NORMS, strict=True)
        )
        adapted[layer] = replace(block, low_rank=low_rank, adapters=adapters, norm1=norm1, norm2=norm2)
    return tuple(adapted)


def refuse_unfit(site: Site, insert: Insert, kind: type, expected: tuple[list[int], ...]) -> None:
    """Refuse an insert that is of another kind, or whose tensors have other shapes, than its site takes."""
    shapes = [list(tensor.shape) for tensor in insert.tensors]
    if not isinstance(insert, kind) or shapes != list(expected):
        raise UserError(
            f"what is learned at {site} is a {type(insert).__name__} of {' and '.join(map(str, shapes))}, but this "
            f"{site.tower} tower takes a {kind.__name__} of {' and '.join(map(str, expected))}. Build the prompt for "
            "this backbone."
        )


def moved_norm(norm: TensorMap, site: Site, delta: Insert | None, width: int) -> TensorMap:
    """Return the layer norm of a site in a tower of width D with its weight and bias moved, if there is a move.

    Raises:
        UserError: it is no layer norm, or the move does not fit.
    """
    if delta is None:
        return norm
    if not isinstance(norm, nn.LayerNorm):
        raise bad_value("site", site, f"this {site.tower} tower has no layer norm there", "Leave it out.")
    refuse_unfit(site, delta, NormDelta, ([width], [width]))
    return partial(run_moved, norm, *delta.tensors)


def run_moved(norm: nn.LayerNorm, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """Apply a layer norm to whose weight and bias something is added, all [D].

    It is computed in the precision of what is added at least: half of it would lose small steps away from 1.
    """
    precise = torch.promote_types(x.dtype, weight.dtype)
    weight, bias = (
        added.to(precise) if frozen is None else frozen.to(precise) + added.to(precise)
        for frozen, added in ((norm.weight, weight), (norm.bias, bias))
    )
    return F.layer_norm(x.to(precise), norm.normalized_shape, weight, bias, norm.eps).to(x.dtype)


def norm_sites(tower: Tower, view: TextView | VisionView) -> list[Site]:
    """List the norms of a tower that can be moved, in the order in which they are computed."""
    norms: list[tuple[Site, object]] = [(Site(tower, part="pre_norm"), view.pre_norm)]
    for layer, block in enumerate(view.blocks):
        if isinstance(block, BlockView):
            own = zip(NORMS, (block.norm1, block.norm2), strict=True)
            norms += [(Site(tower, layer, part), norm) for part, norm in own]
    norms.append((Site(tower, part="final_norm"), view.final_norm))
    return [site for site, norm in norms if isinstance(norm, nn.LayerNorm)]
