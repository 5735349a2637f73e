"""Reads transformers' captioners whose decoder reads the image by cross-attention: BLIP and VisionEncoderDecoder.

Their own forwards and `generate` take no vectors among the tokens, so the decoder is run by its parts. The keys and
values of the image are computed once, when it is opened, by the decoder itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import BlipForConditionalGeneration, VisionEncoderDecoderModel

from mmprompt.captioning.readers.captioner import FrozenCaptioner
from mmprompt.captioning.readers.pretrained import build_captioner, first_id, load_frozen
from mmprompt.errors import UserError
from mmprompt.models.decoder.hf_cache import cache_argument, from_cache, to_crossed_cache
from mmprompt.models.decoder.kv_cache import KVCache
from mmprompt.models.frozen import LoadOptions

POOLER = "encoder.pooler."


def load_blip(name: str, source: str, options: LoadOptions) -> FrozenCaptioner:
    """Load a `BlipForConditionalGeneration`; a prompt stands after its start token [DEC].

    Its start is BLIP's `bos`, its end BERT's `sep`, as in the library's `generate`.
    """
    model = load_frozen(BlipForConditionalGeneration, source, options)
    text, config = model.text_decoder, model.config.text_config
    shape = (config.num_hidden_layers, config.num_attention_heads, config.hidden_size // config.num_attention_heads)
    ends = config.bos_token_id, config.sep_token_id
    decoder = CrossDecoder(text, text.bert, text.cls, config.max_position_embeddings, shape, ends, is_decoder=True)

    def encode(images: Tensor) -> Tensor:
        return model.vision_model(pixel_values=images).last_hidden_state

    return build_captioner(name, source, options, model, encode, decoder, model.config.vision_config.image_size)


def load_encoder_decoder(name: str, source: str, options: LoadOptions) -> FrozenCaptioner:
    """Load a `VisionEncoderDecoderModel` with GPT-2; a prompt stands after the decoder's start token."""
    model = load_frozen(VisionEncoderDecoderModel, source, options, unread=POOLER)
    if hasattr(model.encoder, "pooler"):
        model.encoder.pooler = None  # captions read no pooled feature, and many checkpoints lack its weights
    config, generation, size = model.config.decoder, model.generation_config, model.config.encoder.image_size
    if config.model_type != "gpt2":
        raise UserError(
            f"the decoder of {name} is a {config.model_type!r} model, but 'gpt2' was expected. "
            "Use a model such as hf:nlpconnect/vit-gpt2-image-captioning."
        )
    starts = [getattr(place, "decoder_start_token_id", None) for place in (generation, model.config)]
    start_id = first_id(name, "start", *starts)
    ends = start_id, first_id(name, "end", generation.eos_token_id, config.eos_token_id)
    shape = (config.n_layer, config.n_head, config.n_embd // config.n_head)
    decoder = CrossDecoder(
        model.decoder, model.decoder.transformer, model.decoder.lm_head, config.n_positions, shape, ends
    )
    is_projected = model.encoder.config.hidden_size != config.hidden_size
    if is_projected and getattr(config, "cross_attention_hidden_size", None) is None:
        decoder.project = model.enc_to_dec_proj

    def encode(images: Tensor) -> Tensor:
        return model.encoder(pixel_values=images).last_hidden_state

    return build_captioner(name, source, options, model, encode, decoder, size if isinstance(size, int) else size[0])


class CrossDecoder:
    """A `TextDecoder` with cross-attention in every block, in the form of transformers' classes.

    Args:
        model: the library's decoder.
        body: of it; takes `inputs_embeds`, `position_ids`, `encoder_hidden_states` and a cache.
        head: last hidden states to logits.
        n_positions: slots there are positions for.
        kv_shape: blocks, heads and width of a head.
        ends: the tokens around a caption.
        options: further keywords of `body`.

    Attributes:
        project: image features to what cross-attention reads.
    """

    slot: Literal["decoder", "encoder"] = "decoder"

    def __init__(
        self,
        model: Any,
        body: Any,
        head: Callable[[Tensor], Tensor],
        n_positions: int,
        kv_shape: tuple[int, int, int],
        ends: tuple[int, int],
        **options: bool,
    ) -> None:
        self.embedding, self._body, self._head, self._options = model.get_input_embeddings(), body, head, options
        self.vocabulary_size, self.width = self.embedding.weight.shape
        self.start_ids: tuple[int, ...] = (ends[0],)
        self.end_id = ends[1]
        self.budget = n_positions - 1
        self.kv_shape: tuple[int, int, int] | None = kv_shape
        self.project: Callable[[Tensor], Tensor] = lambda features: features

    def embed(self, token_ids: Tensor) -> Tensor:
        """Embed tokens."""
        return self.embedding(token_ids)

    def open(self, features: Tensor, soft: Tensor | None) -> KVCache:
        """Compute the keys and values of the image in every block."""
        states = self.project(features)
        start = torch.tensor([self.start_ids], device=features.device).expand(len(features), -1)
        cache = self._read(KVCache(states=states), self.embed(start))[1]  # what it says of the token is thrown away
        return KVCache(states=states, crossed=from_cache(cache.cross_attention_cache))

    def run(self, memory: KVCache, x: Tensor) -> tuple[Tensor, KVCache]:
        """Read further slots."""
        hidden, cache = self._read(memory, x)
        own = from_cache(cache.self_attention_cache)
        return hidden, KVCache(own, memory.states, memory.crossed, memory.n_read + x.shape[1])

    def head(self, hidden: Tensor) -> Tensor:
        """Turn hidden states into logits."""
        return self._head(hidden)

    def _read(self, memory: KVCache, x: Tensor) -> tuple[Tensor, Any]:
        places = torch.arange(memory.n_read, memory.n_read + x.shape[1], device=x.device)
        cache = to_crossed_cache(memory.own, memory.crossed)
        out = self._body(
            inputs_embeds=x.clone(),  # BLIP adds positions in place
            position_ids=places.expand(x.shape[0], -1),
            encoder_hidden_states=memory.states,
            use_cache=True,
            **cache_argument(self._body, cache),
            **self._options,
        )
        return out.last_hidden_state, cache
