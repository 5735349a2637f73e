"""The named places of a frozen model where vectors enter, and the vectors that enter there.

A site is `text.input`, `text.layer[i]`, `vision.input` or `vision.layer[i]` of a dual encoder, `lm.input` or
`lm.kv[i]` of a language model or captioner. Prompts produce `{Site: Vectors}`; backbones consume it. Neither knows
the other's class.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mmprompt.errors import UserError

Tower = Literal["text", "vision", "lm", "lm.kv"]
Scope = Literal["shared", "class", "image"]


@dataclass(frozen=True, order=True)
class Site:
    """A place where vectors enter a tower: layer 0 is its input, layer i > 0 the input of block i (0-based).

    At `lm.kv` they are keys and values of block `layer`, which attention sees before those of the text: [M, 2 H D/H],
    the keys of all heads, then the values.
    """

    tower: Tower
    layer: int = 0

    def __str__(self) -> str:
        if self.tower == "lm.kv":
            return f"lm.kv[{self.layer}]"
        return f"{self.tower}.input" if self.layer == 0 else f"{self.tower}.layer[{self.layer}]"

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read a site back from its name.

        Raises:
            UserError: the name is not that of a site.
        """
        kv = re.fullmatch(r"lm\.kv\[(0|[1-9]\d{0,3})\]", text)
        if kv is not None:
            return cls("lm.kv", int(kv[1]))
        towers: dict[str, Tower] = {"text": "text", "vision": "vision", "lm": "lm"}
        match = re.fullmatch(r"(text|vision|lm)\.(?:input|layer\[([1-9]\d{0,3})\])", text)
        if match is None or (match[1] == "lm" and match[2]):
            known = "text.input, text.layer[i], vision.input, vision.layer[i], lm.input or lm.kv[i]"
            raise UserError(f"{text!r} is not a site. A site is {known}.")
        return cls(towers[match[1]], int(match[2] or 0))


@dataclass(frozen=True)
class Vectors:
    """Vectors for one site, with what they are shared over said and never guessed.

    Args:
        values: `"shared"` [M, D], `"class"` [C, M, D], `"image"` [B, M, D].
        scope: one of the three.
    """

    values: Tensor
    scope: Scope = "shared"

    @property
    def n_vectors(self) -> int:
        """M, the number of vectors."""
        return self.values.shape[-2]


@dataclass(frozen=True)
class TextSlots:
    """What stands in each slot of each class's text: a word token, a context vector, or nothing.

    Args:
        token_ids: [C, L] int64; the token in each slot (the backbone's padding id where there is none).
        ctx_index: [C, L] int64; m where the m-th vector of site `text.input` stands, else -1.
        lengths: [C] int64; slots up to and including the end token.
    """

    token_ids: Tensor
    ctx_index: Tensor
    lengths: Tensor

    @property
    def n_classes(self) -> int:
        """C."""
        return self.token_ids.shape[0]
