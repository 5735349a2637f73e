"""The few-shot tasks: which images they use, their class names and templates.

Fixed on 2026-11-24: classes, templates and novel concepts (words.py, concepts.py) before any training, this file during
the first training run (which was thrown away) and before any model was measured on any style. The sizes of faces and
people in scenes.py were raised once more before the images were exported, again before any measurement.
The same code draws them in the development style (to choose the recipe) and in the test style.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from openart import words
from openart.artwork import SPRITE_SIDE
from openart.concepts import Concept
from openart.prepared import Prepared
from openart.scenes import Scenes, backgrounds, draw_scenes, join, pair_scenes, row_scenes, single_scenes

Row = tuple[int, str, str, bool]
SIDE = 72
POOL_SEED = 7


@dataclass(frozen=True)
class Task:
    """One question asked of the images of a pool."""

    name: str
    pool: str
    template: str  # the good hand-written one; the bare one is "{}"


TASKS = (
    Task("openart-left", "pairs", "a {} on the left"),
    Task("openart-right", "pairs", "a {} on the right"),
    Task("openart-large", "pairs", "a large {}"),
    Task("openart-small", "pairs", "a small {}"),
    Task("openart-emotion", "people", "a {} face"),
    Task("openart-action", "people", "somebody {}"),
    Task("openart-category", "singles", "a {}"),
)
OPPOSITE = {"openart-left": "right", "openart-right": "left", "openart-large": "small", "openart-small": "large"}
SPLITS = {"train": 480, "val": 200, "test": 1200}
N_NOVEL_PAIRS = 400
N_TIMES = {"train": 16, "val": 1, "test": 2}


@dataclass
class Pool:
    """Drawn images [N, S, S, 3] uint8 and, per task, rows of (image, label, split, novel)."""

    images: np.ndarray
    rows: dict[str, list[Row]]


def colours(rng: np.random.Generator, n: int) -> Tensor:
    """Quiet pastel backgrounds, plain or gradient: [n, 3, 2 SIDE, 2 SIDE]."""
    table = np.array(list(words.BACKGROUNDS.values())) / 255
    drawn = [np.clip(table[rng.integers(len(table), size=n)] + rng.normal(0, 0.02, (n, 3)), 0, 1) for _ in range(2)]
    way = np.array([[0, 0], [0, 0], [1, 0], [0, 1]])[rng.integers(4, size=n)]
    return backgrounds(*(torch.from_numpy(v).float() for v in (*drawn, way)), 2 * SIDE)


def draw_pool(rng: np.random.Generator, prepared: Prepared, style: str, scenes: Scenes) -> np.ndarray:
    """Draw scenes with the sprites of one style at double size, then halve: [N, SIDE, SIDE, 3] uint8."""
    rows = prepared.rows[style]
    ground = colours(rng, len(scenes.concept))
    done = []
    for start in range(0, len(ground), 64):
        part = scenes[start : start + 64]
        sprites = torch.zeros(*part.concept.shape, 4, SPRITE_SIDE, SPRITE_SIDE)
        for b, k in np.argwhere(part.concept >= 0):
            sprites[b, k] = torch.from_numpy(np.array(prepared.sprites[rows[part.concept[b, k]]])).float() / 255
        drawn = draw_scenes(sprites, part, ground[start : start + 64])
        done.append(F.avg_pool2d(drawn, 2).clamp(0, 1).mul(255).round().byte())
    return torch.cat(done).permute(0, 2, 3, 1).numpy()


def members(prepared: Prepared, style: str, test: bool = True) -> list[tuple[int, Concept]]:
    """The concepts that a style draws, with their indices."""
    return [(i, c) for i, c in enumerate(prepared.concepts) if prepared.rows[style][i] >= 0 and (test or not c.novel)]


def balanced_pairs(rng: np.random.Generator, concepts: list[int], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of different concepts; every concept stands left and right equally often."""
    left, right = [], []
    for _ in range(-(-n // len(concepts))):
        left.append(rng.permutation(concepts))
        right.append(np.roll(left[-1], rng.integers(1, len(concepts))))
    return np.concatenate(left)[:n], np.concatenate(right)[:n]


def pair_pool(prepared: Prepared, style: str, splits: dict[str, int], n_novel: int) -> Pool:
    """Two of twenty objects: four tasks on the same images, and novel objects as test rows of their own."""
    rng = np.random.default_rng([POOL_SEED, 1])
    lists = {kind: [i for i, c in members(prepared, style) if c.relational == kind] for kind in ("seen", "novel")}
    parts, described = [], []
    for split, kind, n in [*((s, "seen", n) for s, n in splits.items()), ("test", "novel", n_novel)]:
        if n:
            parts.append(pair_scenes(rng, *balanced_pairs(rng, lists[kind], n)))
            described += [(split, kind == "novel")] * n
    scenes = join(parts)
    images = draw_pool(rng, prepared, style, scenes)
    rows: dict[str, list[Row]] = {}
    first_large = scenes.size[:, 0] > scenes.size[:, 1]
    asked = {"left": np.zeros(len(images), int), "right": np.ones(len(images), int)}
    asked |= {"large": np.where(first_large, 0, 1), "small": np.where(first_large, 1, 0)}
    for relation, slot in asked.items():
        shown = scenes.concept[np.arange(len(images)), slot]
        rows[f"openart-{relation}"] = [(n, prepared.concepts[i].name, *described[n]) for n, i in enumerate(shown)]
    return Pool(images, rows)


def people_pool(prepared: Prepared, style: str, splits: dict[str, int]) -> Pool:
    """A face and somebody doing something, sometimes with an object: two tasks on the same images.

    Train and val show seen drawings only; a third of the test images' faces and people are novel where there are any.
    """
    rng = np.random.default_rng([POOL_SEED, 2])
    drawn = members(prepared, style)
    actions = [*words.ACTIONS, *words.EXTRA_ACTION_LABELS]
    objects = [i for i, c in drawn if c.relational == "seen"]
    picks: list[list[int]] = []
    described: list[str] = []
    for split, n in splits.items():
        asked = [(words.EMOTIONS, "emotion"), (actions, "action")]
        columns = []
        for values, field in asked:
            available = [v for v in values if any(getattr(c, field) == v and not c.novel for _, c in drawn)]
            order = [v for _ in range(n // len(available) + 1) for v in rng.permutation(available)][:n]
            columns.append([pick(rng, drawn, field, v, split == "test" and rng.random() < 1 / 3) for v in order])
        rng.shuffle(columns[1])
        for face, person in zip(*columns, strict=True):
            picks.append([face, person, int(rng.choice(objects)) if rng.random() < 0.4 else -1])
            described.append(split)
    scenes = row_scenes(rng, np.array(picks))
    images = draw_pool(rng, prepared, style, scenes)
    rows: dict[str, list[Row]] = {"openart-emotion": [], "openart-action": []}
    for i, ((face, person, _), split) in enumerate(zip(picks, described, strict=True)):
        face, person = prepared.concepts[face], prepared.concepts[person]
        rows["openart-emotion"].append((i, face.emotion, split, face.novel))
        rows["openart-action"].append((i, person.action, split, person.novel))
    return Pool(images, rows)


def pick(rng: np.random.Generator, drawn: list[tuple[int, Concept]], field: str, value: str, novel: bool) -> int:
    """One concept that shows a value: a novel one if asked for and there is one."""
    having = [(i, c) for i, c in drawn if getattr(c, field) == value]
    wanted = [i for i, c in having if c.novel == novel] or [i for i, c in having if not c.novel]
    return int(rng.choice(wanted))


def single_pool(prepared: Prepared, style: str) -> Pool:
    """Single pieces by kind. Seen concepts are divided among train, val and test; novel ones are all in test."""
    rng = np.random.default_rng([POOL_SEED, 3])
    chosen: list[tuple[int, str, bool]] = []
    drawn = members(prepared, style)
    for kind in sorted({c.kind for _, c in drawn if c.kind}):
        seen = rng.permutation([i for i, c in drawn if c.kind == kind and not c.novel])
        novel = [i for i, c in drawn if c.kind == kind and c.novel]
        if len(seen) < 4 or not novel:
            continue
        n_test, n_val = max(1, round(0.3 * len(seen))), max(1, round(0.1 * len(seen)))
        split = {"test": seen[:n_test], "val": seen[n_test : n_test + n_val], "train": seen[n_test + n_val :]}
        times = -(-N_TIMES["train"] // len(split["train"]))
        chosen += [(int(i), "train", False) for i in split["train"] for _ in range(times)]
        chosen += [(int(i), "val", False) for i in split["val"]]
        chosen += [(int(i), "test", False) for i in split["test"] for _ in range(N_TIMES["test"])]
        chosen += [(i, "test", True) for i in novel for _ in range(N_TIMES["test"])]
    scenes = single_scenes(rng, np.array([i for i, _, _ in chosen]), (0.55, 0.95))
    images = draw_pool(rng, prepared, style, scenes)
    rows = [(n, prepared.concepts[i].kind, split, novel) for n, (i, split, novel) in enumerate(chosen)]
    return Pool(images, {"openart-category": rows})


def all_pools(prepared: Prepared, style: str, splits: dict[str, int], n_novel: int) -> dict[str, Pool]:
    """Every pool of one style."""
    return {
        "pairs": pair_pool(prepared, style, splits, n_novel),
        "people": people_pool(prepared, style, splits),
        "singles": single_pool(prepared, style),
    }
