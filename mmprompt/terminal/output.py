"""Where a command writes: lines and tables for people, one JSON document for machines, rows into a file that survives a
kill, and folders, checked before any work.

With `--json` everything meant for people goes to stderr and stdout carries the document alone.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmprompt.core.header import check_new
from mmprompt.errors import bad_file, visible
from mmprompt.files import (
    append_bytes,
    locked,
    make_folder,
    parse_json,
    read_bytes,
    sha256_bytes,
    sync_folder,
    write_bytes,
)
from mmprompt.progress import CountProgress, spoke
from mmprompt.reports.tables import plain_table

JSON_HELP = "Print one JSON document; everything for people goes to stderr."
BACKBONE_HELP = "The same frozen model under the name that it has here; by default the one that the prompt names."
Device = Annotated[str, tyro.conf.arg(metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")]
Json = Annotated[bool, tyro.conf.arg(help=JSON_HELP)]
Backbone = Annotated[str | None, tyro.conf.arg(metavar="NAME", help=BACKBONE_HELP)]
MAX_FILE_BYTES = 2**31
OTHER_OUT = "Give another `out`, or remove it."
Row = dict[str, Any]


@dataclass(frozen=True)
class OnlyJson:
    """The settings of a verb that has no other."""

    json: Json = False


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go on where nobody reads any more, as in `mmprompt train | head -1`: the work is worth more."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


class Output:
    """Where one command writes; with `as_json`, stdout is kept for one JSON document."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        stream = sys.stderr if as_json else sys.stdout
        self.is_terminal = stream.isatty()
        self.console = _Console(file=stream, highlight=False, soft_wrap=True)

    def say(self, text: str = "", style: str | None = None) -> None:
        """Write a line for people; names in it are never read as markup."""
        spoke()
        self.console.print(Text(visible(text), style=style or ""))

    def stream(self, pieces: Iterable[str]) -> None:
        """Write a text for people as it comes, and end its line."""
        for piece in pieces:
            self.piece(piece)
        self.say()

    def piece(self, text: str) -> None:
        """Write a part of a line for people."""
        spoke()
        self.console.file.write(visible(text))
        self.console.file.flush()

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> None:
        """Write aligned columns; those whose index is in `numbers` are set flush right."""
        spoke()
        rows = [[visible(cell) for cell in row] for row in rows]
        if not self.is_terminal:
            self.console.print(Text("\n".join(plain_table([headers, *rows], numbers))))
            return
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
        for index, header in enumerate(headers):
            table.add_column(Text(header), justify="right" if index in numbers else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self.console.print(table, soft_wrap=False)

    def document(self, content: object) -> None:
        """Write the JSON document, if one was asked for."""
        if self.as_json:
            print(visible(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)))


def percent(share: float) -> str:
    """Return a share in 0..1 as `62.4 %`, in characters that every console has."""
    return f"{100 * share:.1f} %"


def between(interval: Sequence[float], signed: bool = False) -> str:
    """Return an interval of shares as `59.1 to 65.5`, with signs for differences."""
    low, high = (f"{100 * bound:{'+' if signed else ''}.1f}" for bound in interval)
    return f"{low} to {high}"


def shorten(text: str, length: int) -> str:
    """Return a text cut to a length, with an ellipsis where something was left out."""
    return text if len(text) <= length else text[: length - 1] + "…"


def result_table(output: Output, metrics: Mapping[str, Any], template: str) -> None:
    """Write the accuracy of zero-shot, where there is one, and of the learned prompt, with intervals."""
    labels = {
        "zero_shot_name": "zero-shot, bare class name",
        "zero_shot_template": f"zero-shot, “{template}”",
        "learned": "learned prompt",
    }
    rows = []
    for key in (key for key in labels if key in metrics):
        gain = metrics["learned"].get(f"gain_over_{key}")
        gained = [f"{100 * gain['gain']:+.1f}", between(gain["interval"], signed=True)] if gain else ["", ""]
        rows.append([labels[key], percent(metrics[key]["accuracy"]), between(metrics[key]["interval"]), *gained])
    headers = ["", "accuracy", "95 % interval", "gained by learning", "95 % interval"]
    output.table(headers, rows, numbers=(1, 2, 3, 4))


def check_folder(folder: Path, resume: bool = False, option: str = "out") -> None:
    """Refuse a run folder that cannot be written or is taken, before any work; `option` names it."""
    if not resume:
        check_new(folder, option)
    check_place(folder, option)


def check_place(folder: Path, option: str = "out") -> None:
    """Refuse a folder that cannot be made or written to, and make none; `option` names it."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise bad_file(place, f"is a file, so {folder} cannot be a folder", f"Give another --{option}.")
    if not os.access(place, os.W_OK):
        raise bad_file(place, "may not be written to", f"Give a place for --{option} that you may write to.")


def check_file(path: Path, option: str) -> None:
    """Refuse a file that cannot be written, and make no folder for it; `option` names it."""
    if path.is_dir():
        raise bad_file(path, "is a folder, but a file was expected", f"Give another --{option}.")
    check_place(path.parent, option)


def command_of(arguments: Sequence[str], prog: str) -> str:
    """Return the command line as it can be typed again, the same for a run that was gone on with."""
    return shlex.join([*prog.split(), *(word for word in arguments if word != "--resume")])


def write_rows(
    out: Path | None,
    n_rows: int,
    at_once: int,
    known: Callable[[Path, Path], Mapping[int, Row]],
    make: Callable[[list[int]], list[Row]],
    progress: CountProgress | None = None,
) -> list[Row]:
    """Return rows of JSON, in order, and write them to a file, if one is named.

    `make` makes those of some places; `known` finds by their places those of an earlier call, in the file and in the
    one under way. While it is written the file is called `NAME.part`; a killed call goes on from its whole rows, and
    NAME itself is always complete.
    """

    def filled(rows: dict[int, Row], part: Path | None) -> list[Row]:
        missing = [place for place in range(n_rows) if place not in rows]
        for start in range(0, len(missing), at_once):
            places = missing[start : start + at_once]
            new = make(places)
            if part is not None:
                append_bytes(part, to_lines(new))
            rows.update(zip(places, new, strict=True))
            if progress is not None:
                progress(len(rows), n_rows)
        return [rows[place] for place in range(n_rows)]

    if out is None:
        return filled({}, None)
    part = out.with_name(f"{out.name}.part")
    make_folder(out.parent)
    refusal = bad_file(out, "is being written by another process", "Wait until it has ended, or give another `out`.")
    with locked(out.with_name(f"{out.name}.lock"), refusal):
        found = dict(known(out, part))
        write_bytes(part, to_lines(found.values()))
        rows = filled(found, part)
        write_bytes(out, to_lines(rows))
        part.unlink()
        sync_folder(out.parent)
    return rows


def to_lines(rows: Iterable[Row]) -> bytes:
    """Return rows as JSONL."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def whole_rows(path: Path, what: str, *needed: str) -> Iterator[tuple[int, Row]]:
    """Yield the rows, with their lines, of a file that may end in the middle of one; none where there is no file.

    Each must have the keys that are needed, and the hash of the settings it was made by.
    """
    lines = read_bytes(path, MAX_FILE_BYTES).split(b"\n")[:-1] if path.exists() else []  # the last is torn, or nothing
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line.decode())
        except ValueError:
            row = None
        if not isinstance(row, dict) or not row.keys() >= {"settings", *needed}:
            raise bad_file(path, f"is no row of {what}", OTHER_OUT, number)
        yield number, row


def hash_of(settings: object) -> str:
    """Return what every row names of all that it depends on."""
    return sha256_bytes(json.dumps(settings, sort_keys=True).encode())[:12]
