"""Augmentation as a pure function of (seed, epoch, index): the same image whatever the order of work.

Resizing and normalising for a test are the backbone's own business and not here.
"""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_RATIO = (3 / 4, 4 / 3)


def augment_coop(image: Image.Image, size: int, seed: int, epoch: int, index: int) -> Tensor:
    """Resize a random crop to a square and perhaps mirror it (the training transform of Zhou et al. 2022).

    The crop covers 8 % to 100 % of the area with sides between 3:4 and 4:3, as `RandomResizedCrop` draws it.

    Args:
        image: RGB.
        size: side of the result in pixels.
        seed: of the run.
        epoch: counted from 0.
        index: of the image in the training set, counted from 0.
    Returns:
        [3, size, size] float32 in 0..1, not normalised.
    """
    rng = random.Random(f"augment {seed} {epoch} {index}")  # text, so that no two triples meet by addition
    image = image.crop(_crop_box(image.width, image.height, rng)).resize((size, size), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return to_tensor(image)


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
