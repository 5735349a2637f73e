"""What identifies the weights of a model, whatever file they came from."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


def fingerprint(model: nn.Module) -> str:
    """The hex SHA-256 over the sorted names, dtypes, shapes and bytes of all parameters and stored buffers.

    Buffers that a library computes and does not store in checkpoints (masks, position numbers) are left
    out: they are no weights, and they differ between releases.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in row order, without a copy where it is contiguous in main memory."""
    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data
