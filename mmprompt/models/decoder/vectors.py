"""Vectors of a prompt as a language model takes them: checked, and as the keys and values of its blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from mmprompt.errors import UserError
from mmprompt.models.decoder.kv_cache import KeyValues
from mmprompt.models.sites import Site, Vectors

LM_INPUT = Site("lm")
KvShape = tuple[int, int, int]


class Reader(Protocol):
    """What vectors are checked against.

    Attributes:
        width: D of vectors at `lm.input`.
        kv_shape: blocks, key/value heads and width of a head for `lm.kv`; None where none can be inserted.
        budget: slots that the vectors and a text may take together.
    """

    width: int
    kv_shape: KvShape | None
    budget: int


def check_vectors(name: str, reader: Reader, vectors: Mapping[Site, Vectors]) -> None:
    """Refuse vectors that the model of that name cannot take.

    Raises:
        UserError: a site it does not have, another width, more vectors than there is room for, or keys and values for
            some blocks alone.
    """
    for site, given in vectors.items():
        if site != LM_INPUT and site.tower != "lm.kv":
            raise UserError(f"{site} is no site of {name}. Use lm.input or lm.kv[i].")
        if site != LM_INPUT and reader.kv_shape is None:
            raise UserError(
                f"keys and values were given, but the decoder of {name} takes none. Use vectors among its tokens."
            )
        _, n_heads, head_width = reader.kv_shape or (0, 0, 0)
        width = reader.width if site == LM_INPUT else 2 * n_heads * head_width
        if given.values.shape[-1] != width:
            raise UserError(
                f"the vectors of {site} are {given.values.shape[-1]} wide, but {name} takes {width}. "
                "Build the prompt for this model."
            )
    n_slots = sum(vectors[site].n_vectors for site in (LM_INPUT, Site("lm.kv")) if site in vectors)
    if n_slots >= reader.budget:
        raise UserError(
            f"the prompt takes {n_slots} slots, but {name} has {reader.budget} for prompt and text together. "
            "Use fewer vectors."
        )
    by_layer = {site.layer: given for site, given in vectors.items() if site.tower == "lm.kv"}
    sizes = sorted({given.n_vectors for given in by_layer.values()})
    if len(sizes) > 1:
        raise UserError(
            f"blocks were given {sizes[0]} to {sizes[-1]} keys and values, but all take equally many. "
            "Give as many to every block."
        )
    if reader.kv_shape is not None and by_layer and by_layer.keys() != set(range(reader.kv_shape[0])):
        raise UserError(
            f"keys and values were given for {len(by_layer)} blocks, but {name} has {reader.kv_shape[0]}. "
            "Give them for every block."
        )


def keys_values(vectors: Mapping[Site, Vectors], shape: KvShape | None, dtype: torch.dtype) -> KeyValues:
    """Return the vectors of `lm.kv[i]` as [1 or N, H, M, D/H] pairs, () where there are none."""
    n_layers, n_heads, _ = shape or (0, 0, 0)
    pairs = []
    for layer in range(n_layers):
        if Site("lm.kv", layer) not in vectors:
            return ()
        given = vectors[Site("lm.kv", layer)]
        values = given.values[None] if given.scope == "shared" else given.values  # [1 or N, M, 2 H D/H]
        key, value = values.to(dtype).unflatten(-1, (2, n_heads, -1)).permute(2, 0, 3, 1, 4)
        pairs.append((key, value))
    return tuple(pairs)
