"""Reads open_clip models: weights by its own loader, towers into views, tokenizer and transform reduced.

It knows open_clip's classes and nothing of prompts. Text blocks that it does not know are run whole, by their
own forward; a text tower that differs in more is refused with the name of the part; an image tower that it
does not know is run by its own forward, without prompts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.transformer import (
    CustomResidualAttentionBlock,
    QuickGELU,
    ResidualAttentionBlock,
    TextTransformer,
    VisionTransformer,
)
from torch import Tensor, nn

from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.encoder import Frame, FrozenDualEncoder, WordTokenizer
from mmprompt.models.dual_encoder.forward.activations import quick_gelu
from mmprompt.models.dual_encoder.forward.views import BlockView, TextView, VisionView, WholeBlock, per_head
from mmprompt.models.dual_encoder.forward.vision import PlainTower
from mmprompt.models.dual_encoder.timm_vit import read_timm_vit
from mmprompt.models.frozen import LoadOptions, PixelTransform, describe, freeze


def load_open_clip(name: str, architecture: str, weights: str | None, options: LoadOptions) -> FrozenDualEncoder:
    """Load a model with open_clip's own functions.

    Args:
        name: what the backbone calls itself.
        architecture: a name of open_clip, or `local-dir:FOLDER`, or `hf-hub:OWNER/NAME`.
        weights: a pretrained tag or a checkpoint file; None where the architecture brings its own.
        options: device, dtype, cache folder, and whether remote code may run.
    Raises:
        UserError: the model has a part that no view describes.
    """
    model, preprocess = create_frozen(architecture, weights, options)
    tokenizer = read_tokenizer(architecture, options)
    return FrozenDualEncoder(
        name=name,
        model=model,
        text=read_text(model, tokenizer),
        vision=read_vision(model.visual),
        tokenizer=tokenizer,
        pixels=read_pixels(model, preprocess),
        log_logit_scale=model.logit_scale,
        logit_bias=model.logit_bias,
    )


def create_frozen(architecture: str, weights: str | None, options: LoadOptions) -> tuple[Any, Callable]:
    """A frozen model of open_clip and its test transform; the arguments are those of `load_open_clip`."""
    tag = open_clip.get_pretrained_cfg(architecture, weights) if weights else {}
    model, preprocess = open_clip.create_model_from_pretrained(
        architecture,
        weights,
        # Weights trained with QuickGELU are silently wrong with the GELU that most architecture names mean.
        force_quick_gelu=bool(tag.get("quick_gelu")),
        cache_dir=options.cache_dir,
        weights_only=True,
    )
    freeze(model, options)
    return model, preprocess


def unknown_part(part: object, expected: str) -> UserError:
    """Word the refusal of a part that no view describes."""
    return UserError(
        f"the model has a {type(part).__name__}, but {expected} was expected. "
        "Use a CLIP or SigLIP model with an ordinary text tower, such as open_clip:ViT-B-16/openai."
    )


def read_tokenizer(architecture: str, options: LoadOptions) -> WordTokenizer:
    """The tokenizer that open_clip gives an architecture.

    Raises:
        UserError: it is of a kind whose frame depends on more than the text.
    """
    # A model folder can ask for remote code in its own settings; only the user may.
    uses_transformers = "hf_tokenizer_name" in text_settings(architecture, options)
    remote_code = {"trust_remote_code": options.trust_remote_code} if uses_transformers else {}
    tokenizer = open_clip.get_tokenizer(architecture, cache_dir=options.cache_dir, **remote_code)
    if isinstance(tokenizer, HFTokenizer):
        decode, size = tokenizer.tokenizer.decode, len(tokenizer.tokenizer)
    elif isinstance(tokenizer, SimpleTokenizer) and tokenizer.reduction_fn is None:
        decode, size = tokenizer.decode, tokenizer.vocab_size
    else:
        raise unknown_part(tokenizer, "a SimpleTokenizer or HFTokenizer that keeps every word")
    return WordTokenizer(lambda text, n_slots: tokenizer(text, context_length=n_slots)[0].tolist(), decode, size)


def text_settings(architecture: str, options: LoadOptions) -> dict[str, Any]:
    """The settings of an architecture's text tower, from wherever open_clip has them."""
    if architecture.startswith("hf-hub:"):
        repository = architecture.removeprefix("hf-hub:")
        # open_clip's own reader of hub settings looks past the cache folder it was given elsewhere.
        path = download_pretrained_from_hf(repository, filename="open_clip_config.json", cache_dir=options.cache_dir)
        return json.loads(Path(path).read_text("utf-8"))["model_cfg"]["text_cfg"]
    return open_clip.get_model_config(architecture)["text_cfg"]


def read_text(model: nn.Module, tokenizer: WordTokenizer) -> TextView:
    """The text tower as a view.

    Args:
        model: an open_clip `CLIP` (whose text tower lies flat in the model) or `CustomTextCLIP`.
        tokenizer: the one that the model was trained with.
    Raises:
        UserError: the tower has a part that the view cannot describe.
    """
    if isinstance(model, open_clip.CLIP):
        tower: Any = model
        pool_type, end_id = model.text_pool_type, model.text_eos_id
    elif isinstance(model, open_clip.CustomTextCLIP):
        tower = model.text
        if not isinstance(tower, TextTransformer) or tower.cls_emb is not None or tower.use_pad_mask:
            raise unknown_part(tower, "a TextTransformer without class token and padding mask")
        pool_type, end_id = tower.pool_type, tower.eos_id
    else:
        raise unknown_part(model, "a CLIP or CustomTextCLIP")
    frame = tokenizer.frame()
    check_pooling(pool_type, end_id, frame, tokenizer.size)
    return TextView(
        token_embedding=tower.token_embedding,
        position=tower.positional_embedding,
        blocks=read_text_blocks(tower),
        final_norm=tower.ln_final,
        project=read_projection(tower.text_projection),
        is_causal=tower.attn_mask is not None,
        pooling="last" if pool_type == "last" else "eos",
        start_id=frame.start_id,
        end_id=frame.end_id,
        pad_id=frame.pad_id,
    )


def check_pooling(pool_type: str, eos_id: int, frame: Frame, vocabulary_size: int) -> None:
    """Refuse a text tower that would not read its features at the slot that the view says.

    Raises:
        UserError: the pooling is of another kind, or means another token than the tokenizer's end token.
    """
    if pool_type == "last" or (pool_type == "eos" and eos_id == frame.end_id):
        return
    if pool_type == "argmax" and frame.end_id == vocabulary_size - 1:
        return
    raise UserError(
        f"the text tower reads its features by {pool_type!r} (end token {eos_id}), but its tokenizer ends texts with "
        f"token {frame.end_id} of {vocabulary_size}. Use the tokenizer that the model was trained with."
    )


def read_projection(projection: nn.Linear | nn.Parameter | None) -> Callable[[Tensor], Tensor]:
    """A tower's last map, which open_clip stores in three forms."""
    if isinstance(projection, nn.Linear):
        return projection
    if projection is None:
        return nn.Identity()
    return lambda pooled: pooled @ projection


def read_vision(visual: nn.Module) -> VisionView | PlainTower:
    """The image tower as a view, or by its own forward where it has no image tokens that a view describes."""
    if isinstance(visual, TimmModel):
        return read_timm_vit(visual.trunk, visual.head)
    if not isinstance(visual, VisionTransformer):
        return PlainTower(visual, type(visual).__name__)
    strange = [block for block in visual.transformer.resblocks if not is_known(block)]
    strange += [visual.attn_pool] if visual.attn_pool is not None else []
    if strange:
        return PlainTower(partial(pooled_only, visual), type(strange[0]).__name__)
    if visual.pool_type not in ("tok", "avg"):
        raise unknown_part(visual, "an image tower that pools its tokens")
    return VisionView(
        embed=partial(embed_patches, visual),
        pre_norm=visual.ln_pre,
        blocks=tuple(read_block(block) for block in visual.transformer.resblocks),
        pool=partial(pool_slots, visual),
        width=visual.positional_embedding.shape[-1],
    )


def pooled_only(visual: VisionTransformer, images: Tensor) -> Tensor:
    """The features of a tower that may return its tokens too."""
    output = visual(images)
    return output[0] if isinstance(output, tuple) else output


def embed_patches(visual: VisionTransformer, images: Tensor) -> Tensor:
    """Class token and patches with their positions: [B, 3, H, W] to [B, 1 + P, D]."""
    patches = visual.conv1(images).flatten(2).mT  # [B, P, D]
    class_token = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
    return torch.cat([class_token, patches], dim=1) + visual.positional_embedding.to(patches.dtype)


def pool_slots(visual: VisionTransformer, x: Tensor) -> Tensor:
    """Final norm, class token or patch average, projection: [B, 1 + P, D] to [B, E]."""
    if not visual.final_ln_after_pool:
        x = visual.ln_post(x)
    x = x[:, 1:].mean(dim=1) if visual.pool_type == "avg" else x[:, 0]
    if visual.final_ln_after_pool:
        x = visual.ln_post(x)
    return x if visual.proj is None else x @ visual.proj


def read_text_blocks(tower: Any) -> tuple[BlockView | WholeBlock, ...]:
    """The blocks of a text tower as views; all of them whole, with the tower's own mask, if one is of another kind."""
    blocks = tower.transformer.resblocks
    if all(is_known(block) for block in blocks):
        return tuple(read_block(block) for block in blocks)
    return tuple(WholeBlock(partial(run_masked, tower, block)) for block in blocks)


def run_masked(tower: Any, block: nn.Module, x: Tensor) -> Tensor:
    """One block over all slots [N, L, D], as open_clip's own transformer calls it."""
    return block(x, attn_mask=tower.attn_mask)


def is_known(block: Any) -> bool:
    """Whether `read_block` can describe a block; a subclass may do anything in its own forward."""
    if type(block) is CustomResidualAttentionBlock:
        return block.attn.logit_scale is None
    return type(block) is ResidualAttentionBlock and not hasattr(block, "ln_1_kv")


def read_block(block: Any) -> BlockView:
    """One known block as a view; its weights are looked up at each call, so moving the model moves the view."""
    attention = block.attn
    width, n_heads = attention.out_proj.in_features, attention.num_heads

    def project(x: Tensor, rows: slice) -> Any:
        bias = attention.in_proj_bias
        return F.linear(x, attention.in_proj_weight[rows], None if bias is None else bias[rows])

    return BlockView(
        norm1=block.ln_1,
        norm2=block.ln_2,
        project=lambda x: project(x, slice(None)).chunk(3, dim=-1),
        project_query=lambda x: project(x, slice(width)),
        project_key_value=lambda x: project(x, slice(width, None)).chunk(2, dim=-1),
        out_proj=attention.out_proj if type(block) is ResidualAttentionBlock else partial(custom_output, block),
        mlp=partial(run_mlp, block.mlp),
        scale1=block.ls_1,
        scale2=block.ls_2,
        n_heads=n_heads,
        query_norm=per_head(getattr(attention, "ln_q", None), n_heads),
        key_norm=per_head(getattr(attention, "ln_k", None), n_heads),
    )


def custom_output(block: CustomResidualAttentionBlock, joined: Tensor) -> Tensor:
    """What a custom block does to the joined heads [..., D]: scale per head, norm, projection, norm."""
    attention = block.attn
    if attention.head_scale is not None:
        joined = (joined.unflatten(-1, (attention.num_heads, -1)) * attention.head_scale[..., 0]).flatten(-2)
    return block.ln_attn(attention.out_proj(attention.ln_inner(joined)))


def run_mlp(mlp: nn.Sequential, x: Tensor) -> Tensor:
    """The feed-forward part, its quick GELU in one step."""
    for part in mlp:
        x = quick_gelu(x) if isinstance(part, QuickGELU) else part(x)
    return x


RESIZES = {
    "shortest": "shorter side to {}, centre crop",
    "longest": "longer side to {}, padded",
    "squash": "squashed to {}",
}


def read_pixels(model: nn.Module, preprocess: Callable) -> PixelTransform:
    """The model's own test transform."""
    settings = open_clip.get_model_preprocess_cfg(model)
    size = settings["size"]
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) > 1:
        raise UserError(
            f"the image tower takes pictures of {size} pixels, but squares were expected. Use another backbone."
        )
    side = sides.pop()
    resize = RESIZES[settings["resize_mode"]].format(side)
    text = describe([resize, settings["interpolation"]], settings["mean"], settings["std"])
    return PixelTransform(preprocess, tuple(settings["mean"]), tuple(settings["std"]), side, text)
