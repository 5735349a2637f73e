"""One training batch as a pure function of (seed, step): scenes, their captions and which caption is true of which.

Knows the concepts and the words; knows nothing of models.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from openart import words
from openart.artwork import STYLES
from openart.concepts import Concept, forbidden_names
from openart.prepared import Prepared
from openart.scenes import (
    Scenes,
    backgrounds,
    draw_scenes,
    join,
    pair_scenes,
    pastels,
    restyle,
    row_scenes,
    single_scenes,
)

RELATIONS = ("left", "right", "large", "small")


@dataclass(frozen=True)
class Sizes:
    """How many images of each form a batch holds, and among how many objects its pairs are drawn."""

    singles: int = 24
    pairs: int = 52
    people: int = 20
    objects: int = 24
    tags: int = 16


@dataclass(frozen=True)
class Difficulty:
    """How hard the images are: the first steps show few concepts, large and little changed."""

    n_concepts: int = 1 << 30  # plain objects in use
    least_size: float = 0.28  # of single pieces
    strength: float = 1.0  # of the restyling, 0 to 1


@dataclass
class Group:
    """One softmax: the images it asks, its captions, and the truth table."""

    name: str
    images: Tensor  # [n] indices
    captions: Tensor  # [m] indices
    truth: Tensor  # [n, m] bool
    swapped: Tensor | None = None  # [n] the caption that names the other piece; of relations only


@dataclass
class Batch:
    """Images with their distinct captions, the groups, and targets of the throw-away heads."""

    images: Tensor  # [B, 3, S, S] in 0..1
    captions: list[str]
    groups: list[Group]
    parts: Tensor  # [B, 3] the concept of each slot, or -1
    related: dict[str, Tensor]  # by relation, [B] the concept in it, or -1
    place: Tensor  # [B, 3] x, y and 1 for single pieces, 0 elsewhere


class Composer:
    """Holds the sprites and the lists a batch is drawn from."""

    def __init__(self, prepared: Prepared, side: int) -> None:
        self.side, self.prepared = side, prepared
        self.concepts = prepared.concepts
        rows = prepared.pretraining_rows()
        used = sorted({r for row in rows for r in row})
        position = {r: i for i, r in enumerate(used)}
        self.rows = [[position[r] for r in row] for row in rows]
        large = np.stack([prepared.sprites[r] for r in used]).reshape(len(used), 4, 56, 2, 56, 2)
        self.sprites = torch.from_numpy(large.mean((3, 5), dtype=np.float32).round().astype(np.uint8))
        shown = [i for i, row in enumerate(rows) if row]
        # in a fixed random order, objects first: the first steps use the head of both lists
        order = np.random.default_rng(0).permutation(shown)
        self.objects = [int(i) for i in order if is_plain_object(self.concepts[i], len(rows[i]))]
        self.objects.sort(key=lambda i: self.concepts[i].relational != "seen")
        first = set(self.objects)
        self.shown = np.array([*self.objects, *(int(i) for i in order if int(i) not in first)])
        self.by_emotion, self.by_action = (group_by(self.concepts, shown, field) for field in ("emotion", "action"))
        forbidden = forbidden_names(self.concepts)
        self.tags = [{t for t in c.tags if not forbidden & {t, *t.split()}} for c in self.concepts]
        self.kinds = sorted({c.kind for c in self.concepts if c.kind})

    def pick_objects(self, rng: np.random.Generator, n: int, among: list[int]) -> np.ndarray:
        """Objects no two of which share a word of their names."""
        chosen: list[int] = []
        taken: set[str] = set()
        for i in rng.permutation(among):
            name = set(self.concepts[i].name.split())
            if not name & taken:
                chosen.append(int(i))
                taken |= name
            if len(chosen) == n:
                break
        return np.array(chosen)

    def batch(self, seed: int, step: int, rank: int, sizes: Sizes, difficulty: Difficulty) -> Batch:
        """The batch of one worker in one step."""
        rng = np.random.default_rng([seed, step, rank])
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        objects = self.pick_objects(rng, sizes.objects, self.objects[: difficulty.n_concepts])
        scenes = self.scenes(rng, objects, sizes, difficulty)
        ground, colour = ground_colours(rng, len(scenes.concept), self.side, generator)
        sprites = self.pick_sprites(rng, scenes.concept, difficulty.strength, generator)
        images = draw_scenes(sprites, scenes, ground)
        captions = Captions(self, rng, scenes, objects, sizes, colour)
        return captions.batch(images, even=step % 2 == 0)

    def scenes(self, rng: np.random.Generator, objects: np.ndarray, sizes: Sizes, difficulty: Difficulty) -> Scenes:
        """Singles, then pairs, then people."""
        half = sizes.singles // 2
        single = np.concatenate([rng.choice(objects, half), self.pick_others(rng, sizes.singles - half)])
        parts = [single_scenes(rng, single, (difficulty.least_size, 0.95))]
        if sizes.pairs:
            two = np.array([rng.choice(objects, 2, replace=False) for _ in range(sizes.pairs)])
            parts.append(pair_scenes(rng, two[:, 0], two[:, 1]))
        if sizes.people:
            three = np.full((sizes.people, 3), -1)
            three[:, 0] = pick_evenly(rng, self.by_emotion, len(three))
            three[:, 1] = pick_evenly(rng, self.by_action, len(three))
            with_object = rng.random(len(three)) < 0.4
            three[with_object, 2] = rng.choice(objects, with_object.sum())
            parts.append(row_scenes(rng, three))
        return join(parts)

    def pick_others(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Singles of any sort: a third faces, a third people, a third anything."""
        faces, people = pick_evenly(rng, self.by_emotion, n // 3), pick_evenly(rng, self.by_action, n // 3)
        return np.concatenate([faces, people, rng.choice(self.shown, n - 2 * (n // 3))])

    def pick_sprites(
        self, rng: np.random.Generator, concept: np.ndarray, strength: float, generator: torch.Generator
    ) -> Tensor:
        """A drawing of a random style for every slot, restyled: [B, 3, 4, s, s] float in 0..1."""
        slots = np.argwhere(concept >= 0)
        chosen = [self.rows[concept[b, k]][rng.integers(len(self.rows[concept[b, k]]))] for b, k in slots]
        drawn = restyle(self.sprites[torch.tensor(chosen)].float() / 255, generator, strength)
        sprites = drawn.new_zeros(*concept.shape, *drawn.shape[1:])
        sprites[torch.from_numpy(slots[:, 0]), torch.from_numpy(slots[:, 1])] = drawn
        return sprites


def pick_evenly(rng: np.random.Generator, groups: dict[str, list[int]], n: int) -> np.ndarray:
    """Members [n], every group equally likely."""
    names = list(groups)
    return np.array([rng.choice(groups[names[i]]) for i in rng.integers(len(names), size=n)], dtype=int)


def is_plain_object(concept: Concept, n_styles: int) -> bool:
    """Whether a concept may stand in a scene with another: plain, short of name, and drawn in every training style.

    Clock faces are left out: they differ in their hands only.
    """
    every = sum(s.role == "train" for s in STYLES)
    return concept.is_object and n_styles == every and concept.kind != "clock" and len(concept.name.split()) <= 2


def group_by(concepts: list[Concept], members: list[int], field: str) -> dict[str, list[int]]:
    """Members by the value of one field, sorted by value; those without one are left out."""
    values = sorted({getattr(concepts[i], field) for i in members} - {""})
    return {value: [i for i in members if getattr(concepts[i], field) == value] for value in values}


def ground_colours(
    rng: np.random.Generator, n: int, side: int, generator: torch.Generator
) -> tuple[Tensor, np.ndarray]:
    """Backgrounds [n, 3, side, side] and the index of their colour word, or -1 [n]."""
    named = np.where(rng.random(n) < 0.4, rng.integers(len(words.BACKGROUNDS), size=n), -1)
    table = torch.tensor(list(words.BACKGROUNDS.values())) / 255
    colours, others = pastels(n, generator), pastels(n, generator)
    pure = torch.from_numpy(named >= 0)
    jitter = 0.03 * torch.randn(n, 3, generator=generator)
    colours = torch.where(pure[:, None], (table[torch.from_numpy(named).clamp_min(0)] + jitter).clamp(0, 1), colours)
    ways = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    direction = ways[torch.randint(4, (n,), generator=generator)] * ~pure[:, None]
    return backgrounds(colours, others, direction, side), named


@dataclass
class Captions:
    """Collects the captions of one batch and builds its groups."""

    composer: Composer
    rng: np.random.Generator
    scenes: Scenes
    objects: np.ndarray
    sizes: Sizes
    colour: np.ndarray
    captions: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, names: list[str]) -> Tensor:
        """Captions of one randomly chosen template; returns their indices."""
        templates = words.TEMPLATES[kind]
        template = templates[self.rng.integers(len(templates))]
        return torch.tensor([self.captions.setdefault(template.format(n), len(self.captions)) for n in names])

    def batch(self, images: Tensor, even: bool) -> Batch:
        """The groups over the drawn images: relations and names always, the rest in turn (text is not free)."""
        parts = torch.from_numpy(self.scenes.concept)
        groups = [*self.relations(), self.labels()]
        if even:
            groups += [self.attribute("kind", self.composer.kinds), self.tags()]
        else:
            groups.append(self.attribute("emotion", list(self.composer.by_emotion)))
            groups.append(self.attribute("action", list(self.composer.by_action)))
            groups.append(self.background())
        return Batch(images, list(self.captions), groups, parts, self.related(), self.place())

    def place(self) -> Tensor:
        """Where the single pieces stand."""
        alone = (self.scenes.concept >= 0).sum(1) == 1
        place = np.stack([self.scenes.x[:, 0], self.scenes.y[:, 0], np.ones(len(alone))], 1) * alone[:, None]
        return torch.from_numpy(place).float()

    def background(self) -> Group:
        """The colour word of the images that have one."""
        rows = np.nonzero(self.colour >= 0)[0]
        names = list(words.BACKGROUNDS)
        truth = torch.from_numpy(self.colour[rows, None] == np.arange(len(names)))
        return Group("background", torch.from_numpy(rows), self.add("background", names), truth)

    def related(self) -> dict[str, Tensor]:
        """Which concept of each pair stands in each relation; -1 for images that are no pairs."""
        start, stop = self.sizes.singles, self.sizes.singles + self.sizes.pairs
        found = {r: torch.full((len(self.scenes.concept),), -1) for r in RELATIONS}
        left, right = torch.from_numpy(self.scenes.concept[start:stop, :2]).unbind(1)
        first_large = torch.from_numpy(self.scenes.size[start:stop, 0] > self.scenes.size[start:stop, 1])
        found["left"][start:stop], found["right"][start:stop] = left, right
        found["large"][start:stop] = torch.where(first_large, left, right)
        found["small"][start:stop] = torch.where(first_large, right, left)
        return found

    def relations(self) -> list[Group]:
        """For each relation a softmax over all objects of the batch in that relation's template."""
        if not self.sizes.pairs:
            return []
        start, stop = self.sizes.singles, self.sizes.singles + self.sizes.pairs
        related = {r: v[start:stop] for r, v in self.related().items()}
        order = torch.tensor(self.objects)
        other = {"left": "right", "right": "left", "large": "small", "small": "large"}
        groups = []
        for r in RELATIONS:
            captions = self.add(r, [self.composer.concepts[i].name for i in self.objects])
            truth = related[r][:, None] == order
            swapped = (related[other[r]][:, None] == order).int().argmax(1)
            groups.append(Group(r, torch.arange(start, stop), captions, truth, swapped))
        return [*groups, self.opposites("side", groups[0], groups[1]), self.opposites("size", groups[2], groups[3])]

    def opposites(self, name: str, one: Group, other: Group) -> Group:
        """One softmax over both captions of every object: which object, and on which side (or of which size).

        Singles that stand clearly on one side (or are clearly large or small) are asked too: they teach the words
        before there is anything to hold a piece against.
        """
        half, order = self.sizes.singles // 2, torch.tensor(self.objects)
        single = torch.from_numpy(self.scenes.concept[:half, 0])[:, None] == order
        value = torch.from_numpy(self.scenes.x[:half, 0] if name == "side" else -self.scenes.size[:half, 0])
        low, high = (0.44, 0.56) if name == "side" else (-0.6, -0.4)
        clear = ((value < low) | (value > high)).nonzero()[:, 0]
        single = torch.cat([single & (value < low)[:, None], single & (value > high)[:, None]], 1)[clear]
        truth = torch.cat([single, torch.cat([one.truth, other.truth], 1)])
        return Group(name, torch.cat([clear, one.images]), torch.cat([one.captions, other.captions]), truth)

    def labels(self) -> Group:
        """Bare names of all objects of the batch and of the singles, true of every image that shows them."""
        single = {int(i) for i in self.scenes.concept[: self.sizes.singles, 0]}
        candidates = torch.tensor(sorted({*self.objects, *single}))
        truth = (torch.from_numpy(self.scenes.concept)[:, :, None] == candidates).any(1)
        captions = self.add("label", [self.composer.concepts[int(i)].name for i in candidates])
        return asked("label", captions, truth)

    def attribute(self, field: str, values: list[str]) -> Group:
        """A kind, emotion or action, true of every image with a part that has it."""
        index = {v: i for i, v in enumerate(values)}
        truth = np.zeros((len(self.scenes.concept), len(values)), bool)
        for b, k in np.argwhere(self.scenes.concept >= 0):
            value = getattr(self.composer.concepts[self.scenes.concept[b, k]], field)
            if value:
                truth[b, index[value]] = True
        return asked(field, self.add(field, values), torch.from_numpy(truth))

    def tags(self) -> Group:
        """Keywords of the singles and pairs."""
        upto = self.sizes.singles + self.sizes.pairs
        shown = [{t for i in row if i >= 0 for t in self.composer.tags[i]} for row in self.scenes.concept[:upto]]
        known = sorted(set().union(*shown))
        chosen = [known[i] for i in self.rng.permutation(len(known))[: self.sizes.tags]]
        truth = torch.tensor([[t in s for t in chosen] for s in shown])
        return asked("tag", self.add("tag", chosen), truth)


def asked(name: str, captions: Tensor, truth: Tensor) -> Group:
    """A group over the images of which at least one caption is true."""
    images = truth.any(1).nonzero()[:, 0]
    return Group(name, images, captions, truth[images])
