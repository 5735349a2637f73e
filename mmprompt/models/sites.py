"""The named places of a frozen model where something learned enters, and what enters there.

A site is `text.input`, `text.layer[i]`, `vision.input` or `vision.layer[i]` of a dual encoder, `lm.input` or
`lm.kv[i]` of a language model or captioner, where vectors enter; a projection such as `text.block[i].query`, beside
which a low-rank term stands; a norm such as `text.block[i].norm1`, whose weight and bias it moves; a sublayer such as
`text.block[i].mlp`, behind which a small network stands; `vision.pixels`, where something is added to the image itself;
`lm.part[NAME]`, a layer, block or weight of a language model by its own name; or `text.part[NAME]`, a weight. Prompts
produce `{Site: Insert}`; backbones consume it. Neither knows the other's class.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch.nn.functional as F
from torch import Tensor, nn

from mmprompt.errors import UserError

Tower = Literal["text", "vision", "lm", "lm.kv"]
Scope = Literal["shared", "class", "sample"]
PROJECTIONS, NORMS, SUBLAYERS = ("query", "key", "value"), ("norm1", "norm2"), ("attention", "mlp")
INSIDE_BLOCKS = (*PROJECTIONS, *NORMS, *SUBLAYERS)
WHOLE_TOWER = ("pre_norm", "final_norm", "pixels")
"""The parts that a tower has once and not in each block."""
NUMBER = r"\[(?P<layer>0|[1-9]\d{0,3})\]"
SITE_NAMES = (
    r"(?P<tower>text|vision|lm)\.input",
    rf"(?P<tower>text)\.layer(?!\[0\]){NUMBER}",
    rf"(?P<tower>vision)\.layer{NUMBER}",
    rf"(?P<tower>lm\.kv){NUMBER}",
    rf"(?P<tower>text|vision)\.block{NUMBER}\.(?P<part>{'|'.join(INSIDE_BLOCKS)})",
    r"(?P<tower>text|vision)\.(?P<part>pre_norm|final_norm)",
    r"(?P<tower>vision)\.(?P<part>pixels)",
    r"(?P<tower>lm|text|vision)\.part\[(?P<part>\w+(\.\w+)*)\]",
)


@dataclass(frozen=True, order=True)
class Site:
    """A place where vectors enter a tower: layer 0 is its input, layer i > 0 the input of block i (0-based).

    At `lm.kv` they are keys and values of block `layer`, which attention sees before those of the text: [M, 2 H D/H],
    the keys of all heads, then the values. `vision.layer[0]` is `vision.input` after the tower's first norm, its part
    `normed`. With any other `part` the site is that part of block `layer`, or what the tower has once; at `lm` it is
    the layer, block or weight of that name, and so is a weight at `text` or `vision`.
    """

    tower: Tower
    layer: int = 0
    part: str = ""

    def __str__(self) -> str:
        if self.part in WHOLE_TOWER:
            return f"{self.tower}.{self.part}"
        if self.is_named:
            return f"{self.tower}.part[{self.part}]"
        if self.part == "normed":
            return f"{self.tower}.layer[{self.layer}]"
        if self.part:
            return f"{self.tower}.block[{self.layer}].{self.part}"
        if self.tower == "lm.kv":
            return f"lm.kv[{self.layer}]"
        return f"{self.tower}.input" if self.layer == 0 else f"{self.tower}.layer[{self.layer}]"

    @property
    def is_named(self) -> bool:
        """Whether it is a layer, block or weight by its own name in the library's model."""
        return self.part != "" and (self.tower == "lm" or self.part not in (*INSIDE_BLOCKS, *WHOLE_TOWER, "normed"))

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read a site back from its name, and refuse a name that is not that of a site."""
        for pattern in SITE_NAMES:
            match = re.fullmatch(pattern, text)
            if match is not None:
                parts: dict[str, Any] = match.groupdict()
                if text == "vision.layer[0]":
                    return cls("vision", 0, "normed")
                return cls(parts["tower"], int(parts.get("layer", 0)), parts.get("part", ""))
        known = "text.input, text.layer[i], vision.input, vision.layer[i], vision.pixels, lm.input, lm.kv[i], "
        known += "lm.part[NAME], text.part[NAME], text.block[i].query, text.block[i].norm1, text.block[i].mlp or "
        known += "text.final_norm"
        raise UserError(f"{text!r} is not a site. A site is {known}.")


LM_INPUT = Site("lm")
_one_at_a_time = threading.RLock()
"""Of those who put learned weights in place: a second one would take those of the first for the frozen ones."""


@dataclass(frozen=True)
class _Insert:
    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors that a gradient may be wanted of."""
        return tuple(value for value in vars(self).values() if isinstance(value, Tensor))

    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """Return the same insert with other tensors, in the order of `tensors`."""
        names = (name for name, value in vars(self).items() if isinstance(value, Tensor))
        return replace(self, **dict(zip(names, tensors, strict=True)))


@dataclass(frozen=True)
class Vectors(_Insert):
    """Vectors for one site, with what they are shared over said and never guessed.

    Those of scope `"shared"` are [M, D], of `"class"` [C, M, D] and of `"sample"` [B, M, D].
    """

    values: Tensor
    scope: Scope = "shared"

    @property
    def n_vectors(self) -> int:
        """M, the number of vectors."""
        return self.values.shape[-2]


@dataclass(frozen=True)
class LowRank(_Insert):
    """A low-rank term beside a projection (Hu et al. 2022, "LoRA", section 4.1): y + scale B A x.

    Args:
        a: [R, D].
        b: [D', R].
        scale: alpha / R.
        dropout: share of x that is dropped, 0..1; the source gives 0 outside training.
    """

    a: Tensor
    b: Tensor
    scale: float = 1.0
    dropout: float = 0.0

    def term(self, x: Tensor) -> Tensor:
        """Compute scale B A x for x [..., D]: [..., D']; of ids [...], columns of A are taken."""
        if not x.is_floating_point():
            return self.scale * F.linear(F.embedding(x, self.a.T), self.b)
        x = F.dropout(x, self.dropout, training=self.dropout > 0)
        return self.scale * F.linear(F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype))


@dataclass(frozen=True)
class NormDelta(_Insert):
    """What is added to weight and bias [D] of a layer norm (Farina et al. 2025, "Rethinking Few-Shot Adaptation")."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class PixelTerm(_Insert):
    """What is added to every normalised image (Bahng et al. 2022, "Exploring Visual Prompts", 3.2), [3, H, W]."""

    values: Tensor


@dataclass(frozen=True)
class Bottleneck(_Insert):
    """A network behind a block or sublayer (Houlsby et al. 2019): y + W' gelu(W y + c) + c'; W [R, D], W' [D, R]."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor

    def term(self, y: Tensor) -> Tensor:
        """Compute what is added to y [..., D]."""
        down, down_bias, up, up_bias = (tensor.to(y.dtype) for tensor in self.tensors)
        return F.linear(F.gelu(F.linear(y, down, down_bias)), up, up_bias)


@dataclass(frozen=True)
class Weight(_Insert):
    """A weight that stands in place of the frozen one of its shape."""

    values: Tensor


Insert = Vectors | LowRank | NormDelta | PixelTerm | Bottleneck | Weight


def vectors_of(inserts: Mapping[Site, Insert]) -> dict[Site, Vectors]:
    """Select the inserts that are vectors."""
    return {site: insert for site, insert in inserts.items() if isinstance(insert, Vectors)}


def without_vector(inserts: Mapping[Site, Insert], tower: str, place: int) -> dict[Site, Insert]:
    """Leave out one vector of all sites of a tower; the site itself where it is the only one."""
    kept: dict[Site, Insert] = {}
    for site, insert in inserts.items():
        if not isinstance(insert, Vectors) or site.tower != tower:
            kept[site] = insert
        elif insert.n_vectors > 1:
            others = [other for other in range(insert.n_vectors) if other != place]
            kept[site] = Vectors(insert.values[..., others, :], insert.scope)
    return kept


def low_rank_of(inserts: Mapping[Site, Insert]) -> dict[Site, LowRank]:
    """Select the inserts that are low-rank terms."""
    return {site: insert for site, insert in inserts.items() if isinstance(insert, LowRank)}


def weights_of(inserts: Mapping[Site, Insert]) -> dict[Site, Weight]:
    """Select the inserts that are weights."""
    return {site: insert for site, insert in inserts.items() if isinstance(insert, Weight)}


def with_tensors(inserts: Mapping[Site, Insert], tensors: Iterator[Tensor]) -> dict[Site, Insert]:
    """Return the same inserts with other tensors, taken from an iterator in the order of the inserts."""
    return {site: insert.with_tensors([next(tensors) for _ in insert.tensors]) for site, insert in inserts.items()}


@contextlib.contextmanager
def in_place(model: nn.Module, weights: Mapping[str, Weight]) -> Iterator[None]:
    """Have a model compute with learned weights in place of its own, by name, of which none is written to or copied.

    Tied ones are all replaced, and every thread sees them meanwhile; one that has weights of its own waits.
    """
    if not weights:
        yield
        return
    with _one_at_a_time:
        places = list(_places_of(model, weights))
        try:
            for part, name, _, learned in places:
                part._parameters[name] = learned  # type: ignore[assignment]
            yield
        finally:
            for part, name, frozen, _ in places:
                part._parameters[name] = frozen


def _places_of(
    model: nn.Module, weights: Mapping[str, Weight]
) -> Iterator[tuple[nn.Module, str, nn.Parameter, Tensor]]:
    """Find where weights stand, tied ones in several places: module, its name for it, the frozen one, the learned."""
    own = dict(model.named_parameters())
    learned = {id(own[name]): weight.values.to(own[name].dtype) for name, weight in weights.items()}
    for part in model.modules():
        for name, frozen in part._parameters.items():
            if frozen is not None and id(frozen) in learned:
                yield part, name, frozen, learned[id(frozen)]


@dataclass(frozen=True)
class TextSlots:
    """What stands in each slot of each class's text: a word token, a context vector, or nothing.

    Args:
        token_ids: [C, L] int64; the token in each slot (the backbone's padding id where there is none).
        ctx_index: [C, L] int64; m where the m-th vector of site `text.input` stands, else -1.
        lengths: [C] int64; slots up to and including the end token.
        n_ctx: M, how many vectors of `text.input` the slots name.
    """

    token_ids: Tensor
    ctx_index: Tensor
    lengths: Tensor
    n_ctx: int = 0

    @property
    def n_classes(self) -> int:
        """C."""
        return self.token_ids.shape[0]
