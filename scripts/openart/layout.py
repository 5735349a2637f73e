"""Where the pieces of a scene stand: positions and sizes in units of the canvas side, from a numpy generator.

Centres are (x, y) with the origin top left; a size is the side of the piece's square box.
"""

from dataclasses import dataclass

import numpy as np

LARGE = (0.44, 0.58)
SMALL = (0.25, 0.36)
FIELDS = ("concept", "x", "y", "size", "angle", "flip")


def spread(rng: np.random.Generator, free: np.ndarray, n_gaps: int) -> np.ndarray:
    """Split free width into random gaps: [B] -> [B, n_gaps]."""
    shares = rng.dirichlet(np.full(n_gaps, 1.2), size=len(free))
    return shares * free[:, None]


def place_row(rng: np.random.Generator, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put pieces side by side, left to right in the given order, without overlap.

    Args:
        sizes: [B, K], rows sum below 1.
    Returns:
        Centres x and y, each [B, K].
    """
    gaps = spread(rng, 1.0 - sizes.sum(1), sizes.shape[1] + 1)
    x = np.cumsum(gaps[:, :-1], 1) + np.cumsum(sizes, 1) - sizes / 2
    y = sizes / 2 + rng.random(sizes.shape) * (1 - sizes)
    return x, y


def pair_sizes(rng: np.random.Generator, n: int) -> np.ndarray:
    """One large and one small size in random order: [n, 2]."""
    sizes = np.stack([rng.uniform(*LARGE, n), rng.uniform(*SMALL, n)], 1)
    flip = rng.random(n) < 0.5
    sizes[flip] = sizes[flip, ::-1]
    return sizes


def people_sizes(rng: np.random.Generator, n: int, n_pieces: int) -> np.ndarray:
    """Sizes of a face, a person and perhaps an object: [n, n_pieces], rows sum below 1."""
    low, high = (0.36, 0.49) if n_pieces == 2 else (0.28, 0.33)
    return rng.uniform(low, high, (n, n_pieces))


@dataclass
class Scenes:
    """Geometry of a batch of scenes with up to three pieces; concept -1 and size 0 mean an empty slot.

    `concept`, `x`, `y`, `size`, `angle`, `flip` are [B, 3].
    """

    concept: np.ndarray
    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    angle: np.ndarray
    flip: np.ndarray


def empty_scenes(rng: np.random.Generator, n: int) -> Scenes:
    """Scenes without pieces; tilt and mirroring of the pieces are drawn already."""
    zero = np.zeros((n, 3))
    angle = np.clip(rng.normal(0, 0.12, (n, 3)), -0.35, 0.35)
    flip = np.where(rng.random((n, 3)) < 0.35, -1.0, 1.0)
    return Scenes(np.full((n, 3), -1), zero.copy(), zero.copy(), zero.copy(), angle, flip)


def single_scenes(rng: np.random.Generator, concepts: np.ndarray, sizes: tuple[float, float]) -> Scenes:
    """One piece anywhere: concepts [B]."""
    scenes = empty_scenes(rng, len(concepts))
    scenes.concept[:, 0] = concepts
    size = rng.uniform(*sizes, len(concepts))
    scenes.size[:, 0] = size
    scenes.x[:, 0] = size / 2 + rng.random(len(size)) * (1 - size)
    scenes.y[:, 0] = size / 2 + rng.random(len(size)) * (1 - size)
    return scenes


def pair_scenes(rng: np.random.Generator, left: np.ndarray, right: np.ndarray) -> Scenes:
    """Two pieces, the first on the left, one of them large and one small: concepts [B] and [B]."""
    scenes = empty_scenes(rng, len(left))
    scenes.concept[:, 0], scenes.concept[:, 1] = left, right
    scenes.size[:, :2] = pair_sizes(rng, len(left))
    scenes.x[:, :2], scenes.y[:, :2] = place_row(rng, scenes.size[:, :2])
    return scenes


def row_scenes(rng: np.random.Generator, concepts: np.ndarray) -> Scenes:
    """Two or three pieces of like size in random order: concepts [B, 3], -1 in the last column for two pieces."""
    n = len(concepts)
    scenes = empty_scenes(rng, n)
    scenes.concept[:] = concepts
    for count in (2, 3):
        rows = np.nonzero((concepts >= 0).sum(1) == count)[0]
        sizes = people_sizes(rng, len(rows), count)
        x, y = place_row(rng, sizes)
        order = rng.permuted(np.tile(np.arange(count), (len(rows), 1)), axis=1)
        for values, target in ((sizes, scenes.size), (x, scenes.x), (y, scenes.y)):
            target[rows, :count] = np.take_along_axis(values, order, 1)
    return scenes


def join(parts: list[Scenes]) -> Scenes:
    """Several batches of scenes as one."""
    return Scenes(*(np.concatenate([getattr(p, n) for p in parts]) for n in FIELDS))
