"""What is learned beside, behind or in place of a language model's own layers, for as long as it reads.

Terms stand beside linear layers by torch's forward hooks, which are taken away again; a learned weight stands where the
frozen one is put back. No frozen weight is written to, and none is copied.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmprompt.errors import UserError, unknown_name
from mmprompt.models.sites import Bottleneck, Insert, LowRank, Site, Weight, in_place

Change = LowRank | Bottleneck | Weight
OTHER_MODEL = "Build it for this model."


def changes_of(inserts: Mapping[Site, Insert]) -> dict[Site, Change]:
    """Select the inserts that are no vectors."""
    return {site: insert for site, insert in inserts.items() if isinstance(insert, Change)}


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
    """Refuse changes of parts that a language model of that name has not, or has in another size."""
    modules, weights = dict(lm.named_modules()), dict(lm.named_parameters())
    for site, change in changes.items():
        known: Mapping[str, Any] = weights if isinstance(change, Weight) else modules
        if site.tower != "lm" or not site.part:
            raise UserError(f"{site} is no layer of {model}. Use lm.part[NAME].")
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
    """Have a model's output layer give the logits of some rows [W, D] in place of its own, in this thread alone.

    What the model does to its logits is done to these.
    """
    if rows is None:
        yield
        return
    reading = threading.get_ident()

    def instead(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        return F.linear(given[0], rows.to(given[0].dtype)) if threading.get_ident() == reading else None

    hook = lm.get_output_embeddings().register_forward_hook(instead)
    try:
        yield
    finally:
        hook.remove()


def _adding(change: LowRank | Bottleneck, reading: int) -> Callable[..., Any]:
    """Make a hook that adds a term of a layer's input, or of a block's output, in one thread alone."""

    def add(module: nn.Module, given: tuple[Tensor, ...], out: Any) -> Any:
        if threading.get_ident() != reading:
            return None
        y = out[0] if isinstance(out, tuple) else out
        y = y + change.term(given[0] if isinstance(change, LowRank) else y)
        return (y, *out[1:]) if isinstance(out, tuple) else y

    return add
