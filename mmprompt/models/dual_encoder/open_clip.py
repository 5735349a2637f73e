"""Reads open_clip models: weights by its own loader, towers into views, tokenizer and transform reduced.

A text tower is open_clip's own, or a BERT or RoBERTa of transformers inside it (`bert.py`).

Text blocks that no view describes are run by their own forward; a text tower that differs in more is refused with the
name of the part; an image tower that no view describes is run by its own forward, without prompts.
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
from open_clip.hf_model import HFTextEncoder
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
from mmprompt.models.dual_encoder.bert import SoftmaxProjection, read_bert
from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder, WordTokenizer
from mmprompt.models.dual_encoder.forward.views import (
    BlockView,
    Frame,
    OpaqueBlock,
    TensorMap,
    TextView,
    VisionView,
    per_head,
    quick_gelu,
)
from mmprompt.models.dual_encoder.forward.vision import OpaqueTower
from mmprompt.models.dual_encoder.timm_models import read_timm_vit
from mmprompt.models.frozen import LoadOptions, PixelTransform, describe, freeze

WEIGHTS = "open_clip_model.safetensors"


def load_open_clip(name: str, architecture: str, weights: str | None, options: LoadOptions) -> FrozenDualEncoder:
    """Load a model with open_clip's own functions: an architecture, `local-dir:FOLDER` or `hf-hub:OWNER/NAME`.

    `weights` are a pretrained tag or a checkpoint file, None where the architecture brings its own.
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
        image_parts=("visual.",),
        log_logit_scale=model.logit_scale,
        logit_bias=model.logit_bias,
    )


def create_frozen(architecture: str, weights: str | None, options: LoadOptions) -> tuple[Any, Callable]:
    """Load a frozen model of open_clip and its test transform; the arguments are those of `load_open_clip`."""
    folder = Path(architecture.removeprefix("local-dir:"))
    text = open_clip.get_model_config(architecture)["text_cfg"] if architecture.startswith("local-dir:") else {}
    if (text.get("hf_model_name") or "").startswith("./"):
        model, preprocess = _create_with_bert(architecture, folder, text)
    else:
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


def _create_with_bert(architecture: str, folder: Path, text: dict[str, Any]) -> tuple[Any, Callable]:
    """Load a model folder in which the text tower's configuration lies too, named `./...`: open_clip looks elsewhere.

    The projection is a `SoftmaxProjection` of so many values if the settings say `softmax:4000`.
    """
    place = {"hf_model_name": str(folder / text["hf_model_name"]), "hf_model_pretrained": False}
    model, _, preprocess = open_clip.create_model_and_transforms(
        architecture, load_weights=False, pretrained_text=False, text_cfg=text | place
    )
    kind, _, n_values = (text.get("hf_proj_type") or "").partition(":")
    if kind == "softmax":
        model.text.proj = SoftmaxProjection(model.text.config.hidden_size, int(n_values), model.text.output_dim)
    open_clip.load_checkpoint(model, str(folder / WEIGHTS), strict=True, weights_only=True)
    return model, preprocess


def unknown_part(part: object, expected: str) -> UserError:
    """Word the refusal of a part that no view describes."""
    return UserError(
        f"the model has a {type(part).__name__}, but {expected} was expected. "
        "Use a CLIP or SigLIP model with an ordinary text tower, such as open_clip:ViT-B-16/openai."
    )


def read_tokenizer(architecture: str, options: LoadOptions) -> WordTokenizer:
    """Read the tokenizer that open_clip gives an architecture; its frame must depend on the text alone."""
    # A model folder can ask for remote code in its own settings; only the user may.
    uses_transformers = "hf_tokenizer_name" in _text_settings(architecture, options)
    remote_code = {"trust_remote_code": options.trust_remote_code} if uses_transformers else {}
    tokenizer = open_clip.get_tokenizer(architecture, cache_dir=options.cache_dir, **remote_code)
    if isinstance(tokenizer, HFTokenizer):
        decode, size = tokenizer.tokenizer.decode, len(tokenizer.tokenizer)
    elif isinstance(tokenizer, SimpleTokenizer) and tokenizer.reduction_fn is None:
        decode, size = tokenizer.decode, tokenizer.vocab_size
    else:
        raise unknown_part(tokenizer, "a SimpleTokenizer or HFTokenizer that keeps every word")
    return WordTokenizer(lambda text, n_slots: tokenizer(text, context_length=n_slots)[0].tolist(), decode, size)


def _text_settings(architecture: str, options: LoadOptions) -> dict[str, Any]:
    """Read the settings of an architecture's text tower, from wherever open_clip has them."""
    if architecture.startswith("hf-hub:"):
        repository = architecture.removeprefix("hf-hub:")
        # open_clip's own reader of hub settings looks past the cache folder it was given elsewhere.
        path = download_pretrained_from_hf(repository, filename="open_clip_config.json", cache_dir=options.cache_dir)
        return json.loads(Path(path).read_text("utf-8"))["model_cfg"]["text_cfg"]
    return open_clip.get_model_config(architecture)["text_cfg"]


def read_text(model: nn.Module, tokenizer: WordTokenizer) -> TextView:
    """Read the text tower of a `CLIP`, in which it lies flat, or a `CustomTextCLIP`; `tokenizer` is the model's own."""
    if isinstance(model, open_clip.CLIP):
        tower: Any = model
        pool_type, end_id = model.text_pool_type, model.text_eos_id
    elif isinstance(model, open_clip.CustomTextCLIP):
        tower = model.text
        if isinstance(tower, HFTextEncoder):
            return read_bert(tower, tokenizer.frame())
        if not isinstance(tower, TextTransformer) or tower.cls_emb is not None or tower.use_pad_mask:
            raise unknown_part(tower, "a TextTransformer without class token and padding mask, or a BERT")
        pool_type, end_id = tower.pool_type, tower.eos_id
    else:
        raise unknown_part(model, "a CLIP or CustomTextCLIP")
    frame, blocks = tokenizer.frame(), tower.transformer.resblocks
    _check_pooling(pool_type, end_id, frame, tokenizer.size)
    # All are opaque, with the tower's own mask, if one is of another kind.
    read = read_block if all(map(is_known, blocks)) else lambda block: OpaqueBlock(partial(_run_masked, tower, block))
    return TextView(
        token_embedding=tower.token_embedding,
        read_position=lambda: tower.positional_embedding,
        blocks=tuple(map(read, blocks)),
        final_norm=tower.ln_final,
        project=read_projection(tower),
        is_causal=tower.attn_mask is not None,
        pooling="last" if pool_type == "last" else "eos",
        frame=frame,
    )


def _check_pooling(pool_type: str, eos_id: int, frame: Frame, vocabulary_size: int) -> None:
    """Refuse a text tower that would not read its features at the slot that the view says."""
    if pool_type == "last" or (pool_type == "eos" and eos_id == frame.end_id):
        return
    if pool_type == "argmax" and frame.end_id == vocabulary_size - 1:
        return
    raise UserError(
        f"the text tower reads its features by {pool_type!r} (end token {eos_id}), but its tokenizer ends texts with "
        f"token {frame.end_id} of {vocabulary_size}. Use the tokenizer that the model was trained with."
    )


def read_projection(tower: Any) -> Callable[[Tensor], Tensor]:
    """Read a text tower's last map, which open_clip stores in three forms."""
    if isinstance(tower.text_projection, nn.Linear):
        return tower.text_projection
    if tower.text_projection is None:
        return nn.Identity()
    return lambda pooled: pooled @ tower.text_projection


def read_vision(visual: nn.Module) -> VisionView | OpaqueTower:
    """Read the image tower; it is opaque where it has no image tokens that a view describes."""
    if isinstance(visual, TimmModel):
        return read_timm_vit(visual.trunk, visual.head)
    if not isinstance(visual, VisionTransformer):
        return OpaqueTower(visual, type(visual).__name__)
    strange = [block for block in visual.transformer.resblocks if not is_known(block)]
    strange += [visual.attn_pool] if visual.attn_pool is not None else []
    if strange:
        return OpaqueTower(partial(_pooled_only, visual), type(strange[0]).__name__)
    if visual.pool_type not in ("tok", "avg"):
        raise unknown_part(visual, "an image tower that pools its tokens")
    return VisionView(
        embed=partial(_embed_patches, visual),
        pre_norm=visual.ln_pre,
        blocks=tuple(read_block(block) for block in visual.transformer.resblocks),
        pool=partial(_pool_slots, visual),
        width=visual.positional_embedding.shape[-1],
        final_norm=visual.ln_post,
    )


def _pooled_only(visual: VisionTransformer, images: Tensor) -> Tensor:
    """Return the features of a tower that may return its tokens too."""
    output = visual(images)
    return output[0] if isinstance(output, tuple) else output


def _embed_patches(visual: VisionTransformer, images: Tensor) -> Tensor:
    """Embed class token and patches with their positions: [B, 3, H, W] to [B, 1 + P, D]."""
    patches = visual.conv1(images).flatten(2).mT  # [B, P, D]
    class_token = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
    return torch.cat([class_token, patches], dim=1) + visual.positional_embedding.to(patches.dtype)


def _pool_slots(visual: VisionTransformer, final_norm: TensorMap, x: Tensor) -> Tensor:
    """Apply the final norm, class token or patch average, and projection: [B, 1 + P, D] to [B, E]."""
    if not visual.final_ln_after_pool:
        x = final_norm(x)
    x = x[:, 1:].mean(dim=1) if visual.pool_type == "avg" else x[:, 0]
    if visual.final_ln_after_pool:
        x = final_norm(x)
    return x if visual.proj is None else x @ visual.proj


def _run_masked(tower: Any, block: nn.Module, x: Tensor) -> Tensor:
    """Run one block over all slots [N, L, D], as open_clip's own transformer calls it."""
    return block(x, attn_mask=tower.attn_mask)


def is_known(block: Any) -> bool:
    """Return whether `read_block` can describe a block; a subclass may do anything in its own forward."""
    if type(block) is CustomResidualAttentionBlock:
        return block.attn.logit_scale is None
    return type(block) is ResidualAttentionBlock and not hasattr(block, "ln_1_kv")


def read_block(block: Any) -> BlockView:
    """Read one known block; its weights are looked up at each call, so moving the model moves the view."""
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
        out_proj=attention.out_proj if type(block) is ResidualAttentionBlock else partial(_custom_output, block),
        mlp=partial(_run_mlp, block.mlp),
        scale1=block.ls_1,
        scale2=block.ls_2,
        n_heads=n_heads,
        query_norm=per_head(getattr(attention, "ln_q", None), n_heads),
        key_norm=per_head(getattr(attention, "ln_k", None), n_heads),
    )


def _custom_output(block: CustomResidualAttentionBlock, joined: Tensor) -> Tensor:
    """Apply what a custom block does to the joined heads [..., D]: scale per head, norm, projection, norm."""
    attention = block.attn
    if attention.head_scale is not None:
        joined = (joined.unflatten(-1, (attention.num_heads, -1)) * attention.head_scale[..., 0]).flatten(-2)
    return block.ln_attn(attention.out_proj(attention.ln_inner(joined)))


def _run_mlp(mlp: nn.Sequential, x: Tensor) -> Tensor:
    """Run the feed-forward part, its quick GELU in one step."""
    for part in mlp:
        x = quick_gelu(x) if isinstance(part, QuickGELU) else part(x)
    return x


RESIZES = {
    "shortest": "shorter side to {}, centre crop",
    "longest": "longer side to {}, padded",
    "squash": "squashed to {}",
}


def read_pixels(model: nn.Module, preprocess: Callable) -> PixelTransform:
    """Read the model's own test transform."""
    settings = open_clip.get_model_preprocess_cfg(model)
    size = settings["size"]
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) > 1:
        raise UserError(
            f"the image tower takes images of {size} pixels, but squares were expected. Use another backbone."
        )
    side = sides.pop()
    resize = RESIZES[settings["resize_mode"]].format(side)
    text = describe([resize, settings["interpolation"]], settings["mean"], settings["std"])
    return PixelTransform(preprocess, tuple(settings["mean"]), tuple(settings["std"]), side, text)
