"""What a prompt puts into a language model: vectors, checked and as keys and values of its blocks; and what is learned
beside, behind or in place of its own layers, for as long as it reads.

Terms stand beside linear layers by torch's forward hooks, which are taken away again; a learned weight stands where the
frozen one is put back. No frozen weight is written to, and none is copied.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprompt.errors import UserError, unknown_name
from mmprompt.models.decoder.kv_cache import KeyValues
from mmprompt.models.sites import LM_INPUT, Bottleneck, Insert, LowRank, Site, Vectors, Weight, in_place

Change = LowRank | Bottleneck | Weight
OTHER_MODEL = "Build it for this model."
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


def changes_of(inserts: Mapping[Site, Insert]) -> dict[Site, Change]:
    """Select the inserts that are no vectors."""
    return {site: insert for site, insert in inserts.items() if not isinstance(insert, Vectors)}  # type: ignore[misc]


def linear_layers(lm: Any) -> dict[str, tuple[int, int]]:
    """Find every linear layer but the head: by name, how many numbers go in and come out."""
    head = lm.get_output_embeddings() if hasattr(lm, "get_output_embeddings") else None
    return {
        name: linear_size(part) for name, part in lm.named_modules() if linear_size(part) != (0, 0) and part is not head
    }


def linear_size(part: nn.Module) -> tuple[int, int]:
    """Return how many numbers go into a linear layer and come out of it; (0, 0) of any other module."""
    if isinstance(part, nn.Linear):
        return part.in_features, part.out_features
    if type(part).__name__ == "Conv1D":  # transformers' own, of GPT-2, whose weight is the other way round
        n_in, n_out = part.weight.shape  # type: ignore[misc]
        return n_in, n_out
    return 0, 0


def layer_size(part: nn.Module) -> tuple[int, int]:
    """Return the same of a table of embeddings too, into which goes one of as many numbers as there are rows."""
    return (part.num_embeddings, part.embedding_dim) if isinstance(part, nn.Embedding) else linear_size(part)


def block_names(lm: Any) -> list[str]:
    """Find the blocks of a model, of its encoder and its decoder alike; none where they are not known."""
    config = lm.config.get_text_config()
    counts = {config.num_hidden_layers, getattr(config, "num_decoder_layers", None)}
    lists: list[str] = []
    for name, part in lm.named_modules():
        is_inside = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(part, nn.ModuleList) and len(part) in counts and not is_inside:
            lists.append(name)
    return [f"{name}.{number}" for name in lists for number in range(len(lm.get_submodule(name)))]


def in_attention(name: str) -> bool:
    """Return whether a layer's name says that it belongs to an attention."""
    return re.search(r"att(n|ention)", name.rpartition(".")[0], re.IGNORECASE) is not None


def check_changes(model: str, lm: nn.Module, changes: Mapping[Site, Change]) -> None:
    """Refuse changes of parts that a language model of that name has not, or has in another size, and other changes."""
    modules, weights = dict(lm.named_modules()), dict(lm.named_parameters())
    for site, change in changes.items():
        known: Mapping[str, Any] = weights if isinstance(change, Weight) else modules
        if site.tower != "lm" or not site.part:
            raise UserError(f"{site} is no layer of {model}. Use lm.part[NAME].")
        if not isinstance(change, Change):
            takes = f"{model} takes a term, a network or a weight there"
            raise UserError(f"what is learned at {site} is a {type(change).__name__}, but {takes}. {OTHER_MODEL}")
        if site.part not in known:
            raise unknown_name(f"part of {model}", site.part, known, OTHER_MODEL)
        if isinstance(change, Weight):
            own, given = tuple(weights[site.part].shape), tuple(change.values.shape)
        elif isinstance(change, LowRank):
            own, given = layer_size(modules[site.part]), (change.a.shape[1], change.b.shape[0])
        else:
            continue
        if own != given:
            raise UserError(f"{site} was given {list(given)}, but that of {model} is {list(own)}. {OTHER_MODEL}")


@contextlib.contextmanager
def changed(lm: nn.Module, changes: Mapping[Site, Change]) -> Iterator[None]:
    """Have a model read with checked changes; what other threads read meanwhile goes without terms and networks."""
    weights = {site.part: change for site, change in changes.items() if isinstance(change, Weight)}
    hooks = []
    try:
        for site, change in changes.items():
            if not isinstance(change, Weight):
                hooks.append(lm.get_submodule(site.part).register_forward_hook(_adding(change, threading.get_ident())))
        with in_place(lm, weights):
            yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def replaced_output(lm: Any, rows: Tensor | None) -> Iterator[None]:
    """Have a model's output layer give the logits of some rows in place of its own, in this thread alone.

    What the model does to its logits is done to these, but the bias that BART adds to each word; zeros may follow them.
    """
    if rows is None:
        yield
        return
    reading, bias = threading.get_ident(), getattr(lm, "final_logits_bias", None)

    def instead(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        if threading.get_ident() != reading:
            return None
        logits = output_of(rows, given[0])
        return logits if bias is None else F.pad(logits - bias[:, : len(rows)], (0, bias.shape[1] - len(rows)))

    hook = lm.get_output_embeddings().register_forward_hook(instead)
    try:
        yield
    finally:
        hook.remove()


def output_of(rows: Tensor, hidden: Tensor) -> Tensor:
    """Return the logits [..., W] of states [..., D] by rows [W, D], or [W, D + 1] with a bias last."""
    width = hidden.shape[-1]
    weight, bias = rows.to(hidden.dtype).split([width, rows.shape[1] - width], 1)
    return F.linear(hidden, weight, bias[:, 0] if bias.shape[1] else None)


def _adding(change: LowRank | Bottleneck, reading: int) -> Callable[..., Any]:
    """Make a hook that adds a term of a layer's input, or of a block's output, in one thread alone."""

    def add(module: nn.Module, given: tuple[Tensor, ...], out: Any) -> Any:
        if threading.get_ident() != reading:
            return None
        y = out[0] if isinstance(out, tuple) else out
        y = y + change.term(given[0] if isinstance(change, LowRank) else y)
        return (y, *out[1:]) if isinstance(out, tuple) else y

    return add
