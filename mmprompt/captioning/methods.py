"""The methods that focus a captioner, by name; each is one of the core's methods for a decoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mmprompt.core.soft import DecoderMethod, HardPrompt, PrefixTuning, PromptTuning

METHODS: dict[str, type[DecoderMethod]] = {
    "prompt-tuning": PromptTuning,
    "prefix-tuning": PrefixTuning,
    "hard": HardPrompt,
}


def start_tokens(captions: Iterable[Sequence[int]], n: int, device: torch.device) -> Tensor:
    """Give the n commonest tokens [n] of some captions, repeated where there are fewer; ties go to the smaller id."""
    counts = Counter(token for caption in captions for token in caption)
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    return torch.tensor([ranked[place % len(ranked)] for place in range(n)], device=device)
