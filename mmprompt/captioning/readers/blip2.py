"""Reads BLIP-2 (Li et al. 2023): a Q-Former turns an image into a few vectors that a frozen language model reads.

With a decoder-only model such as OPT they stand before the start token, and a prompt after it. With T5 they are the
first of the encoder's input, and a prompt stands between them and the input's end token.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, Blip2ForConditionalGeneration

from mmprompt.captioning.readers.captioner import FrozenCaptioner, TextDecoder
from mmprompt.captioning.readers.causal_lm import PrefixDecoder
from mmprompt.captioning.readers.pretrained import build_captioner, first_id, load_frozen
from mmprompt.errors import UserError
from mmprompt.models.decoder.hf_cache import cache_argument, from_cache, to_crossed_cache
from mmprompt.models.decoder.kv_cache import KVCache
from mmprompt.models.dual_encoder.transformers_clip import hub_options
from mmprompt.models.frozen import LoadOptions

T5_LENGTH = 512
"""Tokens of T5's training texts. Its positions are relative, so that there is no other limit."""


def load_blip2(name: str, source: str, options: LoadOptions) -> FrozenCaptioner:
    """Load a BLIP-2 captioner, its tokenizer and its image processor."""
    config = AutoConfig.from_pretrained(source, **hub_options(options))
    if config.model_type != "blip-2":
        raise UserError(
            f"{source} is a {config.model_type!r} model, but 'blip-2' was expected. InstructBLIP reads a question in "
            "its image encoder, which a prompt cannot stand in for. Use a Blip2ForConditionalGeneration."
        )
    model = load_frozen(Blip2ForConditionalGeneration, source, options)

    def encode(pixels: Tensor) -> Tensor:
        return model.get_image_features(pixels).pooler_output

    lm, text = model.language_model, model.config.text_config
    decoder: TextDecoder
    if config.use_decoder_only_language_model:
        start, end = first_id(source, "start", text.bos_token_id), first_id(source, "end", text.eos_token_id)
        decoder = PrefixDecoder(lm, nn.Identity(), start, end, config.num_query_tokens)
    elif text.model_type == "t5":
        decoder = T5Decoder(lm)
    else:
        raise UserError(
            f"{source} has a language model of type {text.model_type!r}, but 't5' or a decoder-only one such as 'opt' "
            "was expected. Use another BLIP-2 checkpoint."
        )
    return build_captioner(name, source, options, model, encode, decoder, config.vision_config.image_size)


class T5Decoder:
    """T5, whose encoder reads image vectors, a prompt and the end token.

    Learned keys and values come before the start token in the decoder's self-attention; T5's positions are distances,
    so that they are at the distances of tokens standing there.

    Args:
        lm: a `T5ForConditionalGeneration`.
    """

    slot: Literal["decoder", "encoder"] = "encoder"

    def __init__(self, lm: Any) -> None:
        config = lm.config
        self.lm = lm
        self.width, self.vocabulary_size = config.d_model, lm.lm_head.weight.shape[0]
        self.start_ids: tuple[int, ...] = (config.decoder_start_token_id,)
        self.end_id = config.eos_token_id
        self.budget = T5_LENGTH
        self.kv_shape: tuple[int, int, int] | None = (config.num_decoder_layers, config.num_heads, config.d_kv)
        self._scale = config.d_model**-0.5 if config.scale_decoder_outputs else None

    def embed(self, token_ids: Tensor) -> Tensor:
        """Embed tokens; encoder and decoder share the embeddings."""
        return self.lm.get_input_embeddings()(token_ids)

    def open(self, features: Tensor, soft: Tensor | None) -> KVCache:
        """Run the encoder over image vectors, prompt and end token."""
        end = torch.full((len(features), 1), self.end_id, device=features.device)
        parts = [features, *([] if soft is None else [soft.to(features.dtype)]), self.embed(end)]
        return KVCache(states=self.lm.encoder(inputs_embeds=torch.cat(parts, dim=1)).last_hidden_state)

    def run(self, memory: KVCache, x: Tensor) -> tuple[Tensor, KVCache]:
        """Read further slots."""
        cache = to_crossed_cache(memory.own, memory.crossed)
        out = self.lm.decoder(
            inputs_embeds=x,
            encoder_hidden_states=memory.states,
            use_cache=True,
            **cache_argument(self.lm.decoder, cache),
        )
        own, crossed = from_cache(cache.self_attention_cache), from_cache(cache.cross_attention_cache)
        return out.last_hidden_state, KVCache(own, memory.states, crossed, memory.n_read + x.shape[1])

    def head(self, hidden: Tensor) -> Tensor:
        """Turn hidden states into logits."""
        return self.lm.lm_head(hidden if self._scale is None else hidden * self._scale)
