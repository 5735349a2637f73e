"""A plain causal language model as the decoder of a captioner: it reads image vectors as a prefix (Mokady et al. 2021,
"ClipCap"; Liu et al. 2023, "Visual Instruction Tuning"), then the start token, a prompt and the caption.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmprompt.backbones.captioners.hf_cache import cache_argument, from_cache, to_cache
from mmprompt.backbones.captioners.memory import Memory


class PrefixDecoder:
    """transformers' causal language model behind a mapper from image features to its embeddings.

    Args:
        lm: any `...ForCausalLM`.
        mapper: [N, T, D'] to [N, T', D].
        start_id, end_id: the tokens around a caption.
    """

    slot: Literal["decoder", "encoder"] = "decoder"

    def __init__(self, lm: Any, mapper: nn.Module, start_id: int, end_id: int, n_image: int) -> None:
        config = lm.config
        self.lm, self.mapper = lm, mapper
        self.width = lm.get_input_embeddings().weight.shape[1]
        self.vocabulary_size = lm.get_output_embeddings().weight.shape[0]
        self.start_ids, self.end_id = (start_id,), end_id
        self.budget = getattr(config, "max_position_embeddings", 1024) - n_image - 1
        n_heads = config.num_attention_heads
        n_kv = getattr(config, "num_key_value_heads", None) or n_heads
        head = getattr(config, "head_dim", None) or config.hidden_size // n_heads
        self.kv_shape: tuple[int, int, int] | None = (config.num_hidden_layers, n_kv, head)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Token embeddings, as the model scales them."""
        return self.lm.get_input_embeddings()(token_ids)

    def open(self, features: Tensor, soft: Tensor | None) -> Memory:
        """Read the image prefix."""
        return self.run(Memory(), self.mapper(features))[1]

    def run(self, memory: Memory, x: Tensor) -> tuple[Tensor, Memory]:
        """Read further slots."""
        places = torch.arange(memory.n_read, memory.n_read + x.shape[1], device=x.device)
        cache = to_cache(memory.own)
        out = self.lm.base_model(
            inputs_embeds=x,
            position_ids=places.expand(x.shape[0], -1),
            use_cache=True,
            **cache_argument(self.lm.base_model, cache),
        )
        return out.last_hidden_state, Memory(from_cache(cache), n_read=memory.n_read + x.shape[1])

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states to logits."""
        return self.lm.get_output_embeddings()(hidden)
