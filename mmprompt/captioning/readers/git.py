"""Reads transformers' GIT: image tokens and words in one decoder, the image seen whole, the words from left to right.

Positions count words alone. The library's own loss was one token off for years, so captioners compute theirs.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from transformers import GitForCausalLM

from mmprompt.captioning.readers.captioner import FrozenCaptioner
from mmprompt.captioning.readers.pretrained import build_captioner, first_id, load_frozen
from mmprompt.models.decoder.hf_cache import cache_argument, from_cache, to_cache
from mmprompt.models.decoder.kv_cache import KVCache, causal_mask
from mmprompt.models.frozen import LoadOptions


def load_git(name: str, source: str, options: LoadOptions) -> FrozenCaptioner:
    """Load a `GitForCausalLM`; a prompt stands after its start token [CLS]."""
    model = load_frozen(GitForCausalLM, source, options)

    def encode(images: Tensor) -> Tensor:
        return model.git.image_encoder(images).last_hidden_state

    size = model.config.vision_config.image_size
    return build_captioner(name, source, options, model, encode, GitDecoder(name, model), size)


class GitDecoder:
    """A `TextDecoder` over GIT.

    Args:
        name: of the captioner, for error texts.
        model: the library's own.
    """

    slot: Literal["decoder", "encoder"] = "decoder"

    def __init__(self, name: str, model: GitForCausalLM) -> None:
        config, generation = model.config, model.generation_config
        self.git, self.output = model.git, model.output
        self.width, self.vocabulary_size = config.hidden_size, config.vocab_size
        self.start_ids: tuple[int, ...] = (first_id(name, "start", generation.bos_token_id, config.bos_token_id),)
        self.end_id = first_id(name, "end", generation.eos_token_id, config.eos_token_id)
        self.budget = config.max_position_embeddings - 1
        n_heads = config.num_attention_heads
        self.kv_shape: tuple[int, int, int] | None = (config.num_hidden_layers, n_heads, config.hidden_size // n_heads)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Embed tokens."""
        return self.git.embeddings.word_embeddings(token_ids)

    def open(self, features: Tensor, soft: Tensor | None) -> KVCache:
        """Read the image tokens, which see one another and no word."""
        memory = self._read(KVCache(), self.git.visual_projection(features), None)[1]
        return KVCache(memory.own)

    def run(self, memory: KVCache, x: Tensor) -> tuple[Tensor, KVCache]:
        """Read further slots."""
        places = torch.arange(memory.n_read, memory.n_read + x.shape[1], device=x.device)
        x = self.git.embeddings(inputs_embeds=x.clone(), position_ids=places[None])  # it adds positions in place
        return self._read(memory, x, causal_mask(memory.own[0][0].shape[2], x))

    def _read(self, memory: KVCache, x: Tensor, mask: Tensor | None) -> tuple[Tensor, KVCache]:
        cache = to_cache(memory.own)
        encoder = self.git.encoder
        out = encoder(x, attention_mask=mask, use_cache=True, **cache_argument(encoder, cache))
        return out.last_hidden_state, KVCache(from_cache(cache), n_read=memory.n_read + x.shape[1])

    def head(self, hidden: Tensor) -> Tensor:
        """Turn hidden states into logits."""
        return self.output(hidden)
