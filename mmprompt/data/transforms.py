"""Augmentation as a pure function of (seed, epoch, index): the same image whatever the order of work.

Resizing and normalising for a test are the backbone's own business and not here.
"""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

_RATIO = (3 / 4, 4 / 3)


def augment_coop(image: Image.Image, size: int, seed: int, epoch: int, index: int) -> Tensor:
    """Resize a random crop to a square and perhaps mirror it (the training transform of Zhou et al. 2022).

    The crop covers 8 % to 100 % of the area with sides between 3:4 and 4:3, as `RandomResizedCrop` draws it, by the
    run's seed, the epoch and the image's place in the training set. The result [3, size, size] is in 0..1, not
    normalised.
    """
    rng = random.Random(f"augment {seed} {epoch} {index}")  # text, so that no two triples meet by addition
    return to_tensor(_crop_and_mirror(image, size, rng))


def augment_augmix(image: Image.Image, size: int, seed: int, epoch: int, index: int) -> Tensor:
    """Mix a crop as `augment_coop` draws it with changed copies of itself (Hendrycks et al. 2020, "AugMix", section 3).

    Three chains of one to three operations each, at severity 1 of 10, as Shu et al. 2022 ("TPT", released code) have
    them; arguments and result are those of `augment_coop`.
    """
    rng = random.Random(f"augmix {seed} {epoch} {index}")
    image = _crop_and_mirror(image, size, rng)
    weights, share = [rng.gammavariate(1, 1) for _ in range(3)], rng.random()  # Dirichlet(1, 1, 1) and Beta(1, 1)
    mixed = share * to_tensor(image)
    for weight in weights:
        changed = image
        for _ in range(rng.randint(1, 3)):
            changed = _changed(changed, rng)
        mixed += (1 - share) * weight / sum(weights) * to_tensor(changed)
    return mixed.clamp(0, 1)


def _changed(image: Image.Image, rng: random.Random) -> Image.Image:
    """Apply one of AugMix's operations to a square image, at a strength drawn from 1 to 10 % of its full one."""
    strength, sign = rng.uniform(0.01, 0.1), rng.choice((-1, 1))
    shear, shift = sign * 0.3 * strength, sign * int(strength * image.width / 3)

    def moved(*matrix: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)

    operations = (
        lambda: ImageOps.autocontrast(image),
        lambda: ImageOps.equalize(image),
        lambda: ImageOps.posterize(image, 4 - int(4 * strength)),
        lambda: image.rotate(sign * int(30 * strength), Image.Resampling.BILINEAR),
        lambda: ImageOps.solarize(image, 256 - int(256 * strength)),
        lambda: moved(1, shear, 0, 0, 1, 0),
        lambda: moved(1, 0, 0, shear, 1, 0),
        lambda: moved(1, 0, shift, 0, 1, 0),
        lambda: moved(1, 0, 0, 0, 1, shift),
    )
    return rng.choice(operations)()


def _crop_and_mirror(image: Image.Image, size: int, rng: random.Random) -> Image.Image:
    """Resize a random crop to a square and perhaps mirror it."""
    image = image.crop(_crop_box(image.width, image.height, rng)).resize((size, size), Image.Resampling.BICUBIC)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def to_tensor(image: Image.Image) -> Tensor:
    """Return the pixels of an RGB image: [3, H, W] float32 in 0..1."""
    pixels = np.array(image, dtype=np.float32) / 255  # [H, W, 3]
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # [3, H, W]


def _crop_box(width: int, height: int, rng: random.Random) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.random() * (width - w + 1)), int(rng.random() * (height - h + 1))
            return left, top, left + w, top + h
    # very long or tiny images: the largest central crop of an allowed shape
    w, h = min(width, max(1, round(height * _RATIO[1]))), min(height, max(1, round(width / _RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
