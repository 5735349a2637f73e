"""How prompts in words are searched: settings, and the one step that each way adds to scoring. No loop over rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from mmprompt.core.soft import RECIPE
from mmprompt.language.search.words import TokenIds
from mmprompt.settings import Count, check_settings
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor


N_TRIES = 64
"""How often one token of a prompt is exchanged for the next nearest until its text is read back."""


@dataclass(frozen=True)
class WordSearch:
    """What both ways of searching share."""

    n_steps: Count = 100
    """Most steps; the best words on the way are kept."""
    batch_size: Count = 16
    """Rows of a gradient, and of a first look at a prompt; what does well there is scored on all."""
    n_rows: Count = 128
    """Most training rows that prompts are scored on, as many of each class."""
    ascii_only: bool = True
    """Leave out tokens beyond ASCII. Special tokens and what cannot be printed are always left out."""
    fluency: Annotated[float, Ge(0)] = 0.0
    """Weight of the prompt's own improbability to the model, in nats a token, beside the loss; 0 for none."""

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def recipe(self) -> Recipe:
        """Steps and rows as a training has them; a step counts as an epoch."""
        return replace(RECIPE, epochs=self.n_steps, batch_size=self.batch_size)


@dataclass(frozen=True)
class Projection(WordSearch):
    """Soft vectors are moved by the gradient at the nearest words (Wen et al. 2023, "Hard Prompts Made Easy", PEZ)."""

    lr: float = 0.3
    """Learning rate, in units of the token embeddings' size."""
    weight_decay: float = 0.0
    """Pull of the soft vectors towards zero."""

    @property
    def recipe(self) -> Recipe:
        """Its optimiser, too; checks learning rate and weight decay."""
        return replace(super().recipe, lr=self.lr, weight_decay=self.weight_decay)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.recipe  # noqa: B018


@dataclass(frozen=True)
class CoordinateSearch(WordSearch):
    """One token a step is exchanged for the best of some that the gradient proposes (Shin et al. 2020, "AutoPrompt"),
    candidates drawn over all places (Zou et al. 2023, "Universal and Transferable Adversarial Attacks").
    """

    n_steps: Count = 14
    """Most steps; in each of them one token is exchanged, or none."""
    n_candidates: Count = 24
    """Prompts that are scored in a step."""
    top_k: Count = 64
    """Tokens that the gradient proposes for each place, of which candidates are drawn."""
    patience: Count = 5
    """Steps without a gain after which the search ends."""


SEARCHES: dict[str, type[WordSearch]] = {"projection": Projection, "coordinates": CoordinateSearch}


class Vocabulary:
    """The tokens that a prompt may hold.

    Args:
        embeddings: [V, D] of all tokens.
        allowed: [V] bool.
    """

    def __init__(self, embeddings: Tensor, allowed: Tensor) -> None:
        import torch.nn.functional as F

        self.allowed = allowed
        self._known = allowed.nonzero()[:, 0]
        self._directions = F.normalize(embeddings[self._known], dim=-1)

    def __len__(self) -> int:
        return len(self._known)

    def nearest(self, vectors: Tensor, k: int) -> Tensor:
        """[P, k] int64, the tokens nearest to vectors [P, D] by the cosine to their embeddings, best first."""
        import torch.nn.functional as F

        cosine = F.normalize(vectors.to(self._directions.dtype), dim=-1) @ self._directions.T
        return self._known[cosine.topk(min(k, len(self)), dim=-1).indices]

    def proposals(self, gradient: Tensor, ids: TokenIds, k: int) -> Tensor:
        """[P, k] int64, for each place the tokens that would lower the loss most by its linear estimate, best first.

        Args:
            gradient: [P, V], of the loss by what stands in each place, one-hot.
            ids: P tokens, which are not proposed again for their own places.
            k: at most; fewer where fewer tokens are allowed.
        """
        scores = gradient.masked_fill(~self.allowed, float("inf"))
        scores[range(len(ids)), ids] = float("inf")
        return scores.topk(min(k, len(self) - 1), dim=-1, largest=False).indices


def readable(nearest: Sequence[Sequence[int]], first_misread: Callable[[TokenIds], int | None]) -> TokenIds | None:
    """The nearest tokens whose text is read back: where it is not, the token in that place becomes its next nearest.

    Args:
        nearest: for each of P places the tokens that may stand there, best first.
        first_misread: which token is not read back, None for none.
    Returns:
        P tokens, or None where there are none such within `N_TRIES` exchanges.
    """
    rank = [0] * len(nearest)
    for _ in range(N_TRIES):
        ids = tuple(some[n] for some, n in zip(nearest, rank, strict=True))
        place = first_misread(ids)
        if place is None:
            return ids
        if rank[place] + 1 == len(nearest[place]):
            return None
        rank[place] += 1
    return None
