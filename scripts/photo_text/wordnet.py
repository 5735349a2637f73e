"""WordNet's nouns: synsets with their words, definitions and more general synsets.

Follows the published file format (`wndb(5WN)`). Knows nothing of pictures or training.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import log
from pathlib import Path

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
