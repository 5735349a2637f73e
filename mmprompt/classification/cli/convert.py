"""`mmprompt prompt convert`: a checkpoint of published code as a prompt folder of ours."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mmprompt.errors import bad_file, bad_value
from mmprompt.files import read_text, sha256_file
from mmprompt.settings import expanded, is_there
from mmprompt.terminal.output import Json, Output, check_folder
from mmprompt.terminal.parser import parse

DESCRIPTION = "Write a checkpoint of published code as a prompt folder; nothing is learned, and only tensors are read."
Published = Literal[
    "coop", "cocoop", "kgcoop", "prograd", "maple", "ivlp", "promptsrc", "vpt", "clip-lora", "tip-adapter"
]


@dataclass(frozen=True)
class Settings:
    """Which checkpoint, and what it does not say of itself."""

    file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]
    """The checkpoint that torch.save wrote, such as prompt_learner/model.pth.tar-50."""
    source: Annotated[Published, tyro.conf.arg(name="from")]
    """Whose code wrote it."""
    backbone: Annotated[str, tyro.conf.arg(metavar="NAME")]
    """The frozen model that it was learned on, such as open_clip:ViT-B-16/openai."""
    classes: Annotated[str, tyro.conf.arg(metavar="FILE_OR_NAMES")]
    """A file with a class name in each line, or names parted by commas."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """The new prompt folder."""
    class_position: Literal["end", "middle", "front"] | None = None
    """Of coop and prograd: where the class name stands; at the end if left out."""
    words: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """The words that the context started from; "a photo of a" for maple, ivlp and promptsrc if left out."""
    template: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """Of vpt, clip-lora and tip-adapter: what stands around the class name; "a photo of a {}." if left out."""
    values: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Of tip-adapter: the file of values; FILE is that of keys."""
    alpha: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Of tip-adapter: the weight of the votes."""
    beta: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Of tip-adapter: the sharpness of the votes."""
    json: Json = False


def run(arguments: Sequence[str], prog: str) -> None:
    """Read the checkpoint and write the prompt; a call that is refused writes nothing."""
    settings = parse(Settings, arguments, prog, DESCRIPTION)
    output = Output(settings.json)
    check_folder(settings.out)
    for path in filter(None, (settings.file, settings.values)):
        if not path.is_file():
            raise bad_file(path, "is a folder" if path.is_dir() else "is not there", "Give the file of a checkpoint.")
    class_names = names_in(settings.classes)

    from mmprompt.classification.published import convert
    from mmprompt.core.file import save

    classifier = convert(
        settings.file,
        settings.source,
        settings.backbone,
        class_names,
        class_position=settings.class_position,
        words=settings.words,
        template=settings.template,
        values=settings.values,
        alpha=settings.alpha,
        beta=settings.beta,
    )
    origin = {"file": settings.file.name, "sha256": sha256_file(settings.file)}
    save(classifier, settings.out, {"method": {"name": settings.source, "settings": {}}, "converted_from": origin})
    output.say(f"The prompt is in {settings.out}.")
    output.say(f"Next: mmprompt predict {shlex.quote(str(settings.out))} IMAGE")
    output.document({"written": str(settings.out)})


def names_in(given: str) -> list[str]:
    """Return class names from a file of one a line, or as they are given, parted by commas."""
    if is_there(given) and (path := expanded(given)).is_file():
        return [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if "," not in given:
        raise bad_value("classes", repr(given), "it is neither a file nor names", "Give a file, or cat,dog.")
    return [part.strip() for part in given.split(",") if part.strip()]
