"""Reads transformers' VisionEncoderDecoder captioners: any image encoder, and GPT-2 with cross-attention.

The class ignores `inputs_embeds` in `generate`, so the decoder is run by its parts.
"""

from __future__ import annotations

from transformers import VisionEncoderDecoderModel

from mmprompt.captioning.readers.captioner import FrozenCaptioner
from mmprompt.captioning.readers.cross_attention import CrossDecoder, CrossParts
from mmprompt.captioning.readers.pretrained import (
    caption_tokenizer,
    first_id,
    load_frozen,
    load_pixels,
    load_tokenizer,
)
from mmprompt.errors import UserError
from mmprompt.models.frozen import LoadOptions

POOLER = "encoder.pooler."


def load_encoder_decoder(name: str, source: str, options: LoadOptions) -> FrozenCaptioner:
    """Load a `VisionEncoderDecoderModel`; a prompt stands after the decoder's start token.

    Args:
        name: what the captioner calls itself.
        source: a folder, or a name on the hub.
        options: device, dtype, cache folder, and whether remote code may run.
    Raises:
        UserError: the decoder is no GPT-2, it has no start or end token, or the files lack some of the weights.
    """
    model = load_frozen(VisionEncoderDecoderModel, source, options, unread=POOLER)
    if hasattr(model.encoder, "pooler"):
        model.encoder.pooler = None  # captions read no pooled feature, and many checkpoints lack its weights
    decoder = read_decoder(name, model)
    size = model.config.encoder.image_size
    return FrozenCaptioner(
        name=name,
        model=model,
        encode=lambda images: model.encoder(pixel_values=images).last_hidden_state,
        decoder=decoder,
        tokenizer=caption_tokenizer(load_tokenizer(source, options)),
        pixels=load_pixels(source, size if isinstance(size, int) else size[0], options),
    )


def read_decoder(name: str, model: VisionEncoderDecoderModel) -> CrossDecoder:
    """The GPT-2 of the model.

    Raises:
        UserError: the decoder is another, or names no start or end token.
    """
    config = model.config.decoder
    if config.model_type != "gpt2":
        raise UserError(
            f"the decoder of {name} is a {config.model_type!r} model, but 'gpt2' was expected. "
            "Use a model such as hf:nlpconnect/vit-gpt2-image-captioning."
        )
    is_projected = model.encoder.config.hidden_size != config.hidden_size
    is_projected = is_projected and getattr(config, "cross_attention_hidden_size", None) is None
    parts = CrossParts(
        body=model.decoder.transformer,
        embedding=model.decoder.get_input_embeddings(),
        head=model.decoder.lm_head,
        project=model.enc_to_dec_proj if is_projected else lambda features: features,
        n_positions=config.n_positions,
        kv_shape=(config.n_layer, config.n_head, config.n_embd // config.n_head),
    )
    generation = model.generation_config
    starts = [getattr(place, "decoder_start_token_id", None) for place in (generation, model.config)]
    start_id = first_id(name, "start", *starts)
    return CrossDecoder(parts, start_id, first_id(name, "end", generation.eos_token_id, config.eos_token_id))
