"""Where the image tower should expect images of a name: a target for every noun of WordNet, without an image.

The classifier of the image tower says where images of ImageNet's 1,000 classes lie. Any other noun is put between
the classes that it resembles: by its place in WordNet (Lin 1998, with the information content of Seco et al. 2004), by
word vectors of its name and by word vectors of its definition.
"""

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from photo_text.sources import Nouns, WordVectors


@dataclass(frozen=True)
class Weights:
    """How much each likeness to a class counts in the softmax over classes."""

    taxonomy: float
    name: float
    definition: float


def class_targets(classifier: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The projection [E, F] of image features, and where images of each class lie after it, [1000, E] of unit norm.

    The projection is made of the first right singular vectors of the centred classifier [1000, F].
    """
    centred = classifier - classifier.mean(dim=0)
    projection = torch.linalg.svd(centred, full_matrices=False).Vh[:width]
    return projection, F.normalize(centred @ projection.T, dim=-1)


class Teacher:
    """Targets of nouns, from those [1000, E] of ImageNet's classes, whose offsets are `leaves`, in that order."""

    def __init__(
        self, nouns: Nouns, vectors: WordVectors, leaves: list[int], targets: Tensor, weights: Weights
    ) -> None:
        self.nouns, self.vectors, self.leaves, self.targets, self.weights = nouns, vectors, leaves, targets, weights
        self.below: dict[int, Tensor] = {}
        for row, leaf in enumerate(leaves):
            for ancestor in nouns.ancestors(leaf):
                self.below.setdefault(ancestor, torch.zeros(len(leaves)))[row] = nouns.information[ancestor]
        self.leaf_information = torch.tensor([nouns.information[leaf] for leaf in leaves])
        lemmas = [[self._words(lemma) for lemma in nouns.synsets[leaf].lemmas] for leaf in leaves]
        self.leaf_names = F.normalize(torch.stack([torch.stack(some).mean(dim=0) for some in lemmas]), dim=-1)
        self.leaf_definitions = torch.stack([self._definition(leaf) for leaf in leaves])

    def target(self, name: str, offset: int) -> Tensor:
        """Where images of a name in one meaning are expected: [E] of unit norm."""
        score = (
            self.weights.taxonomy * self._taxonomy(offset)
            + self.weights.name * (self.leaf_names @ self._words(name))
            + self.weights.definition * (self.leaf_definitions @ self._definition(offset))
        )
        return F.normalize(score.softmax(dim=0) @ self.targets, dim=0)

    def _taxonomy(self, offset: int) -> Tensor:
        """Lin's similarity of a meaning to each class: [1000]."""
        shared = [self.below[ancestor] for ancestor in self.nouns.ancestors(offset) if ancestor in self.below]
        information = self.nouns.information[offset] + self.leaf_information
        return 2 * torch.stack(shared).amax(dim=0) / information

    def _words(self, text: str) -> Tensor:
        return F.normalize(self.vectors.mean(words_of(text)), dim=0)

    def _definition(self, offset: int) -> Tensor:
        """The mean vector of a definition's words; the commonest 2,000 words count less."""
        words = words_of(self.nouns.synsets[offset].definition)
        rarity = [min(1.0, self.vectors.rows.get(word, 0) / 2000) for word in words]
        return F.normalize(self.vectors.mean(words, rarity), dim=0)


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(r"[a-z]+", text.lower())
