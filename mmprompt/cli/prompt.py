"""`mmprompt prompt inspect`, `diff`, `average`, `interpolate`, `push` and `pull`: what is done with prompt files."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmprompt.cli.run import Run
from mmprompt.core.header import HEADER, TENSORS, read_header, write_header
from mmprompt.errors import bad_value
from mmprompt.files import make_folder, sha256_bytes, tensor_bytes, write_bytes
from mmprompt.terminal.output import Backbone, Json, Output, check_folder, shorten
from mmprompt.terminal.parser import parse

if TYPE_CHECKING:
    from torch import Tensor

INSPECT = "Print all that a prompt file contains, and what of it prediction needs; --strip writes a copy of that alone."
Folder = Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
Name = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="USER/NAME", help="The repository on the Hub.")]]
Revision = Annotated[str | None, tyro.conf.arg(metavar="NAME", help="Of the repository; main by default.")]
MOST_CLASSES, LONGEST, LONGEST_ENTRY = 5, 60, 90


@dataclass(frozen=True)
class InspectSettings:
    """What is printed."""

    file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]
    """The prompt: its folder, or a file in it."""
    strip: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Write to this new folder what prediction needs, and nothing else."""
    json: Json = False


@dataclass(frozen=True)
class DiffSettings:
    """What is compared."""

    a: Run
    b: Run
    json: Json = False


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
    json: Json = False


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
    json: Json = False


@dataclass(frozen=True)
class PushSettings:
    """What is uploaded."""

    run: Run
    name: Name
    private: bool = False
    """Make a new repository private."""
    revision: Revision = None
    json: Json = False


@dataclass(frozen=True)
class PullSettings:
    """What is downloaded."""

    name: Name
    out: Folder
    """The new prompt folder."""
    revision: Revision = None
    json: Json = False


def run_inspect(arguments: Sequence[str], prog: str) -> None:
    """Print every entry and every tensor; a stripped copy predicts what the whole prompt does."""
    settings = parse(InspectSettings, arguments, prog, INSPECT)
    folder = settings.file.parent if settings.file.name in (HEADER, TENSORS) else settings.file
    if settings.strip is not None:
        check_folder(settings.strip, option="strip")
    header = read_header(folder)
    from mmprompt.core.file import read_sealed

    tensors = read_sealed(folder / TENSORS, header["tensors_sha256"])
    output, known = Output(settings.json), described(header)
    output.say(f"{folder / HEADER}: {(folder / HEADER).stat().st_size:,} bytes")
    output.table(["entry", "needed", "content"], entry_rows(header))
    output.say(f"\n{folder / TENSORS}: {(folder / TENSORS).stat().st_size:,} bytes")
    output.table(["tensor", "needed", "type", "shape", "bytes"], tensor_rows(tensors, known), numbers=(4,))
    beside = sorted(path.name for path in folder.iterdir() if path.name not in (HEADER, TENSORS))
    if beside:
        output.say(f"\nBeside them, and not needed: {shorten(', '.join(beside), 2 * LONGEST_ENTRY)}.", "dim")
    if settings.strip is not None:
        strip(header, {name: value for name, value in tensors.items() if name in known}, settings.strip)
        output.say(f"\nWhat prediction needs is in {settings.strip}.")
    shapes = {name: {"shape": list(value.shape), "needed": name in known} for name, value in tensors.items()}
    stripped = None if settings.strip is None else str(settings.strip)
    output.document({"header": header, "tensors": shapes, "beside": beside, "stripped": stripped})


def described(header: Mapping[str, Any]) -> set[str]:
    """List the tensors that are read to predict: those that a header describes, and the features of class names."""
    names = {"class_features"} if header["kind"] == "classification" else set()
    parts = [(f"source{place}", facts) for place, facts in enumerate(header["sources"])]
    parts += [("head", header["head"])] if header["head"] else []
    for place, facts in parts:
        if facts["kind"] == "vectors":
            names |= set(facts["sites"])
        else:
            names |= {f"{place}.{name}" for name in facts["state"]}
    return names


def entry_rows(header: Mapping[str, Any]) -> list[list[str]]:
    """Tabulate the entries of a header; what is not needed is written out whole, value by value."""
    rows = []
    for name, value in header.items():
        if name != "training":
            rows.append([name, "yes", shorten(json.dumps(value, ensure_ascii=False), LONGEST_ENTRY)])
            continue
        for place, text in leaves(name, value):
            rows += [[place, "no", text[start : start + LONGEST_ENTRY]] for start in range(0, len(text), LONGEST_ENTRY)]
    return rows


def leaves(place: str, value: Any) -> list[tuple[str, str]]:
    """List what stands in nested mappings, each with its place, such as `training.data.name`."""
    if isinstance(value, dict) and value:
        return [leaf for key, one in value.items() for leaf in leaves(f"{place}.{key}", one)]
    return [(place, json.dumps(value, ensure_ascii=False))]


def tensor_rows(tensors: Mapping[str, Tensor], known: set[str]) -> list[list[str]]:
    """Tabulate the tensors of a file."""
    rows = []
    for name, value in tensors.items():
        kind, shape = str(value.dtype).removeprefix("torch."), " x ".join(map(str, value.shape))
        size = math.prod(value.shape) * value.element_size()
        rows.append([name, "yes" if name in known else "no", kind, shape or "one number", f"{size:,}"])
    return rows


def strip(header: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write a prompt without where it comes from."""
    data = tensor_bytes(dict(tensors))
    kept = {**header, "training": {}, "tensors_sha256": sha256_bytes(data)}
    folder = make_folder(folder)
    write_bytes(folder / TENSORS, data)
    write_header(folder, kept)


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
            rows.append([one["name"], " and ".join(" x ".join(map(str, shape)) for shape in one["shapes"]), *[""] * 4])
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
            if not all(map(math.isfinite, shares)):
                raise ValueError
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
