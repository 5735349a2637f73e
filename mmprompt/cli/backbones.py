"""`mmprompt backbones`: the frozen models that can be loaded by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from mmprompt.backbones.load import list_backbones
from mmprompt.cli.output import Output
from mmprompt.cli.parser import parse
from mmprompt.errors import UserError


@dataclass(frozen=True)
class Settings:
    """Which are listed."""

    find: Annotated[str, tyro.conf.arg(metavar="TEXT")] = ""
    """Only names that hold this text."""
    json: bool = False
    """Print one JSON document; everything for people goes to stderr."""


def run_list(arguments: Sequence[str], prog: str) -> None:
    """Print the names that `--backbone` takes.

    Raises:
        UserError: no name holds the text.
    """
    settings = parse(Settings, arguments, prog, "The frozen models a prompt can be learned for.")
    output = Output(settings.json)
    names = [name for name in list_backbones() if settings.find.lower() in name.lower()]
    if not names:
        raise UserError(f"no backbone's name holds {settings.find!r}. Leave --find out to see all names.")
    output.table(["name"], [[name] for name in names])
    output.say()
    output.say("Also: hf:NAME for CLIP and SigLIP on the hub, the path of a model folder,")
    output.say("and open_clip:ARCHITECTURE//path/to/weights.safetensors for a checkpoint of your own.")
    output.document(names)
