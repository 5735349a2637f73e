"""A backbone's own test transform, in the two forms that are needed, and in words.

It wraps what the library made and holds no resizing of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class PixelTransform:
    """From a picture, or from pixels already cut to size, to the normalised input of an image tower.

    Args:
        apply: the library's transform of one RGB picture, to [3, H, W].
        mean, std: per colour, for pixels in 0..1.
        size: H = W.
        text: what `apply` does, in one line.
    """

    apply: Callable[[Image.Image], Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    text: str

    def normalize(self, images: Tensor) -> Tensor:
        """Pixels [..., 3, H, W] in 0..1 to normalised ones."""
        mean, std = (torch.tensor(values, device=images.device).to(images.dtype) for values in (self.mean, self.std))
        return (images - mean[:, None, None]) / std[:, None, None]


def describe(steps: Sequence[str], mean: Sequence[float], std: Sequence[float]) -> str:
    """One line for a transform: its steps, then mean and standard deviation."""
    numbers = "; ".join(
        f"{name} {', '.join(f'{v:.4g}' for v in values)}" for name, values in (("mean", mean), ("std", std))
    )
    return f"{', '.join(steps)}, {numbers}"
