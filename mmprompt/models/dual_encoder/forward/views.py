"""The parts of a frozen tower that a forward needs, by reference to the library's own modules.

No weight is copied. The forwards in this folder know only these views; which library built the blocks, and where their
weights came from, is known to the readers (`open_clip.py`, `transformers_clip.py`) alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from mmprompt.errors import UserError, bad_value
from mmprompt.models.sites import LowRank, Site, Tower

TensorMap = Callable[[Tensor], Tensor]
Pooling = Literal["eos", "last"]
QUICK = 1.702


def unchanged(x: Tensor) -> Tensor:
    """Return what is given."""
    return x


def quick_gelu(x: Tensor) -> Tensor:
    """Compute `x * sigmoid(1.702 x)`, as published CLIP weights expect, in one step that keeps less memory."""
    return F.silu(QUICK * x) / QUICK


@dataclass(frozen=True)
class BlockView:
    """One pre-norm transformer block: `x + scale1(attention(norm1(x)))`, then `x + scale2(mlp(norm2(x)))`.

    Every map works on the last axis, [..., D] to [..., D], so packed tokens need no batch axis.

    Args:
        norm1, norm2: before the attention and before the MLP.
        project: the queries, keys and values, all three in one product where the library stores them so.
        project_query, project_key_value: the same where only one side is needed.
        out_proj: after the heads are joined, with whatever norm or scale of heads the block has around it.
        mlp: the feed-forward part.
        n_heads: H; scores are scaled by 1/sqrt(D/H).
        scale1, scale2: layer scale, where the block has it.
        query_norm, key_norm: after the projection, per head, where the block does that.
        low_rank: learned terms beside the projections, before those norms.
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
        x = x + self.scale1(self.out_proj(attended))
        return x + self.scale2(self.mlp(self.norm2(x)))

    def whole(self, x: Tensor, is_causal: bool = False) -> Tensor:
        """Run the whole block over all slots [B, L, D], each slot attending to all, or to those up to itself."""
        query, key, value = (self.split_heads(part) for part in self.in_proj(self.norm1(x)))  # [B, H, L, D/H]
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
    """A text tower: tokens and positions, blocks, final norm, pooling at one slot, projection.

    Args:
        token_embedding: [V, D].
        position: [L, D], added after vectors are spliced in; L is the context length.
        blocks: views of all blocks, or all of them whole.
        final_norm: after the last block.
        project: the pooled slot [N, D] to raw features [N, E].
        is_causal: whether a slot sees only those before it. If not, padding is attended to and slots are full length.
        pooling: `"eos"` reads the end token's slot, `"last"` the last of all L slots.
        frame: the tokens around the words.
    """

    token_embedding: nn.Embedding
    position: Tensor
    blocks: tuple[BlockView | OpaqueBlock, ...]
    final_norm: TensorMap
    project: TensorMap
    is_causal: bool
    pooling: Pooling
    frame: Frame

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
    def reads_end_only(self) -> bool:
        """Whether nothing after the end token has an influence, so that slots may stop there."""
        return self.is_causal and self.pooling == "eos" and len(self.block_views) > 0


@dataclass(frozen=True)
class VisionView:
    """An image tower with image tokens: embedding, norm before the blocks, blocks, pooling.

    Args:
        embed: pixels [B, 3, H, W] to [B, T, D], the class token (if there is one) and the P patches with their
            positions, before `pre_norm`.
        pre_norm: the norm before the first block, else the identity.
        pool: the T slots after the last block, prompts taken off, [B, T, D] to raw features [B, E]: final norm,
            pooling and projection, in the tower's own order.
        width: D.
    """

    embed: TensorMap
    pre_norm: TensorMap
    blocks: tuple[BlockView, ...]
    pool: TensorMap
    width: int


Block = TypeVar("Block", bound=BlockView | OpaqueBlock)


def with_low_rank(
    tower: Tower, blocks: tuple[Block, ...], width: int, terms: Mapping[Site, LowRank]
) -> tuple[Block, ...]:
    """Put low-rank terms beside the projections of a tower's blocks of width D; refuse those that do not fit."""
    if not terms:
        return blocks
    for site, term in terms.items():
        rank = len(term.a)
        if (term.a.shape, term.b.shape) != ((rank, width), (width, rank)):
            raise UserError(
                f"the low-rank term of {site} is {list(term.a.shape)} and {list(term.b.shape)}, but this {tower} tower "
                f"takes [R, {width}] and [{width}, R]. Build the prompt for this backbone."
            )
    adapted = list(blocks)
    for layer in {site.layer for site in terms}:
        if layer >= len(blocks):
            site = next(site for site in terms if site.layer == layer)
            raise bad_value("site", site, f"this {tower} tower has {len(blocks)} layers", "Use fewer layers.")
        block = blocks[layer]
        if not isinstance(block, BlockView):
            raise UserError(
                f"low-rank terms were given, but the blocks of this {tower} tower have no projections that they can "
                "stand beside. Use a prompt, or a backbone with plain attention."
            )
        own = {site.part: term for site, term in terms.items() if site.layer == layer}
        adapted[layer] = replace(block, low_rank=own)
    return tuple(adapted)
