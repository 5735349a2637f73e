"""Image features of many pictures: decoded and encoded in batches, and each file at most once.

It knows pictures and a backbone, not labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from mmprompt.backbones.protocols import DualEncoder
from mmprompt.backbones.sites import Site, Vectors
from mmprompt.data.images import ImageLike, read_image

ENCODE_BATCH = 64


@torch.no_grad()
def encode_tensors(
    backbone: DualEncoder, images: Iterable[Tensor], vectors: Mapping[Site, Vectors] | None = None
) -> Tensor:
    """Features of pictures that are already tensors, in batches.

    Args:
        backbone: the frozen model.
        images: N normalised [3, H, W], as `preprocess` gives them; taken one batch at a time.
        vectors: of the vision sites, if the image tower is prompted.
    Returns:
        [N, E] of unit norm, on the backbone's device.
    """
    parts = [torch.empty(0, backbone.embed_dim, device=backbone.device, dtype=backbone.dtype)]
    remaining = iter(images)
    while batch := list(islice(remaining, ENCODE_BATCH)):
        parts.append(backbone.encode_image(torch.stack(batch).to(backbone.device, backbone.dtype), vectors))
    return torch.cat(parts)


def encode_pictures(
    backbone: DualEncoder, sources: Sequence[ImageLike], vectors: Mapping[Site, Vectors] | None = None
) -> Tensor:
    """Features of pictures under the backbone's own test transform; arguments as for `encode_tensors`.

    Args:
        backbone: the frozen model.
        sources: N pictures.
        vectors: of the vision sites, if the image tower is prompted.
    Raises:
        UserError: a picture cannot be read.
    """
    return encode_tensors(backbone, (backbone.preprocess(read_image(source)) for source in sources), vectors)


class ImageFeatures:
    """Features of picture files for one backbone, kept in memory: several classifiers share one encoding.

    Args:
        backbone: the frozen model; its image tower is not prompted here.
    """

    def __init__(self, backbone: DualEncoder) -> None:
        self.backbone = backbone
        self._rows: dict[Path, Tensor] = {}

    def of(self, paths: Sequence[Path]) -> Tensor:
        """[N, E] of unit norm, on the backbone's device; only files not seen before are read.

        Raises:
            UserError: a picture cannot be read.
        """
        missing = [path for path in dict.fromkeys(paths) if path not in self._rows]
        self._rows.update(zip(missing, encode_pictures(self.backbone, missing), strict=True))
        if not paths:
            return encode_pictures(self.backbone, [])
        return torch.stack([self._rows[path] for path in paths])
