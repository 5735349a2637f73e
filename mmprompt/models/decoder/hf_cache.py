"""From a `KVCache` to the caches that transformers' decoders take, and back; they copy only what they append."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

from mmprompt.models.decoder.kv_cache import KeyValues


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
