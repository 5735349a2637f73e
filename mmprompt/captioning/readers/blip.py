"""Reads transformers' BLIP captioner: an image tower, and a decoder that reads it by cross-attention.

Its own forward and `generate` take no vectors among the tokens, so the decoder is run by its parts.
"""

from __future__ import annotations

from transformers import BlipForConditionalGeneration

from mmprompt.captioning.readers.captioner import FrozenCaptioner
from mmprompt.captioning.readers.cross_attention import CrossDecoder, CrossParts
from mmprompt.captioning.readers.pretrained import caption_tokenizer, load_frozen, load_pixels, load_tokenizer
from mmprompt.models.frozen import LoadOptions


def load_blip(name: str, source: str, options: LoadOptions) -> FrozenCaptioner:
    """Load a `BlipForConditionalGeneration`; a prompt stands after its start token [DEC].

    Args:
        name: what the captioner calls itself.
        source: a folder, or a name on the hub.
        options: device, dtype, cache folder, and whether remote code may run.
    Raises:
        UserError: the files lack some of the weights.
    """
    model = load_frozen(BlipForConditionalGeneration, source, options)
    return FrozenCaptioner(
        name=name,
        model=model,
        encode=lambda images: model.vision_model(pixel_values=images).last_hidden_state,
        decoder=read_decoder(model),
        tokenizer=caption_tokenizer(load_tokenizer(source, options)),
        pixels=load_pixels(source, model.config.vision_config.image_size, options),
    )


def read_decoder(model: BlipForConditionalGeneration) -> CrossDecoder:
    """The text decoder; its start is BLIP's `bos`, its end BERT's `sep`, as in the library's `generate`."""
    text, config = model.text_decoder, model.config.text_config
    parts = CrossParts(
        body=text.bert,
        embedding=text.get_input_embeddings(),
        head=text.cls,
        project=lambda features: features,
        n_positions=config.max_position_embeddings,
        kv_shape=(
            config.num_hidden_layers,
            config.num_attention_heads,
            config.hidden_size // config.num_attention_heads,
        ),
        options={"is_decoder": True},
    )
    return CrossDecoder(parts, config.bos_token_id, config.sep_token_id)
