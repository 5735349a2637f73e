"""`mmprompt prompt diff`, `average`, `interpolate`, `push` and `pull`: what is done with prompt files themselves."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mmprompt.cli.run import Run
from mmprompt.core.header import read_header
from mmprompt.errors import bad_value
from mmprompt.terminal.output import JSON_HELP, Backbone, Output, check_folder, shorten
from mmprompt.terminal.parser import parse

Folder = Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
Name = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="USER/NAME", help="The repository on the Hub.")]]
Revision = Annotated[str | None, tyro.conf.arg(metavar="NAME", help="Of the repository; main by default.")]
MOST_CLASSES, LONGEST = 5, 60


@dataclass(frozen=True)
class DiffSettings:
    """What is compared."""

    a: Run
    b: Run
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False


@dataclass(frozen=True)
class AverageSettings:
    """What is averaged."""

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN RUN...")]]
    """Two run folders or more, of one method on one frozen model."""
    out: Folder
    """The new prompt folder."""
    shares: Annotated[str | None, tyro.conf.arg(metavar="FLOAT,FLOAT")] = None
    """What each counts, in all 1; the same by default."""
    backbone: Backbone = None
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False


@dataclass(frozen=True)
class InterpolateSettings:
    """Between what."""

    a: Run
    b: Run
    share: Annotated[float, tyro.conf.arg(metavar="FLOAT")]
    """How far from the first to the second, 0 to 1."""
    out: Folder
    """The new prompt folder."""
    backbone: Backbone = None
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False


@dataclass(frozen=True)
class PushSettings:
    """What is uploaded."""

    run: Run
    name: Name
    private: bool = False
    """Make a new repository private."""
    revision: Revision = None
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False


@dataclass(frozen=True)
class PullSettings:
    """What is downloaded."""

    name: Name
    out: Folder
    """The new prompt folder."""
    revision: Revision = None
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False


def run_diff(arguments: Sequence[str], prog: str) -> None:
    """Print what two prompts say differently and how far apart their numbers are; no model is loaded."""
    settings = parse(DiffSettings, arguments, prog, "In what two prompts on one frozen model differ.")
    for folder in (settings.a, settings.b):
        read_header(folder)
    from mmprompt.core.combine import diff_prompts

    output, found = Output(settings.json), diff_prompts(settings.a, settings.b)
    facts = [
        [name, *(shorten(json.dumps(value, ensure_ascii=False), LONGEST) for value in pair)]
        for name, pair in found["facts"].items()
    ]
    if facts:
        output.table(["", "first", "second"], facts)
        output.say()
    rows = []
    for one in found["learned"]:
        if "shapes" in one:
            rows.append([one["name"], " and ".join(" x ".join(map(str, shape)) for shape in one["shapes"]), "", "", ""])
        else:
            numbers = [*one["norms"], one["distance"], one["cosine"]]
            rows.append([one["name"], " x ".join(map(str, one["shape"])), *(f"{number:.3f}" for number in numbers)])
    rows += [
        [name, f"in the {which} alone"] + [""] * 4
        for which, names in zip(("first", "second"), found["only"], strict=True)
        for name in names
    ]
    output.table(["learned", "shape", "norm", "norm of the second", "distance", "cosine"], rows, numbers=(2, 3, 4, 5))
    if found["classes"]:
        output.say()
        moved = [[one["name"], f"{one['cosine']:.4f}"] for one in found["classes"][:MOST_CLASSES]]
        output.table(["class names furthest apart", "cosine"], moved, numbers=(1,))
    output.document(found)


def run_average(arguments: Sequence[str], prog: str) -> None:
    """Write the average of some prompts as a prompt."""
    settings = parse(AverageSettings, arguments, prog, "Average what several prompts learned.")
    shares = None
    if settings.shares is not None:
        try:
            shares = [float(part) for part in settings.shares.split(",")]
        except ValueError:
            expected = "numbers with commas between them were expected"
            raise bad_value("shares", repr(settings.shares), expected, "Use --shares 0.5,0.5.") from None
    combine(list(settings.runs), shares, settings)


def run_interpolate(arguments: Sequence[str], prog: str) -> None:
    """Write a point between two prompts as a prompt."""
    settings = parse(InterpolateSettings, arguments, prog, "A prompt between two.")
    if not 0 <= settings.share <= 1:
        raise bad_value("share", settings.share, "a number from 0 to 1 was expected", "Use --share 0.5.")
    combine([settings.a, settings.b], [1 - settings.share, settings.share], settings)


def combine(folders: list[Path], shares: list[float] | None, settings: AverageSettings | InterpolateSettings) -> None:
    """Average prompts and save what comes out."""
    output = Output(settings.json)
    check_folder(settings.out)
    for folder in folders:
        read_header(folder)
    from mmprompt.core.combine import average_prompts, origin_of
    from mmprompt.core.file import save

    averaged = average_prompts(folders, shares, settings.backbone)
    shares = shares or [1 / len(folders)] * len(folders)
    save(averaged, settings.out, origin_of(folders, shares))
    output.say(f"The prompt is in {settings.out}.")
    output.say(f"Next: mmprompt eval {shlex.quote(str(settings.out))}")
    output.document({"written": str(settings.out), "shares": shares})


def run_push(arguments: Sequence[str], prog: str) -> None:
    """Upload a prompt."""
    settings = parse(PushSettings, arguments, prog, "Upload a prompt and its model card to the Hugging Face Hub.")
    read_header(settings.run)
    from mmprompt.core.hub import push_to_hub

    output = Output(settings.json)
    url = push_to_hub(settings.run, settings.name, private=settings.private or None, revision=settings.revision)
    output.say(f"Uploaded: {url}")
    output.document({"commit": url})


def run_pull(arguments: Sequence[str], prog: str) -> None:
    """Download a prompt."""
    settings = parse(PullSettings, arguments, prog, "Download a prompt from the Hugging Face Hub.")
    check_folder(settings.out)
    from mmprompt.core.hub import pull

    output = Output(settings.json)
    pull(settings.name, settings.out, settings.revision)
    header = read_header(settings.out)
    output.say(f"A prompt for {header['backbone']['name']} is in {settings.out}.")
    output.say(f"Next: mmprompt predict {shlex.quote(str(settings.out))} INPUT")
    output.document({"written": str(settings.out), "kind": header["kind"], "backbone": header["backbone"]["name"]})
