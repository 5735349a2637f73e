"""What the image tower might see of a scene: image features drawn from words, for captions without photographs.

A photograph shows some of what its captions name, each thing as one or a few of ImageNet's classes, among things that
nobody wrote of. Its features lie where those classes lie, mixed, with as much beside them as real features have.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from photo_captions.likeness import Weights

DIRECTIONS = 512
"""Of the classifier's own directions, in which features are drawn; the rest of a real feature is noise to it."""


@dataclass(frozen=True)
class Spread:
    """The ranges that features are drawn from, wide enough for photographs of any kind."""

    signal: tuple[float, float] = (0.35, 0.7)
    """Cosine between a feature and the classes that are in it."""
    size: tuple[float, float] = (0.55, 0.9)
    """Norm of a feature in these directions, where that of the whole is 1."""
    n_classes: tuple[int, int] = (3, 10)
    seen: float = 0.6
    """Share of what a caption names that shows in the features; of what the other captions name it is half as much."""
    scene: float = 0.35
    """Weight of the scene as a whole beside that of the things in it."""
    stray: float = 0.25
    """Weight of classes that have nothing to do with the scene."""


class Simulator:
    """Draws image features of scenes.

    Args:
        words, gains, taxonomy: [V, 1000] likenesses of nouns to classes.
        scenes: [S, 1000] likeness of scenes to classes.
        classes: [1000, n], where images of each class lie.
        weights: of the likenesses.
        spread: how features vary.
    """

    def __init__(
        self,
        words: Tensor,
        gains: Tensor,
        taxonomy: Tensor,
        scenes: Tensor,
        classes: Tensor,
        weights: Weights | None = None,
        spread: Spread | None = None,
    ) -> None:
        weights, self.spread = weights or Weights(), spread or Spread()
        scores = weights.words * words + weights.gain * gains + weights.taxonomy * taxonomy
        # Two temperatures: classifiers are now sure of the likeliest class, now taken with others that are like it.
        self.nouns = 0.7 * scores.softmax(-1) + 0.3 * (0.5 * scores).softmax(-1)
        # What is like no class shows in none: the surer the best likeness, the more of it is seen.
        sure = scores.amax(-1)
        self.strength = (sure / sure.quantile(0.9)).clamp(0.2, 1.0)
        self.scenes = (weights.scene * scenes).softmax(-1)
        self.classes = classes

    def draw(self, scenes: list[int], named: list[list[tuple[int, float]]], generator: torch.Generator) -> Tensor:
        """Draw features [B, n] of some scenes.

        Args:
            scenes: their rows.
            named: of each the nouns that may show, with the share of captions that name them.
            generator: of all that is random here.
        """
        uniform = lambda low, high: low + (high - low) * torch.rand(len(scenes), 1, generator=generator)  # noqa: E731
        mixed = self.spread.scene * self.scenes[scenes]
        for row, nouns in enumerate(named):
            if not nouns:
                continue
            rows, shares = torch.tensor([noun for noun, _ in nouns]), torch.tensor([share for _, share in nouns])
            shows = torch.rand(len(nouns), generator=generator) < self.spread.seen * shares
            amount = shows * self.strength[rows] * torch.rand(len(nouns), generator=generator).mul(2).exp()
            if amount.sum() > 0:
                mixed[row] += (1 - self.spread.scene) * (amount / amount.sum()) @ self.nouns[rows]
        stray = torch.rand(len(scenes), 1, generator=generator).square() * self.spread.stray
        mixed = mixed / mixed.sum(1, keepdim=True) * (1 - stray) + stray / mixed.shape[1]
        low, high = (min(n, mixed.shape[1]) for n in self.spread.n_classes)
        n_classes = torch.randint(low, high + 1, (len(scenes), 1), generator=generator)
        taken = mixed.multinomial(high, replacement=True, generator=generator)  # [B, high]
        amounts = -torch.rand(taken.shape, generator=generator).log()
        amounts = (amounts * (torch.arange(high) < n_classes))[..., None]
        signal = F.normalize((amounts * self.classes[taken]).sum(1), dim=-1)
        noise = F.normalize(torch.randn(signal.shape, generator=generator), dim=-1)
        share = uniform(*self.spread.signal)
        return uniform(*self.spread.size) * (share * signal + (1 - share.square()).sqrt() * noise)
