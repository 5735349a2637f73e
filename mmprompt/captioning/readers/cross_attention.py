"""A text decoder that reads the image by cross-attention in every block, in the form of transformers' classes.

The keys and values of the image are computed once, when it is opened, by the decoder itself. Which class it is, and
where its parts come from, is known to the readers (`blip.py`, `encoder_decoder.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmprompt.models.decoder.hf_cache import cache_argument, from_cache, to_crossed_cache
from mmprompt.models.decoder.memory import Memory


@dataclass(frozen=True)
class CrossParts:
    """The parts of such a decoder, by reference.

    Args:
        body: takes `inputs_embeds`, `position_ids`, `encoder_hidden_states` and a cache.
        embedding: of the tokens.
        head: last hidden states to logits.
        project: image features to what cross-attention reads.
        n_positions: slots there are positions for.
        kv_shape: blocks, heads and width of a head.
        options: further keywords of `body`.
    """

    body: nn.Module
    embedding: nn.Module
    head: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]
    n_positions: int
    kv_shape: tuple[int, int, int]
    options: Mapping[str, Any] = field(default_factory=dict)


class CrossDecoder:
    """A `TextDecoder` with cross-attention.

    Args:
        parts: of the library's model.
        start_id, end_id: the tokens around a caption.
    """

    slot: Literal["decoder", "encoder"] = "decoder"

    def __init__(self, parts: CrossParts, start_id: int, end_id: int) -> None:
        self.parts = parts
        weight: Any = parts.embedding.weight
        self.vocabulary_size, self.width = weight.shape
        self.start_ids: tuple[int, ...] = (start_id,)
        self.end_id = end_id
        self.budget = parts.n_positions - 1
        self.kv_shape: tuple[int, int, int] | None = parts.kv_shape

    def embed(self, token_ids: Tensor) -> Tensor:
        """Token embeddings."""
        return self.parts.embedding(token_ids)

    def open(self, features: Tensor, soft: Tensor | None) -> Memory:
        """The keys and values of the image in every block."""
        states = self.parts.project(features)
        start = torch.tensor([self.start_ids], device=features.device).expand(len(features), -1)
        cache = self._read(Memory(states=states), self.embed(start))[1]  # what it says of the token is thrown away
        return Memory(states=states, crossed=from_cache(cache.cross_attention_cache))

    def run(self, memory: Memory, x: Tensor) -> tuple[Tensor, Memory]:
        """Read further slots."""
        hidden, cache = self._read(memory, x)
        own = from_cache(cache.self_attention_cache)
        return hidden, Memory(own, memory.states, memory.crossed, memory.n_read + x.shape[1])

    def _read(self, memory: Memory, x: Tensor) -> tuple[Tensor, Any]:
        places = torch.arange(memory.n_read, memory.n_read + x.shape[1], device=x.device)
        cache = to_crossed_cache(memory.own, memory.crossed)
        out = self.parts.body(
            inputs_embeds=x.clone(),  # BLIP adds positions in place
            position_ids=places.expand(x.shape[0], -1),
            encoder_hidden_states=memory.states,
            use_cache=True,
            **cache_argument(self.parts.body, cache),
            **self.parts.options,
        )
        return out.last_hidden_state, cache

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states to logits."""
        return self.parts.head(hidden)
