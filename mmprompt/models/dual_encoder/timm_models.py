"""Reads timm's models: image towers alone, and the trunks that open_clip puts before its own head.

A plain vision transformer becomes a view. A trunk of another class, or one with a block that no view describes, is run
by its own forward, without prompts.
"""

from __future__ import annotations

import math
from typing import Any

import timm
import torch
from timm.data import create_transform, resolve_data_config
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder
from mmprompt.models.dual_encoder.forward.views import BlockView, TensorMap, VisionView, per_head
from mmprompt.models.dual_encoder.forward.vision import OpaqueTower
from mmprompt.models.frozen import LoadOptions, PixelTransform, describe, freeze


def load_timm(name: str, architecture: str, weights: str | None, options: LoadOptions) -> FrozenDualEncoder:
    """Load an image tower with timm's own functions, its classifier taken off.

    The architecture is a name of timm, `local-dir:FOLDER` or `hf-hub:OWNER/NAME`; `weights` are a checkpoint file, None
    where it brings its own.
    """
    model = create_complete(architecture, weights, options)
    model.reset_classifier(0)
    freeze(model, options)
    tower, pixels = read_timm_vit(model, nn.Identity()), read_pixels(model)
    blank = torch.zeros(1, 3, pixels.size, pixels.size, device=options.device, dtype=options.dtype)
    with torch.no_grad():
        shape = model(blank).shape
    if len(shape) != 2:
        raise UserError(
            f"{name} gives features of {list(shape)} of an image, but one vector was expected. Use a model "
            "that pools its features."
        )
    return FrozenDualEncoder(name=name, model=model, vision=tower, pixels=pixels, image_parts=("",), embed_dim=shape[1])


def create_complete(architecture: str, weights: str | None, options: LoadOptions) -> Any:
    """Create a model with all of its weights.

    Its classifier comes along: timm would let any weight be missing of a model that is asked for with another one.
    """
    if weights is None:
        return timm.create_model(architecture, pretrained=True, cache_dir=options.cache_dir)
    known = timm.get_pretrained_cfg(architecture, allow_unregistered=True)
    classifier = getattr(known, "classifier", None) or ""
    first = classifier if isinstance(classifier, str) else classifier[0]
    rows = timm.models.load_state_dict(weights, weights_only=True).get(f"{first}.weight", ())
    own = {"file": weights, "num_classes": len(rows), "hf_hub_id": None, "url": ""}
    return timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=own, num_classes=len(rows))


def read_pixels(model: nn.Module) -> PixelTransform:
    """Read the model's own test transform."""
    settings = resolve_data_config({}, model=model)
    _, height, width = settings["input_size"]
    if height != width:
        raise UserError(
            f"the image tower takes images of {height} x {width} pixels, but squares were expected. Use "
            "another backbone."
        )
    mean, std = settings["mean"], settings["std"]
    steps = [f"resize {math.floor(height / settings['crop_pct'])}", f"{settings['crop_mode']} crop {height}"]
    text = describe([*steps, settings["interpolation"]], mean, std)
    return PixelTransform(create_transform(**settings, is_training=False), tuple(mean), tuple(std), height, text)


def read_timm_vit(trunk: Any, head: nn.Module) -> VisionView | OpaqueTower:
    """Read a trunk without classifier, [B, 3, H, W] to [B, D], and the projection behind it, [B, D] to [B, E]."""
    is_vit = type(trunk) is VisionTransformer
    strange = [block for block in trunk.blocks if not is_known(block)] if is_vit else [trunk]
    if strange:
        parts = dict(head.named_children())  # of open_clip's head; with none the trunk projects, or nothing does
        is_pooled = not parts.keys().isdisjoint({"proj", "mlp"}) and "pool" not in parts
        raw_width = trunk.num_features if is_pooled else 0
        return OpaqueTower(nn.Sequential(trunk, head), type(strange[0]).__name__, trunk, head, raw_width)

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
