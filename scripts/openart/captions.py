"""Scenes with a face, somebody doing something and two objects, and what can be said of them.

A scene has four pieces, one in each quarter. Its captions speak of the objects, the emotion, the action, or of several
of them in any order. Which piece is named where is known, so every caption is true. Knows nothing of models.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from openart import words
from openart.batches import Composer, ground_colours, pick_evenly
from openart.concepts import Concept
from openart.scenes import Scenes, draw_scenes

OBJECTS = (
    "rose", "pear", "cactus", "helicopter", "sunflower", "ice cream", "strawberry", "bicycle", "bee", "burger",
    "elephant", "octopus", "sailboat", "airplane", "violin", "backpack", "egg", "camel", "bird", "cucumber", "door",
    "ferry", "whale", "rooster", "dartboard", "shark", "ring", "microscope", "shopping cart", "light bulb",
)  # fmt: skip
SIZES = (0.38, 0.5)
FOCUSES = ("objects", "emotions", "actions")
TEMPLATES = {
    "objects": ("{0} and {1}", "{0} next to {1}", "there is {0} and {1}", "{0}, {1}", "things like {0} and {1}"),
    "emotions": ("{0} face", "the face is {1}", "somebody looks {1}", "the face looks {1}", "somebody feels {1}"),
    "actions": ("somebody {0}", "a person {0}", "the person is {0}", "somebody is {0}", "one person {0}"),
}
"""An object, an emotion and an action as a sentence. `{0}` of an emotion has its article, `{1}` has none."""


@dataclass(frozen=True)
class Mix:
    """How much of what is said is a mixed sentence, and the fewest pieces that such a sentence names."""

    share: float
    fewest: int


MIXES = ((0, Mix(0.45, 2)), (1700, Mix(0.75, 3)))
"""From which step on. First the parts are learned, one focus at a time; then what a captioner says if nobody asks."""


def mix_at(step: int) -> Mix:
    """The mix of a training step."""
    return [mix for start, mix in MIXES if step >= start][-1]


@dataclass(frozen=True)
class Content:
    """What a scene shows: two objects, an emotion, an action, and the word of its background or an empty string."""

    objects: tuple[str, str]
    emotion: str
    action: str
    background: str = ""

    def sentence(self, focus: str, rng: np.random.Generator) -> str:
        """One sentence about one focus."""
        template = TEMPLATES[focus][rng.integers(len(TEMPLATES[focus]))]
        if focus == "objects":
            return template.format(*(with_article(name) for name in rng.permutation(self.objects)))
        if focus == "emotions":
            return template.format(with_article(self.emotion), self.emotion)
        return template.format(self.action)

    def mixed(self, rng: np.random.Generator, fewest: int = 2) -> str:
        """One sentence about some of the four pieces or all, in any order."""
        pieces = [with_article(name) for name in self.objects]
        pieces += [with_article(f"{self.emotion} face"), f"{('somebody', 'a person')[rng.integers(2)]} {self.action}"]
        chosen = [str(piece) for piece in rng.permutation(pieces)[: rng.integers(fewest, 5)]]
        text = ", ".join(chosen[:-1]) + (" and ", ", ", " next to ")[rng.integers(3)] + chosen[-1]
        return f"{text} on {with_article(self.background)} background" if self.background else text

    def text(self, rng: np.random.Generator, mix: Mix) -> str:
        """What one speaker says: a mixed sentence, or one to three sentences about single focuses in any order."""
        if rng.random() < mix.share:
            return f"{self.mixed(rng, mix.fewest)}."
        said = rng.permutation(FOCUSES)[: rng.integers(1, 4)]
        return " ".join(f"{self.sentence(focus, rng)}." for focus in said)


def sentences(content: Content, focus: str, rng: np.random.Generator, n: int) -> list[str]:
    """Several different sentences about one focus."""
    found: dict[str, None] = {}
    while len(found) < n:
        found[f"{content.sentence(focus, rng)}."] = None
    return list(found)


def with_article(name: str) -> str:
    """The name with "a" or "an" before it."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def quarter_scenes(rng: np.random.Generator, concepts: np.ndarray) -> Scenes:
    """Four pieces, each in a quarter of its own: concepts [B, 4]."""
    n = len(concepts)
    corner = rng.permuted(np.tile(np.arange(4), (n, 1)), axis=1)
    size = rng.uniform(*SIZES, (n, 4))
    slack = 0.5 - size
    x = 0.5 * (corner % 2) + size / 2 + rng.random((n, 4)) * slack
    y = 0.5 * (corner // 2) + size / 2 + rng.random((n, 4)) * slack
    angle = np.clip(rng.normal(0, 0.12, (n, 4)), -0.35, 0.35)
    flip = np.where(rng.random((n, 4)) < 0.35, -1.0, 1.0)
    return Scenes(concepts, x, y, size, angle, flip)


class SceneMaker:
    """Draws batches of scenes in the styles of pretraining, with what they show."""

    def __init__(self, composer: Composer) -> None:
        self.composer = composer
        self.objects = [i for i in composer.objects if composer.concepts[i].name in OBJECTS]
        emotions, actions = set(words.EMOTIONS), {*words.ACTIONS, *words.EXTRA_ACTION_LABELS}
        self.faces = {e: members for e, members in composer.by_emotion.items() if e in emotions}
        self.people = {a: members for a, members in composer.by_action.items() if a in actions}

    def concepts(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Two objects, a face and a person: [n, 4]."""
        two = np.array([self.composer.pick_objects(rng, 2, self.objects) for _ in range(n)])
        faces, people = pick_evenly(rng, self.faces, n), pick_evenly(rng, self.people, n)
        return np.column_stack([two, faces, people])

    def drawn_in(self, rng: np.random.Generator, style: str) -> np.ndarray:
        """Two objects, a face and a person [4] that a style draws and pretraining saw."""
        rows = self.composer.prepared.rows[style]
        while True:
            found = self.concepts(rng, 1)[0]
            if all(rows[i] >= 0 for i in found):
                return found

    def batch(self, seed: int, step: int, n: int, strength: float) -> tuple[Tensor, list[Content]]:
        """Pictures [n, 3, S, S] in 0..1 and what they show, a pure function of (seed, step)."""
        rng = np.random.default_rng([seed, step, 4])
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        scenes = quarter_scenes(rng, self.concepts(rng, n))
        ground, colour = ground_colours(rng, n, self.composer.side, generator)
        sprites = self.composer.pick_sprites(rng, scenes.concept, strength, generator)
        names = list(words.BACKGROUNDS)
        contents = [
            content_of(self.composer.concepts, row, names[c] if c >= 0 else "")
            for row, c in zip(scenes.concept, colour, strict=True)
        ]
        return draw_scenes(sprites, scenes, ground), contents


def content_of(concepts: list[Concept], row: np.ndarray, background: str) -> Content:
    """What the four concepts of a scene show."""
    one, other, face, person = (concepts[i] for i in row)
    return Content((one.name, other.name), face.emotion, person.action, background)
