"""How texts are generated: settings alone, which import no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmprompt.errors import bad_value

MAX_BEAMS = 256


@dataclass(frozen=True)
class Generation:
    """How answers are generated; the search is the model's own `generate`."""

    max_tokens: int = 64
    """Longest answer in tokens, its end included."""
    min_tokens: int = 1
    """Tokens before an answer may end."""
    n_beams: int = 1
    """Beams; 1 is greedy, or sampling if a temperature is given."""
    temperature: float | None = None
    """Sample at this temperature instead of taking the best token."""
    top_k: int | None = None
    """Sample among so many of the best tokens."""
    top_p: float | None = None
    """Sample among the fewest best tokens that have this probability together."""
    seed: int = 1
    """Of the samples."""
    static_cache: bool = False
    """Keep keys and values in buffers of one size."""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "n_beams", "top_k"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise bad_value(name, getattr(self, name), "it must be 1 or more", "Use 1 or leave it out.")
        if self.n_beams > MAX_BEAMS:
            raise bad_value("n_beams", self.n_beams, f"it must be at most {MAX_BEAMS}", "Use 5.")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise bad_value("min_tokens", self.min_tokens, f"it must be from 0 to {self.max_tokens}", "Use 1.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise bad_value("top_p", self.top_p, "it must be above 0 and at most 1", "Use 0.9 or leave it out.")
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise bad_value("temperature", self.temperature, "it must be above 0 and finite", "Leave it out.")
        if self.temperature is None and (self.top_k is not None or self.top_p is not None):
            raise bad_value("temperature", None, "top_k and top_p are for sampling", "Give a temperature, such as 1.")

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
