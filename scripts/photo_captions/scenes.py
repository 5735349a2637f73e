"""The captions that the captioner of `photo` learns from: read, made plain, and what each of them names.

Captions of one photograph are a scene. Of the photographs themselves nothing is read, here or anywhere in this folder.
"""

import json
import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mmprompt.captioning.focus_sets import adjectives, nouns, verbs

WORDS = (4, 24)
"""The shortest and the longest caption that is learned from."""
Manner = tuple[int, int, int, int]


@dataclass(frozen=True)
class Caption:
    """One caption in lower case without punctuation but commas, the nouns in it, and the manner it is written in."""

    text: str
    nouns: tuple[str, ...]
    manner: Manner


@dataclass(frozen=True)
class Scene:
    """The captions of one photograph."""

    captions: tuple[Caption, ...]

    @cached_property
    def votes(self) -> Counter[str]:
        """How many of the captions name each noun."""
        return Counter(noun for caption in self.captions for noun in set(caption.nouns))


def plain(text: str) -> str:
    """A caption as it is learned: lower case, letters, digits, commas, hyphens and apostrophes, one space between."""
    kept = re.sub(r"[^a-z0-9,' -]+", " ", text.lower().replace("`", "'"))
    return re.sub(r"\s*,[\s,]*", ", ", " ".join(kept.split())).strip(" ,-'")


def describe(text: str) -> Caption:
    """Find what a caption names, and its manner: how many nouns, verbs and adjectives, and about how long."""
    named = nouns(text)
    length = len(text.split())
    manner = (min(len(set(named)), 5), min(len(verbs(text)), 2), min(len(adjectives(text)), 3), length // 5)
    return Caption(text, named, manner)


def read_scenes(path: Path) -> list[Scene]:
    """Read COCO's captions, in the order of the photographs' numbers."""
    grouped: dict[int, list[str]] = defaultdict(list)
    for row in json.loads(path.read_text(encoding="utf-8"))["annotations"]:
        text = plain(row["caption"])
        if WORDS[0] <= len(text.split()) <= WORDS[1]:
            grouped[row["image_id"]].append(text)
    return [Scene(tuple(describe(text) for text in dict.fromkeys(grouped[key]))) for key in sorted(grouped)]


def by_manner(scenes: list[Scene]) -> dict[Manner, list[str]]:
    """All captions by their manner: those that may stand before one another as examples of it."""
    found: dict[Manner, list[str]] = defaultdict(list)
    for scene in scenes:
        for caption in scene.captions:
            found[caption.manner].append(caption.text)
    return found


def example_of(caption: Caption, examples: dict[Manner, list[str]], rng: random.Random) -> str:
    """Another caption in the same manner, of whatever photograph."""
    return rng.choice(examples[caption.manner])
