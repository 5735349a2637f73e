"""`mmprompt prompt inspect`: all that a prompt file contains, and a copy without what prediction does not need."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmprompt.core.header import HEADER, TENSORS, read_header, write_header
from mmprompt.files import make_folder, sha256_bytes, tensor_bytes, write_bytes
from mmprompt.terminal.output import JSON_HELP, Output, check_folder, shorten
from mmprompt.terminal.parser import parse

if TYPE_CHECKING:
    from torch import Tensor

INSPECT = "Print all that a prompt file contains, and what of it prediction needs; --strip writes a copy of that alone."
LONGEST = 90


@dataclass(frozen=True)
class InspectSettings:
    """What is printed."""

    file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]
    """The prompt: its folder, or a file in it."""
    strip: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Write to this new folder what prediction needs, and nothing else."""
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False


def run_inspect(arguments: Sequence[str], prog: str) -> None:
    """Print every entry and every tensor; a stripped copy predicts what the whole prompt does."""
    settings = parse(InspectSettings, arguments, prog, INSPECT)
    folder = settings.file.parent if settings.file.name in (HEADER, TENSORS) else settings.file
    if settings.strip is not None:
        check_folder(settings.strip)
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
        output.say(f"\nBeside them, and not needed: {shorten(', '.join(beside), 2 * LONGEST)}.", "dim")
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
            rows.append([name, "yes", shorten(json.dumps(value, ensure_ascii=False), LONGEST)])
            continue
        for place, text in leaves(name, value):
            rows += [[place, "no", text[start : start + LONGEST]] for start in range(0, len(text), LONGEST)]
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
