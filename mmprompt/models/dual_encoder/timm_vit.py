"""Reads timm's vision transformers, which open_clip puts behind its own head, into views.

A trunk of another class, or one with a block that no view describes, is run by its own forward, without prompts.
"""

from __future__ import annotations

from typing import Any

from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from mmprompt.models.dual_encoder.forward.views import BlockView, TensorMap, VisionView, per_head
from mmprompt.models.dual_encoder.forward.vision import OpaqueTower


def read_timm_vit(trunk: Any, head: nn.Module) -> VisionView | OpaqueTower:
    """Read a trunk without classifier, [B, 3, H, W] to [B, D], and the projection behind it, [B, D] to [B, E]."""
    is_vit = type(trunk) is VisionTransformer
    strange = [block for block in trunk.blocks if not is_known(block)] if is_vit else [trunk]
    if strange:
        return OpaqueTower(nn.Sequential(trunk, head), type(strange[0]).__name__, trunk, head, trunk.num_features)

    def embed(images: Tensor) -> Tensor:
        return trunk._pos_embed(trunk.patch_embed(images))  # timm has no public name for this step

    def pool(final_norm: TensorMap, x: Tensor) -> Tensor:
        return head(trunk.forward_head(final_norm(x)))

    blocks = tuple(read_block(block) for block in trunk.blocks)
    return VisionView(embed, trunk.norm_pre, blocks, pool, trunk.embed_dim, trunk.norm)


def is_known(block: Any) -> bool:
    """Return whether `read_block` can describe a block; a subclass may do anything in its own forward."""
    return type(block) is Block and type(block.attn) is Attention and getattr(block.attn, "gate", None) is None


def read_block(block: Any) -> BlockView:
    """Read one known block."""
    attention = block.attn

    def project(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return attention.qkv(x).chunk(3, dim=-1)

    return BlockView(
        norm1=block.norm1,
        norm2=block.norm2,
        project=project,
        project_query=lambda x: project(x)[0],
        project_key_value=lambda x: project(x)[1:],
        out_proj=lambda joined: attention.proj(attention.norm(joined)),
        mlp=block.mlp,
        scale1=block.ls1,
        scale2=block.ls2,
        n_heads=attention.num_heads,
        query_norm=per_head(attention.q_norm, attention.num_heads),
        key_norm=per_head(attention.k_norm, attention.num_heads),
    )
