"""Scenes: where their pieces stand, their backgrounds, and how their sprites are pasted and changed in style.

Everything is a pure function of its inputs and a generator. Centres are (x, y) with the origin top left, sizes are
sides of the pieces' square boxes, all in units of the canvas side. Sprites are [B, 4, s, s] float, premultiplied.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LARGE = (0.44, 0.58)
SMALL = (0.25, 0.36)
GREY = (0.299, 0.587, 0.114)


@dataclass
class Scenes:
    """Geometry of a batch of scenes of K pieces, [B, K] each; concept -1 and size 0 mean an empty slot."""

    concept: np.ndarray
    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    angle: np.ndarray
    flip: np.ndarray

    def __getitem__(self, rows: slice) -> "Scenes":
        return Scenes(*(values[rows] for values in vars(self).values()))


def join(parts: list[Scenes]) -> Scenes:
    """Several batches of scenes as one."""
    return Scenes(*map(np.concatenate, zip(*(vars(part).values() for part in parts), strict=True)))


def empty_scenes(rng: np.random.Generator, n: int) -> Scenes:
    """Scenes of three empty slots; tilt and mirroring of the pieces are drawn already."""
    x, y, size = np.zeros((3, n, 3))
    angle = np.clip(rng.normal(0, 0.12, (n, 3)), -0.35, 0.35)
    flip = np.where(rng.random((n, 3)) < 0.35, -1.0, 1.0)
    return Scenes(np.full((n, 3), -1), x, y, size, angle, flip)


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
    n = len(left)
    scenes = empty_scenes(rng, n)
    scenes.concept[:, 0], scenes.concept[:, 1] = left, right
    sizes = np.stack([rng.uniform(*LARGE, n), rng.uniform(*SMALL, n)], 1)
    swapped = rng.random(n) < 0.5
    sizes[swapped] = sizes[swapped, ::-1]
    scenes.size[:, :2] = sizes
    scenes.x[:, :2], scenes.y[:, :2] = place_row(rng, sizes)
    return scenes


def row_scenes(rng: np.random.Generator, concepts: np.ndarray) -> Scenes:
    """Two or three pieces of like size in random order: concepts [B, 3], -1 in the last column for two pieces."""
    scenes = empty_scenes(rng, len(concepts))
    scenes.concept[:] = concepts
    for count, sizes_of_pieces in ((2, (0.36, 0.49)), (3, (0.28, 0.33))):
        rows = np.nonzero((concepts >= 0).sum(1) == count)[0]
        sizes = rng.uniform(*sizes_of_pieces, (len(rows), count))
        x, y = place_row(rng, sizes)
        order = rng.permuted(np.tile(np.arange(count), (len(rows), 1)), axis=1)
        for values, target in ((sizes, scenes.size), (x, scenes.x), (y, scenes.y)):
            target[rows, :count] = np.take_along_axis(values, order, 1)
    return scenes


def place_row(rng: np.random.Generator, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put pieces [B, K], whose sizes sum below 1, side by side in order, without overlap: centres x and y [B, K]."""
    shares = rng.dirichlet(np.full(sizes.shape[1] + 1, 1.2), size=len(sizes))  # of the free width, by gap
    gaps = shares * (1.0 - sizes.sum(1))[:, None]
    x = np.cumsum(gaps[:, :-1], 1) + np.cumsum(sizes, 1) - sizes / 2
    y = sizes / 2 + rng.random(sizes.shape) * (1 - sizes)
    return x, y


def draw_scenes(sprites: Tensor, scenes: Scenes, ground: Tensor) -> Tensor:
    """Paste the pieces [B, K, 4, s, s] of scenes on [B, 3, S, S] in order; empty slots may hold anything."""
    geometry = [scenes.x, scenes.y, scenes.size, scenes.angle, scenes.flip]
    values = [torch.from_numpy(one).float().to(ground.device) for one in geometry]
    for k in range(sprites.shape[1]):
        there = (values[2][:, k] > 0).nonzero()[:, 0]
        if len(there):
            piece = paste(ground[there], sprites[:, k][there], *(one[there, k] for one in values))
            ground = ground.index_copy(0, there, piece)
    return ground


def paste(canvas: Tensor, sprites: Tensor, x: Tensor, y: Tensor, size: Tensor, angle: Tensor, flip: Tensor) -> Tensor:
    """Lay one sprite [B, 4, s, s] over every canvas [B, 3, S, S]; size 0 draws nothing, flip -1 mirrors."""
    small = (size * canvas.shape[-1] < 0.55 * sprites.shape[-1]).float()[:, None, None, None]
    if bool(small.any()):  # against aliasing
        sprites = torch.lerp(sprites, F.avg_pool2d(sprites, 3, 1, 1), small)
    shown = size > 0
    scale = 1.0 / size.clamp_min(1e-3)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    cx, cy = 2 * x - 1, 2 * y - 1
    row_x = torch.stack([flip * cos, flip * sin, -flip * (cos * cx + sin * cy)], 1)
    row_y = torch.stack([-sin, cos, sin * cx - cos * cy], 1)
    grid = F.affine_grid(torch.stack([row_x, row_y], 1), list(canvas.shape), align_corners=False)
    layer = F.grid_sample(sprites, grid, align_corners=False) * shown[:, None, None, None]
    return layer[:, :3] + canvas * (1 - layer[:, 3:])


def backgrounds(colours: Tensor, others: Tensor, direction: Tensor, side: int) -> Tensor:
    """Plain or gradient backgrounds: [B, 3] twice and a direction [B, 2] (0 for plain) -> [B, 3, side, side]."""
    axis = torch.linspace(0, 1, side, device=colours.device)
    ramp = direction[:, 0, None, None] * axis[None, None, :] + direction[:, 1, None, None] * axis[None, :, None]
    ramp = ramp.expand(-1, side, side)[:, None]
    return torch.lerp(colours[:, :, None, None], others[:, :, None, None], ramp)


def pastels(n: int, generator: torch.Generator) -> Tensor:
    """Random light colours: [n, 3]; one in sixteen is dark."""
    colours = 1 - 0.36 * torch.rand(n, 1, generator=generator) * torch.rand(n, 3, generator=generator)
    dark = torch.rand(n, 1, generator=generator) < 1 / 16
    return torch.where(dark, 0.45 * torch.rand(n, 3, generator=generator), colours)


def uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """[n] uniform numbers."""
    return low + (high - low) * torch.rand(n, generator=generator)


def chance(n: int, share: float, generator: torch.Generator) -> Tensor:
    """[n] booleans, true with the given probability."""
    return torch.rand(n, generator=generator) < share


def colour_maps(n: int, strength: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random colour changes as a matrix [n, 3, 3] and an offset [n, 3] (to be multiplied by alpha)."""
    eye = torch.eye(3).expand(n, 3, 3)
    grey = torch.tensor(GREY).expand(n, 3, 3)
    third = torch.full((n, 3, 3), 1 / 3)
    angle = uniform(n, -math.pi, math.pi, generator)
    angle = torch.where(chance(n, 0.4 * strength, generator), angle, 0.15 * angle)[:, None, None]
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    matrix = torch.cos(angle) * eye + (1 - torch.cos(angle)) * third + torch.sin(angle) * cross
    saturation = uniform(n, 0.4, 1.7, generator)
    saturation = torch.where(chance(n, 0.15 * strength, generator), torch.zeros(n), saturation)[:, None, None]
    matrix = (saturation * eye + (1 - saturation) * grey) @ matrix
    contrast = uniform(n, 0.6, 1.4, generator)
    contrast = torch.where(chance(n, 0.05 * strength, generator), -contrast, contrast)[:, None]
    offset = 0.5 - 0.5 * contrast + uniform(n, -0.2, 0.2, generator)[:, None]
    return matrix * contrast[:, :, None], offset.expand(n, 3)


def recolour(sprites: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Apply colour maps to premultiplied sprites."""
    colour, alpha = sprites[:, :3], sprites[:, 3:]
    mixed = torch.bmm(matrix, colour.flatten(2)).view_as(colour) + offset[:, :, None, None] * alpha
    return torch.cat([torch.minimum(mixed.clamp_min(0), alpha), alpha], 1)


def edges(sprites: Tensor, threshold: Tensor, thick: Tensor) -> Tensor:
    """Lines where colour or alpha change: [B, 1, s, s] in 0..1."""
    gradient = F.max_pool2d(sprites, 3, 1, 1) + F.max_pool2d(-sprites, 3, 1, 1)
    strength = gradient.amax(1, keepdim=True)
    line = ((strength - threshold[:, None, None, None]) * 4).clamp(0, 1)
    return torch.where(thick[:, None, None, None], F.max_pool2d(line, 3, 1, 1), line)


def redraw(sprites: Tensor, generator: torch.Generator) -> Tensor:
    """Draw lines over a part of the sprites: coloured with outlines, line drawings, or flat silhouettes with lines."""
    n = len(sprites)
    line = edges(sprites, uniform(n, 0.15, 0.45, generator), chance(n, 0.35, generator))
    kind = torch.rand(n, generator=generator)[:, None, None, None]
    alpha = sprites[:, 3:]
    paper = uniform(n, 0.6, 1.0, generator)[:, None, None, None] * alpha
    mean = sprites[:, :3].sum((2, 3)) / alpha.sum((2, 3)).clamp_min(1)
    tint = (0.4 + 0.6 * mean)[:, :, None, None] * alpha
    colour = torch.where(kind < 0.2, paper, torch.where(kind < 0.4, tint, sprites[:, :3]))
    hollow = (kind < 0.1).float()  # nothing but lines
    colour, alpha = colour * (1 - hollow), alpha * (1 - hollow)
    ink = 0.25 * torch.rand(n, 3, generator=generator) * chance(n, 0.4, generator)[:, None]
    colour = colour * (1 - line) + ink[:, :, None, None] * line
    return torch.cat([colour, torch.maximum(alpha, line)], 1)


def restyle(sprites: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Change the drawing style of every sprite at random: colours, greys, outlines, line drawings, blur."""
    n = len(sprites)
    kept = chance(n, 1 - 0.85 * strength, generator)
    matrix, offset = colour_maps(n, strength, generator)
    matrix = torch.where(kept[:, None, None], torch.eye(3), matrix)
    sprites = recolour(sprites, matrix, torch.where(kept[:, None], torch.zeros(3), offset))
    drawn = chance(n, 0.4 * strength, generator).nonzero()[:, 0]
    if len(drawn):
        sprites = sprites.index_copy(0, drawn, redraw(sprites[drawn], generator))
    blurred = chance(n, 0.12 * strength, generator).nonzero()[:, 0]
    if len(blurred):
        sprites = sprites.index_copy(0, blurred, F.avg_pool2d(sprites[blurred], 3, 1, 1))
    return sprites
