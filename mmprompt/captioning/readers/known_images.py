"""What the images are like that a captioner was trained on, so that it can say of others that it never saw such."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmprompt.files import read_tensors, tensor_bytes, write_bytes

SHRINKAGE = 0.05
"""Of the covariance to a multiple of the identity: some directions hardly vary among a few hundred images."""
MARGIN = 1.2
"""How much farther than the farthest image that was held out an image must be to be a stranger."""


@dataclass(frozen=True)
class KnownImages:
    """Mean [D'] and covariance of image features, averaged over tokens, and the distance from which images are
    strangers.

    Distances are Mahalanobis (Lee et al. 2018, "A Simple Unified Framework for Detecting Out-of-Distribution Samples"):
    the length of a difference from the mean times `whitening` [D', D'].
    """

    mean: Tensor
    whitening: Tensor
    limit: Tensor

    @classmethod
    def fit(cls, features: Tensor, held_out: Tensor) -> KnownImages:
        """Fit image features [N, T, D'], and set the limit by others [N', T, D'] of the same kind."""
        pooled = features.mean(1).double()
        covariance = torch.cov(pooled.T)
        size = len(covariance)
        shrunk = covariance + SHRINKAGE * covariance.diagonal().mean() * torch.eye(size, dtype=torch.float64)
        whitening = torch.linalg.inv(torch.linalg.cholesky(shrunk))
        known = cls(pooled.mean(0).float(), whitening.float(), torch.tensor([float("inf")]))
        return cls(known.mean, known.whitening, MARGIN * known.distances(held_out).max()[None])

    def distances(self, features: Tensor) -> Tensor:
        """Return the distance [B] of images with features [B, T, D']."""
        difference = features.mean(1).float().cpu() - self.mean
        return (difference @ self.whitening.T).norm(dim=1)

    def strangers(self, features: Tensor) -> Tensor:
        """Return which images of features [B, T, D'] are unlike those that were learned from: [B] bool."""
        return self.distances(features) > self.limit

    def save(self, path: Path) -> None:
        """Write it to a file of half precision."""
        write_bytes(path, tensor_bytes({name: value.half() for name, value in vars(self).items()}))

    @classmethod
    def load(cls, path: Path) -> KnownImages:
        """Read what `save` wrote."""
        return cls(**{name: value.float() for name, value in read_tensors(path).items()})
