"""The texts that the tower learns from: names alone, in templates, with what they are or mean; and its vocabulary."""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from openart.tokenizer import PIECES
from photo_text.sources import Nouns, WordVectors, imagenet_names

TEMPLATES = tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
N_LETTERS = 2 * 256 + 2  # bytes, bytes at the end of a word, start and end


@dataclass(frozen=True)
class Entry:
    """A name, in lower case, in one of its meanings."""

    name: str
    offset: int  # of the meaning, in WordNet
    is_first: bool = True  # the name alone means this
    leaf: int | None = None  # row of the ImageNet class that goes by this name


def gather(nouns: Nouns, vectors: WordVectors, leaves: list[int], n_common: int) -> dict[str, list[Entry]]:
    """Names of ImageNet's classes, and every other noun in every meaning that is something physical.

    These are `common` where all words are among the `n_common` commonest, which the order of the vectors tells, or
    `rare`.
    """
    physical = next(s.offset for s in nouns.synsets.values() if s.lemmas == ("physical entity",))
    pairs = zip(imagenet_names(), leaves, strict=True)
    groups = {"classes": [Entry(name.lower(), leaf, True, row) for row, (name, leaf) in enumerate(pairs)]}
    groups |= {"common": [], "rare": []}
    for name, offsets in nouns.senses.items():
        words = re.findall(r"[a-z]+", name)
        rank = max((vectors.rows.get(word, len(vectors.rows)) for word in words), default=len(vectors.rows))
        things = [offset for offset in offsets if physical in nouns.ancestors(offset)]
        entries = [Entry(name, offset, i == 0) for i, offset in enumerate(things)]
        groups["common" if rank < n_common else "rare"] += entries
    return groups


def spoken(entry: Entry, nouns: Nouns, rng: random.Random) -> str:
    """A text for an entry. Where the name alone means something else, the text says what is meant."""
    synset = nouns.synsets[entry.offset]
    draw = rng.random() if entry.is_first else rng.uniform(0.68, 1)
    if draw < 0.4:
        return entry.name
    if draw < 0.68:
        return rng.choice(TEMPLATES).format(entry.name)
    kind = nouns.synsets[rng.choice(synset.hypernyms)].lemmas[0] if synset.hypernyms else "thing"
    if draw < 0.79:
        return f"{kind}: {entry.name}"
    if draw < 0.86:
        return f"{entry.name}, a kind of {kind}"
    return f"{entry.name}, {synset.definition}" if draw < 0.93 else synset.definition


def learn_vocabulary(groups: dict[str, list[Entry]], nouns: Nouns, size: int) -> list[tuple[str, str]]:
    """Byte-pair merges for the texts, `size` ids in all; the common names count more."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    words = pre_tokenizers.Split(Regex(PIECES), "removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(weighted(groups, nouns), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(first, second) for first, second in merges[: size - N_LETTERS]]


def weighted(groups: dict[str, list[Entry]], nouns: Nouns) -> Iterator[str]:
    """The texts that the vocabulary is learnt from."""
    for group, entries in groups.items():
        for entry in entries:
            yield from [entry.name] * (1 if group == "rare" else 10)
            yield nouns.synsets[entry.offset].definition.lower()
    for template in TEMPLATES:
        yield from [template.lower()] * 500
