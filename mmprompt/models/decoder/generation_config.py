"""How texts are generated: settings alone, which import no torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le

from mmprompt.errors import bad_value
from mmprompt.settings import Count, check_settings


@dataclass(frozen=True)
class Generation:
    """How answers are generated; the search is the model's own `generate`."""

    max_tokens: Count = 64
    """Longest answer in tokens, its end included."""
    min_tokens: Annotated[int, Ge(0)] = 1
    """Tokens before an answer may end."""
    n_beams: Annotated[int, Ge(1), Le(256)] = 1
    """Beams; 1 is greedy, or sampling if a temperature is given."""
    temperature: Annotated[float, Ge(0.001)] | None = None
    """Sample at this temperature instead of taking the best token."""
    top_k: Count | None = None
    """Sample among so many of the best tokens."""
    top_p: Annotated[float, Gt(0), Le(1)] | None = None
    """Sample among the fewest best tokens that have this probability together."""
    seed: int = 1
    """Of the samples."""
    stop: tuple[str, ...] = ()
    """Texts before which an answer ends, such as a line break."""
    repetition_penalty: Annotated[float, Gt(0)] = 1.0
    """Above 1 makes tokens that the answer holds already less probable (Keskar et al. 2019, "CTRL", section 4.1)."""
    static_cache: bool = False
    """Keep keys and values in buffers of one size."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.min_tokens > self.max_tokens:
            expected = f"it must be at most max_tokens, {self.max_tokens}"
            raise bad_value("min_tokens", self.min_tokens, expected, "Use `min_tokens=1`.")
        object.__setattr__(self, "stop", tuple(self.stop))
        if "" in self.stop:
            raise bad_value("stop", "''", "at least one character was expected", "Give another, or leave it out.")
        if self.temperature is None and (self.top_k is not None or self.top_p is not None):
            raise bad_value("temperature", None, "top_k and top_p are for sampling", "Give a temperature, such as 1.")

    def from_row(self, start: int) -> Generation:
        """Return the settings of a batch that begins at row `start`, so that its samples are not those of the first."""
        if start == 0 or self.temperature is None:
            return self
        digest = hashlib.sha256(f"{self.seed} {start}".encode()).digest()
        return replace(self, seed=int.from_bytes(digest[:8], "big") >> 1)

    def arguments(self) -> dict[str, Any]:
        """The keywords of `generate`."""
        samples = self.temperature is not None
        more = {"temperature": self.temperature, "top_k": self.top_k or 0, "top_p": self.top_p or 1.0}
        return {
            "max_new_tokens": self.max_tokens,
            "min_new_tokens": self.min_tokens,
            "num_beams": self.n_beams,
            "do_sample": samples,
        } | (more if samples else {})
