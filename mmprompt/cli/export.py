"""`mmprompt export`: a finished run in a form that needs none of this package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mmprompt.cli.run import Run
from mmprompt.terminal.output import JSON_HELP, Backbone, Output, check_place
from mmprompt.terminal.parser import parse

DESCRIPTION = "Write a finished run in a form that needs none of this package."


@dataclass(frozen=True)
class Settings:
    """What is written, and where to."""

    run: Run
    to: Annotated[str, tyro.conf.arg(metavar="FORM")]
    """onnx, pt2 (torch.export), npy or open_clip of a classifier; peft of a language model's prompt."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where an earlier export is replaced; by default a folder of the form's name in RUN."""
    backbone: Backbone = None
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False


def run(arguments: Sequence[str], prog: str) -> None:
    """Write the export and say what is in it; what cannot be is refused before a model is loaded."""
    settings = parse(Settings, arguments, prog, DESCRIPTION)
    from mmprompt.core.header import read_header
    from mmprompt.exports.forms import FACTS, form_of, refuse_taken
    from mmprompt.files import read_json

    output = Output(settings.json)
    form_of(settings.to, read_header(settings.run)["kind"])
    target = settings.out or settings.run / settings.to
    refuse_taken(target)
    check_place(target)
    output.say(f"Writing {form_of(settings.to).summary} ...", "dim")
    from mmprompt.exports.export import export

    export(settings.run, settings.to, target, settings.backbone)
    files = {path.name: path.stat().st_size for path in sorted(target.iterdir()) if path.is_file()}
    output.table(["file", "bytes"], [[str(target / name), f"{size:,}"] for name, size in files.items()], numbers=(1,))
    facts = read_json(target / FACTS)
    if "use" in facts:
        output.say(f"Use: {facts['use']}")
    output.document({"folder": str(target), "files": files} | facts)
