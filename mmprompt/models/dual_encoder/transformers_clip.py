"""Reads transformers' CLIP and SigLIP models: weights by its own loader, towers into views.

SigLIP 2 checkpoints of fixed resolution are `SiglipModel`s too; those that take any resolution are another class, and
refused by its name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPModel, SiglipModel
from transformers.activations import QuickGELUActivation
from transformers.utils import logging as transformers_logging

from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.encoder import Frame, FrozenDualEncoder, WordTokenizer
from mmprompt.models.dual_encoder.forward.views import BlockView, TensorMap, TextView, VisionView, quick_gelu
from mmprompt.models.frozen import LoadOptions, PixelTransform, describe, freeze

MODELS = {"clip": CLIPModel, "siglip": SiglipModel}


def load_transformers(name: str, source: str, options: LoadOptions) -> FrozenDualEncoder:
    """Load a model, its tokenizer and its image processor from a folder or the hub."""
    hub = hub_options(options)
    config = AutoConfig.from_pretrained(source, **hub)
    if config.model_type not in MODELS:
        raise UserError(
            f"{source} is a {config.model_type!r} model, but 'clip' or 'siglip' was expected. "
            "Use a CLIPModel or a SiglipModel, such as hf:openai/clip-vit-base-patch16."
        )
    model = load_complete(MODELS[config.model_type], source, options)
    tokenizer = read_tokenizer(AutoTokenizer.from_pretrained(source, **hub))
    processor = AutoImageProcessor.from_pretrained(source, **hub)
    freeze(model, options)
    is_clip = isinstance(model, CLIPModel)
    return FrozenDualEncoder(
        name=name,
        model=model,
        text=read_clip_text(model, tokenizer) if is_clip else read_siglip_text(model, tokenizer),
        vision=read_clip_vision(model) if is_clip else read_siglip_vision(model),
        tokenizer=tokenizer,
        pixels=read_pixels(processor, config.vision_config.image_size),
        log_logit_scale=model.logit_scale,
        logit_bias=None if is_clip else model.logit_bias,
    )


def hub_options(options: LoadOptions) -> dict[str, Any]:
    """Return the keywords that transformers' loaders take from the user."""
    return {"cache_dir": options.cache_dir, "trust_remote_code": options.trust_remote_code}


def load_complete(
    model_class: Any,
    source: str,
    options: LoadOptions,
    unread: str | None = None,
    gguf_file: str | None = None,
    use_safetensors: bool | None = None,
) -> Any:
    """Load a model of one of transformers' classes in float32, and refuse one whose files lack some of its weights.

    Args:
        model_class: with a `from_pretrained`.
        source: a folder, or a name on the hub.
        options: cache folder, and whether remote code may run.
        unread: how the names of weights begin that nobody reads, so that files may lack them.
        gguf_file: the file of the folder that holds the weights, where they are in GGUF.
        use_safetensors: True takes no weights in any other format; None takes weights-only checkpoints too.
    """
    with no_progress_bar():
        model, report = model_class.from_pretrained(
            source,
            dtype=torch.float32,
            output_loading_info=True,
            gguf_file=gguf_file,
            use_safetensors=use_safetensors,
            **hub_options(options),
        )
    missing = [key for key in report["missing_keys"] if unread is None or not key.startswith(unread)]
    if missing:
        raise UserError(
            f"{source} lacks {len(missing)} weights of its model, {min(missing)!r} among "
            "them, but all were expected. Get the complete checkpoint."
        )
    return model


@contextlib.contextmanager
def no_progress_bar() -> Iterator[None]:
    """Hold back transformers' bar over weights that are read in a moment; the hub's own bars for downloads stay."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


def read_tokenizer(tokenizer: Any) -> WordTokenizer:
    """Reduce a transformers tokenizer to words."""

    def padded_ids(text: str, n_slots: int) -> list[int]:
        return tokenizer(text, padding="max_length", max_length=n_slots, truncation=True)["input_ids"]

    return WordTokenizer(padded_ids, tokenizer.decode, len(tokenizer))


def read_clip_text(model: CLIPModel, tokenizer: WordTokenizer) -> TextView:
    """Read CLIP's text tower: causal, pooled at the end token, which must be the tokenizer's."""
    frame = tokenizer.frame()
    end_id = model.config.text_config.eos_token_id
    # Configurations older than transformers 4.31 say 2 and mean the highest id.
    if frame.end_id != (tokenizer.size - 1 if end_id == 2 else end_id):
        raise UserError(
            f"the text tower reads its features at token {end_id}, but its tokenizer ends texts with {frame.end_id}. "
            "Use the tokenizer that the model was trained with."
        )
    return _read_text(model.text_model, frame, model.text_projection, is_causal=True)


def read_siglip_text(model: SiglipModel, tokenizer: WordTokenizer) -> TextView:
    """Read SigLIP's text tower: attends to all slots, padding too, and is pooled at the last one."""
    return _read_text(model.text_model, tokenizer.frame(), model.text_model.head, is_causal=False)


def _read_text(tower: Any, frame: Frame, projection: nn.Module, is_causal: bool) -> TextView:
    return TextView(
        token_embedding=tower.embeddings.token_embedding,
        position=tower.embeddings.position_embedding.weight,
        blocks=tuple(map(read_block, tower.encoder.layers)),
        final_norm=tower.final_layer_norm,
        project=projection,
        is_causal=is_causal,
        pooling="eos" if is_causal else "last",
        start_id=frame.start_id,
        end_id=frame.end_id,
        pad_id=frame.pad_id,
    )


def read_clip_vision(model: CLIPModel) -> VisionView:
    """Read CLIP's image tower: pooled at the class token."""
    tower = model.vision_model
    # The library writes the name of the first norm this way.
    return _read_vision(tower, tower.pre_layrnorm, lambda x: model.visual_projection(tower.post_layernorm(x[:, 0])))


def read_siglip_vision(model: SiglipModel) -> VisionView:
    """Read SigLIP's image tower: no class token, pooled by attention over the patches."""
    tower = model.vision_model
    if not tower.use_head:
        raise UserError(
            "the image tower has no SiglipMultiheadAttentionPoolingHead, but one was expected. "
            "Use a complete SigLIP checkpoint."
        )
    return _read_vision(tower, nn.Identity(), lambda x: tower.head(tower.post_layernorm(x)))


def _read_vision(tower: Any, pre_norm: nn.Module, pool: TensorMap) -> VisionView:
    width = tower.embeddings.position_embedding.embedding_dim
    return VisionView(tower.embeddings, pre_norm, tuple(map(read_block, tower.encoder.layers)), pool, width)


def read_block(layer: Any) -> BlockView:
    """Read one layer; its parts have the same names in CLIP and SigLIP."""
    attention = layer.self_attn
    return BlockView(
        norm1=layer.layer_norm1,
        norm2=layer.layer_norm2,
        project=lambda x: (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)),
        project_query=attention.q_proj,
        project_key_value=lambda x: (attention.k_proj(x), attention.v_proj(x)),
        out_proj=attention.out_proj,
        mlp=partial(run_mlp, layer.mlp),
        scale1=nn.Identity(),
        scale2=nn.Identity(),
        n_heads=attention.num_heads,
    )


def run_mlp(mlp: Any, x: Tensor) -> Tensor:
    """Run the feed-forward part, its quick GELU in one step."""
    activation = quick_gelu if isinstance(mlp.activation_fn, QuickGELUActivation) else mlp.activation_fn
    return mlp.fc2(activation(mlp.fc1(x)))


def read_pixels(processor: Any, size: int) -> PixelTransform:
    """Read the model's own test transform."""
    given = {name: value for name, value in dict(processor.size).items() if value is not None}
    steps = [f"resize {' '.join(f'{name} {value}' for name, value in given.items())}"]
    steps += [f"centre crop {size}"] if processor.do_center_crop else []
    steps.append(Image.Resampling(processor.resample).name.lower())
    mean, std = processor.image_mean, processor.image_std
    return PixelTransform(
        partial(apply_processor, processor), tuple(mean), tuple(std), size, describe(steps, mean, std)
    )


def apply_processor(processor: Any, image: Image.Image) -> Tensor:
    """Apply a transformers image processor to one image: [3, H, W]."""
    return processor(images=image, return_tensors="pt")["pixel_values"][0]
