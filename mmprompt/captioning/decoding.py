"""How captions are searched: settings alone, which import no torch."""

from __future__ import annotations

from dataclasses import dataclass

from mmprompt.errors import bad_value


@dataclass(frozen=True)
class Decoding:
    """How captions are searched."""

    max_tokens: int = 30
    """Longest caption in tokens, its end included."""
    min_tokens: int = 1
    """Tokens before a caption may end; pushed hard, captioners would rather say nothing."""
    n_beams: int = 1
    """Beams; 1 is greedy, or sampling if a temperature is given."""
    n_best: int = 1
    """Captions per image: the best of the beams, or so many samples."""
    length_penalty: float = 1.0
    """Scores of beams are divided by the length to this power."""
    temperature: float | None = None
    """Sample at this temperature instead of taking the best token."""
    top_k: int | None = None
    """Sample among so many of the best tokens."""
    top_p: float | None = None
    """Sample among the fewest best tokens that have this probability together (Holtzman et al. 2020)."""
    seed: int = 1
    """Of the samples."""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "n_beams", "n_best"):
            if getattr(self, name) < 1:
                raise bad_value(name, getattr(self, name), "it must be 1 or more", "Use 1 or leave it out.")
        if not 0 <= self.min_tokens < self.max_tokens:
            limits = f"it must be from 0 to {self.max_tokens - 1}, below max_tokens"
            raise bad_value("min_tokens", self.min_tokens, limits, "Use 1.")
        samples = self.temperature is not None
        if samples and not (self.temperature or 0) > 0:
            raise bad_value("temperature", self.temperature, "it must be above 0", "Leave it out for greedy decoding.")
        if samples and self.n_beams > 1:
            raise bad_value("n_beams", self.n_beams, "beams are not sampled", "Use beams or a temperature.")
        if not samples and self.n_best > self.n_beams:
            advice = f"Use n_beams {self.n_best} or a temperature."
            raise bad_value("n_best", self.n_best, f"there are only {self.n_beams} beams", advice)
        if self.top_k is not None and self.top_k < 1:
            raise bad_value("top_k", self.top_k, "it must be 1 or more", "Leave it out.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise bad_value("top_p", self.top_p, "it must be above 0 and at most 1", "Use 0.9.")
        if not samples and (self.top_k is not None or self.top_p is not None):
            raise bad_value("temperature", None, "top_k and top_p are for sampling", "Give a temperature, such as 1.")
