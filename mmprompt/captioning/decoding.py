"""How captions are searched: settings alone, which import no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from mmprompt.errors import bad_value
from mmprompt.settings import Count, check_settings


@dataclass(frozen=True)
class Decoding:
    """How captions are searched."""

    max_tokens: Count = 30
    """Longest caption in tokens, its end included."""
    min_tokens: Annotated[int, Ge(0)] = 1
    """Tokens before a caption may end; pushed hard, captioners would rather say nothing."""
    n_beams: Count = 1
    """Beams; 1 is greedy, or sampling if a temperature is given."""
    n_best: Count = 1
    """Captions per image: the best of the beams, or so many samples."""
    length_penalty: Annotated[float, Ge(-10), Le(10)] = 1.0
    """Scores of beams are divided by the length to this power."""
    temperature: Annotated[float, Ge(0.001)] | None = None
    """Sample at this temperature instead of taking the best token."""
    top_k: Count | None = None
    """Sample among so many of the best tokens."""
    top_p: Annotated[float, Gt(0), Le(1)] | None = None
    """Sample among the fewest best tokens that have this probability together (Holtzman et al. 2020)."""
    seed: int = 1
    """Of the samples."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.min_tokens >= self.max_tokens:
            expected = f"it must be below max_tokens, {self.max_tokens}"
            raise bad_value(
                "min_tokens", self.min_tokens, expected, "Give a higher `max_tokens`, or a lower `min_tokens`."
            )
        samples = self.temperature is not None
        if samples and self.n_beams > 1:
            raise bad_value("n_beams", self.n_beams, "beams are not sampled", "Use beams or a temperature.")
        if not samples and self.n_best > self.n_beams:
            advice = f"Use n_beams {self.n_best} or a temperature."
            raise bad_value("n_best", self.n_best, f"there are only {self.n_beams} beams", advice)
        if not samples and (self.top_k is not None or self.top_p is not None):
            raise bad_value("temperature", None, "top_k and top_p are for sampling", "Give a temperature, such as 1.")
