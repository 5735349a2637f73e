"""What is learned to focus a captioner: vectors after the start token, or keys and values in every block.

Both start from something real, token embeddings or the keys and values of tokens: a prompt that starts from noise
breaks a small captioner before it can learn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mmprompt.captioning.predictor import hard_prompt
from mmprompt.captioning.readers.captioner import LM_INPUT, FrozenCaptioner
from mmprompt.core.prompt import SiteSources
from mmprompt.core.sources import ScaledVectors
from mmprompt.errors import UserError, bad_value
from mmprompt.models.sites import Site


class CaptionMethod(Protocol):
    """A frozen dataclass of settings that says where the vectors of a focus stand and how they start."""

    def sources(self, captioner: FrozenCaptioner, captions: Sequence[Sequence[int]], features: Tensor) -> SiteSources:
        """The untrained vectors.

        Args:
            captioner: the frozen model.
            captions: token ids of the captions to learn from, without ends.
            features: [B, T, D'] of some of their pictures.
        """
        ...


@dataclass(frozen=True)
class SoftPrompt(CaptionMethod):
    """Vectors among the decoder's tokens (Lester et al. 2021, "The Power of Scale", sections 2 and 3.2)."""

    n_soft: int = 8
    """Number of vectors, 1 or more."""

    def __post_init__(self) -> None:
        if self.n_soft < 1:
            raise bad_value("n_soft", self.n_soft, "at least one vector is learned", "Use --n-soft 8.")

    def sources(self, captioner: FrozenCaptioner, captions: Sequence[Sequence[int]], features: Tensor) -> SiteSources:
        """The embeddings of the commonest tokens of the captions."""
        values = captioner.decoder.embed(start_tokens(captions, self.n_soft, captioner.device))
        return SiteSources({LM_INPUT: ScaledVectors(values)}).to(captioner.device)


@dataclass(frozen=True)
class KeyValuePrompt(CaptionMethod):
    """Keys and values in every block of the decoder (Li and Liang 2021, "Prefix-Tuning", section 4.2)."""

    n_prefix: int = 4
    """Number of keys and values in each block, 1 or more."""

    def __post_init__(self) -> None:
        if self.n_prefix < 1:
            raise bad_value("n_prefix", self.n_prefix, "at least one is learned", "Use --n-prefix 4.")

    @torch.no_grad()
    def sources(self, captioner: FrozenCaptioner, captions: Sequence[Sequence[int]], features: Tensor) -> SiteSources:
        """The keys and values of the commonest tokens of the captions, averaged over some pictures.

        Raises:
            UserError: the captioner's decoder takes no keys and values.
        """
        if captioner.decoder.kv_shape is None:
            raise UserError(
                f"mode kv was asked for, but the decoder of {captioner.name} takes no keys and values. Use mode soft."
            )
        tokens = start_tokens(captions, self.n_prefix, captioner.device).expand(len(features), -1)
        _, memory = captioner.decoder.run(captioner.open(features), captioner.decoder.embed(tokens))
        sources = {}
        for layer, pair in enumerate(memory.own):
            last = [part[:, :, -self.n_prefix :].mean(0).transpose(0, 1).flatten(1) for part in pair]  # [M, H D/H] each
            sources[Site("lm.kv", layer)] = ScaledVectors(torch.cat(last, dim=1))
        return SiteSources(sources).to(captioner.device)


@dataclass(frozen=True)
class HardPrompt(CaptionMethod):
    """A focus in words: nothing is learned, and it is saved and used like a learned prompt."""

    words: str = ""
    """What stands where a learned prompt has its vectors, such as "the feelings are"."""

    def sources(self, captioner: FrozenCaptioner, captions: Sequence[Sequence[int]], features: Tensor) -> SiteSources:
        """The embeddings of the words.

        Raises:
            UserError: there are none.
        """
        return hard_prompt(captioner, "", self.words).sources


CAPTION_MODES: dict[str, type[CaptionMethod]] = {"soft": SoftPrompt, "kv": KeyValuePrompt, "text": HardPrompt}


def start_tokens(captions: Iterable[Sequence[int]], n: int, device: torch.device) -> Tensor:
    """The n commonest tokens [n] of some captions, repeated where there are fewer; ties go to the smaller id."""
    counts = Counter(token for caption in captions for token in caption)
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    return torch.tensor([ranked[place % len(ranked)] for place in range(n)], device=device)
