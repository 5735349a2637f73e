"""Reads transformers' CLIP and SigLIP models: weights by its own loader, towers into views.

SigLIP 2 checkpoints of fixed resolution are `SiglipModel`s too; those that take any resolution are another class, and
refused by its name.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPModel, SiglipModel
from transformers.activations import QuickGELUActivation

from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder, WordTokenizer
from mmprompt.models.dual_encoder.forward.views import BlockView, TensorMap, TextView, VisionView, quick_gelu
from mmprompt.models.frozen import LoadOptions, PixelTransform, describe, freeze, hub_options, load_complete

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
    return FrozenDualEncoder(
        name=name,
        model=model,
        text=read_text(model, tokenizer),
        vision=read_vision(model),
        tokenizer=tokenizer,
        pixels=read_pixels(processor, config.vision_config.image_size),
        image_parts=("vision_model.", "visual_projection."),
        log_logit_scale=model.logit_scale,
        logit_bias=getattr(model, "logit_bias", None),
    )


def read_tokenizer(tokenizer: Any) -> WordTokenizer:
    """Reduce a transformers tokenizer to words."""

    def padded_ids(text: str, n_slots: int) -> list[int]:
        return tokenizer(text, padding="max_length", max_length=n_slots, truncation=True)["input_ids"]

    return WordTokenizer(padded_ids, tokenizer.decode, len(tokenizer))


def read_text(model: CLIPModel | SiglipModel, tokenizer: WordTokenizer) -> TextView:
    """Read the text tower: CLIP's is causal and pooled at the end token, SigLIP's sees its padding, pooled last."""
    tower: Any = model.text_model
    is_clip, frame = isinstance(model, CLIPModel), tokenizer.frame()
    end_id = model.config.text_config.eos_token_id
    # CLIP configurations older than transformers 4.31 say 2 and mean the highest id.
    if is_clip and frame.end_id != (tokenizer.size - 1 if end_id == 2 else end_id):
        raise UserError(
            f"the text tower reads its features at token {end_id}, but its tokenizer ends texts with {frame.end_id}. "
            "Use the tokenizer that the model was trained with."
        )
    return TextView(
        token_embedding=tower.embeddings.token_embedding,
        read_position=lambda: tower.embeddings.position_embedding.weight,
        blocks=tuple(map(read_block, tower.encoder.layers)),
        final_norm=tower.final_layer_norm,
        project=model.text_projection if is_clip else tower.head,
        is_causal=is_clip,
        pooling="eos" if is_clip else "last",
        frame=frame,
    )


def read_vision(model: CLIPModel | SiglipModel) -> VisionView:
    """Read the image tower: CLIP's is pooled at its class token, SigLIP's by attention over the patches."""
    tower: Any = model.vision_model
    if isinstance(model, SiglipModel) and not tower.use_head:
        raise UserError(
            "the image tower has no SiglipMultiheadAttentionPoolingHead, but one was expected. "
            "Use a complete SigLIP checkpoint."
        )

    def pool(final_norm: TensorMap, x: Tensor) -> Tensor:
        if isinstance(model, CLIPModel):
            return model.visual_projection(final_norm(x[:, 0]))
        return tower.head(final_norm(x))

    # The library writes the name of CLIP's first norm this way.
    pre_norm = tower.pre_layrnorm if isinstance(model, CLIPModel) else nn.Identity()
    width = tower.embeddings.position_embedding.embedding_dim
    blocks = tuple(map(read_block, tower.encoder.layers))
    return VisionView(tower.embeddings, pre_norm, blocks, pool, width, tower.post_layernorm)


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
        n_heads=attention.num_heads,
    )


def run_mlp(mlp: Any, x: Tensor) -> Tensor:
    """Run the feed-forward part, its quick GELU in one step."""
    activation = quick_gelu if isinstance(mlp.activation_fn, QuickGELUActivation) else mlp.activation_fn
    return mlp.fc2(activation(mlp.fc1(x)))


def read_pixels(processor: Any, size: int) -> PixelTransform:
    """Read the model's own test transform."""
    given = [f"{name} {value}" for name, value in dict(processor.size).items() if value is not None]
    steps = [f"resize {' '.join(given)}"]
    steps += [f"centre crop {size}"] if processor.do_center_crop else []
    steps.append(Image.Resampling(processor.resample).name.lower())
    mean, std = processor.image_mean, processor.image_std
    return PixelTransform(
        partial(apply_processor, processor), tuple(mean), tuple(std), size, describe(steps, mean, std)
    )


def apply_processor(processor: Any, image: Image.Image) -> Tensor:
    """Apply a transformers image processor to one image: [3, H, W]."""
    return processor(images=image, return_tensors="pt")["pixel_values"][0]
