"""Image files to the input of an image tower, in order: the backbone's own test transform, or augmented views.

It reads and transforms; what becomes of the pixels it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmprompt.data.images import read_image
from mmprompt.data.parallel import end_with_parent as end_with_parent  # its old place
from mmprompt.data.parallel import in_workers
from mmprompt.data.transforms import augment_coop
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.frozen import PixelTransform


class View(NamedTuple):
    """One cropped and flipped view of a training image: seed, epoch and index of `augment_coop`."""

    seed: int
    epoch: int
    number: int


class Job(NamedTuple):
    """An image file to read once and the views to make of it; None is the backbone's own test transform."""

    path: Path
    views: tuple[View | None, ...]


def decode(backbone: DualEncoder, jobs: Sequence[Job], n_workers: int | None = None) -> Iterator[Tensor]:
    """Yield the input tensors [3, H, W] float32 of all views of all jobs, in order.

    Args:
        backbone: whose transforms are used; it is not sent to the workers.
        jobs: any number.
        n_workers: as for `in_workers`.
    Raises:
        UserError: an image cannot be read; names the file.
    """
    pixels = getattr(backbone, "pixels", None)
    if isinstance(pixels, PixelTransform):
        work = partial(make_views, pixels.apply, pixels.normalize, pixels.size)
    else:
        work = partial(make_views, backbone.preprocess, backbone.normalize, backbone.image_size)
    for views in in_workers(work, jobs, n_workers):
        yield from torch.from_numpy(views)


def make_views(
    preprocess: Callable[[Image.Image], Tensor], normalize: Callable[[Tensor], Tensor], size: int, job: Job
) -> np.ndarray:
    """Read one file and return its views, [len(job.views), 3, H, W] float32."""
    image = read_image(job.path)
    views = [preprocess(image) if view is None else normalize(augment_coop(image, size, *view)) for view in job.views]
    return torch.stack(views).numpy()
