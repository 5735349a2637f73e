"""Image features of many pictures: decoded and encoded in batches, and each file at most once.

It knows pictures and a backbone, not labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmprompt.backbones.protocols import DualEncoder
from mmprompt.backbones.sites import Site, Vectors
from mmprompt.data.images import ImageLike, read_image

ENCODE_BATCH = 64


@torch.no_grad()
def encode_pictures(
    backbone: DualEncoder, sources: Sequence[ImageLike], vectors: Mapping[Site, Vectors] | None = None
) -> Tensor:
    """Features of pictures under the backbone's own test transform.

    Args:
        backbone: the frozen model.
        sources: N pictures.
        vectors: of the vision sites, if the image tower is prompted.
    Returns:
        [N, E] of unit norm, on the backbone's device.
    Raises:
        UserError: a picture cannot be read.
    """
    parts = [torch.empty(0, backbone.embed_dim, device=backbone.device, dtype=backbone.dtype)]
    for start in range(0, len(sources), ENCODE_BATCH):
        batch = [backbone.preprocess(read_image(source)) for source in sources[start : start + ENCODE_BATCH]]
        images = torch.stack(batch).to(backbone.device, backbone.dtype)
        parts.append(backbone.encode_image(images, vectors))
    return torch.cat(parts)


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
