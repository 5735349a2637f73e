"""What a text decoder has read so far, as plain tensors that are never changed in place, and as transformers' caches.

Rows can be picked, repeated and put in another order at no more than the cost of an index, which is what beams, mixed
batches and images with many captions need.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

KeyValues = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of every block: [N, H, S, D/H] each."""


def map_parts(change: Callable[..., Tensor], *caches: KeyValues) -> KeyValues:
    """Apply a function to the keys of each block, one tensor of every cache, and to the values."""
    blocks = [list(zip(*pairs, strict=True)) for pairs in zip(*caches, strict=True)]
    return tuple((change(*keys), change(*values)) for keys, values in blocks)


def concatenate(*rows: Tensor) -> Tensor:
    """Join the rows of several tensors."""
    return torch.cat(rows)


@dataclass(frozen=True)
class KVCache:
    """Keys and values of N rows.

    Args:
        own: of the slots read so far, by self-attention; () before anything was read.
        states: [N, T, D'], what cross-attention reads, None where there is none.
        crossed: keys and values of the states where the decoder keeps them, else ().
        n_read: slots of the text axis that are taken, from which positions go on.
    """

    own: KeyValues = ()
    states: Tensor | None = None
    crossed: KeyValues = ()
    n_read: int = 0

    def select(self, rows: Tensor) -> KVCache:
        """Select rows, each as often as it is named: [N'] int64."""
        return self._map(lambda tensor: tensor.index_select(0, rows))

    def repeat(self, n_rows: int) -> KVCache:
        """Repeat one row without a copy."""
        return self._map(lambda tensor: tensor.expand(n_rows, *tensor.shape[1:]))

    def select_after(self, base: KVCache, rows: Tensor) -> KVCache:
        """Select rows [N'], with what `base` had read of them taken from there: no gradient flows through that."""
        if not base.own:
            return self.select(rows)
        n_base = base.own[0][0].shape[2]

        def joined(old: Tensor, now: Tensor) -> Tensor:
            return torch.cat([old.index_select(0, rows), now[:, :, n_base:].index_select(0, rows)], dim=2)

        return replace(replace(self, own=()).select(rows), own=map_parts(joined, base.own, self.own))

    def insert(self, keys_values: KeyValues) -> KVCache:
        """Return the same with learned keys and values after what was read: [1 or N, H, M, D/H] each."""
        own = map_parts(lambda part: part.expand(len(self), -1, -1, -1), keys_values)
        if self.own:
            own = map_parts(lambda old, new: torch.cat([old, new.to(old.dtype)], dim=2), self.own, own)
        return replace(self, own=own, n_read=self.n_read + keys_values[0][0].shape[2])

    @staticmethod
    def join(parts: Sequence[KVCache]) -> KVCache:
        """Join the rows of several caches that have read equally much, one after another."""
        own = map_parts(concatenate, *(part.own for part in parts))
        crossed = map_parts(concatenate, *(part.crossed for part in parts))
        states = [part.states for part in parts if part.states is not None]
        return KVCache(own, concatenate(*states) if states else None, crossed, parts[0].n_read)

    def __len__(self) -> int:
        first = self.states if self.states is not None else self.own[0][0]
        return first.shape[0]

    @property
    def n_bytes(self) -> int:
        """Count the bytes of all tensors."""
        tensors = [part for pair in (*self.own, *self.crossed) for part in pair]
        tensors += [] if self.states is None else [self.states]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _map(self, change: Callable[[Tensor], Tensor]) -> KVCache:
        states = None if self.states is None else change(self.states)
        return KVCache(map_parts(change, self.own), states, map_parts(change, self.crossed), self.n_read)


def learned_cache(learned: KeyValues) -> KVCache:
    """Make a cache of learned keys and values, which count as read before everything else."""
    return KVCache(learned, n_read=learned[0][0].shape[2]) if learned else KVCache()


def causal_mask(n_before: int, x: Tensor) -> Tensor | None:
    """Build the mask [L, n_before + L], added to scores, of new slots x: [N, L] or [N, L, D], in its dtype.

    They see all keys that were kept, and one another from left to right; None where a single new slot sees everything.
    """
    n_new = x.shape[1]
    if n_new == 1:
        return None
    hidden = torch.full((n_new, n_before + n_new), float("-inf"), dtype=x.dtype, device=x.device)
    return hidden.triu(n_before + 1)


def to_cache(keys_values: KeyValues) -> DynamicCache:
    """Make a cache that a decoder may append to; the given tensors are in it, and stay as they are."""
    cache = DynamicCache()
    for key, value in keys_values:
        layer = DynamicLayer()
        layer.lazy_initialization(key, value)
        layer.keys, layer.values = key, value  # put in place: the constructor's own way copies them
        cache.layers.append(layer)
    return cache


def to_crossed_cache(own: KeyValues, crossed: KeyValues) -> EncoderDecoderCache:
    """The same for a decoder that reads an encoder too; it fills the second part where that is empty."""
    return EncoderDecoderCache(to_cache(own), to_cache(crossed))


def from_cache(cache: DynamicCache) -> KeyValues:
    """Keys and values of every block."""
    return tuple((layer.keys, layer.values) for layer in cache.layers)


def cache_argument(module: nn.Module, cache: Any) -> dict[str, Any]:
    """The keyword by which a decoder takes its cache; transformers renamed it in 5.2x."""
    return {cache_name(type(module).forward): cache}


@functools.cache
def cache_name(forward: Callable[..., Any]) -> str:
    """Look up how the forward of a class names its cache; once, since decoding asks at every step."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
