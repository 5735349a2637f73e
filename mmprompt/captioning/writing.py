"""Captions of many pictures into a JSONL file: a row a picture, in order, broken pictures as error rows.

While it is written the file is called `NAME.part`; a killed run goes on from its whole rows, and NAME itself is always
complete. A row names the content of its picture, so that it stands for no other picture of that name. It knows captions
and files, not prompts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mmprompt.captioning.predictor import Caption
from mmprompt.data.images import IMAGE_SUFFIXES
from mmprompt.errors import UserError, bad_file
from mmprompt.files import locked, make_folder, read_bytes, sha256_bytes, sha256_file, sync_folder, write_bytes
from mmprompt.models.image_features import Progress

ROWS_AT_ONCE = 32
MAX_FILE_BYTES = 2**31
Describe = Callable[[Sequence[Path], Sequence[int]], Sequence["Caption | UserError"]]
"""Captions of some pictures with their numbers; an error stands for a picture that cannot be read."""


def find_pictures(places: Sequence[Path]) -> list[tuple[str, Path]]:
    """Picture files with their names in the output: relative to the folder where one is given alone, else as given.

    Args:
        places: files and folders; folders are searched to the bottom, in order of names.
    Raises:
        UserError: a place is not there, or there is no picture at all.
    """
    found: dict[str, Path] = {}
    for place in places:
        if place.is_dir():
            inside = sorted(path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
            named = [path.relative_to(place) if len(places) == 1 else path for path in inside]
            found.update(zip((name.as_posix() for name in named), inside, strict=True))
        elif place.is_file():
            found[str(place)] = place
        else:
            raise bad_file(place, "is not there", "Give picture files or a folder of pictures.")
    if not found:
        names = ", ".join(str(place) for place in places) or "nothing"
        raise UserError(f"there is no picture in {names}. Give picture files or a folder of pictures.")
    return list(found.items())


def caption_rows(
    describe: Describe,
    pictures: Sequence[tuple[str, Path]],
    out: Path | None,
    settings: Mapping[str, Any],
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """A row for every picture; with a file they are written there, and go on where an earlier run stopped.

    Args:
        describe: gives the captions.
        pictures: names and files, in the order of the rows.
        out: the JSONL file, None to write nothing.
        settings: JSON-ready, all that captions depend on; every row names their hash, and rows of others are refused.
        progress: called with how many rows there are and how many there will be.
    Returns:
        The rows: `image`, `settings`, and either `caption` with its numbers and the picture's `content`, or `error`.
        Pictures with an error are looked at again by the next run.
    Raises:
        UserError: the file cannot be written or read, another process writes it, or it holds rows of other settings or
            of other pictures.
    """
    name = sha256_bytes(json.dumps(settings, sort_keys=True).encode())[:12]
    if out is None:
        return describe_missing(describe, pictures, {}, name, None, progress)
    make_folder(out.parent)
    refusal = bad_file(out, "is being written by another process", "Wait until it has ended, or give another --out.")
    with locked(out.with_name(f"{out.name}.lock"), refusal):
        rows = describe_missing(describe, pictures, begin(out, pictures, name), name, part_of(out), progress)
        write_bytes(out, lines_of(rows))
        part_of(out).unlink()
        sync_folder(out.parent)
    return rows


def describe_missing(
    describe: Describe,
    pictures: Sequence[tuple[str, Path]],
    known: Mapping[str, dict[str, Any]],
    settings: str,
    part: Path | None,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """The rows of all pictures in order; those that are not known are made, and added to the file under way."""
    rows = dict(known)
    missing = [(number, *picture) for number, picture in enumerate(pictures) if picture[0] not in rows]
    for start in range(0, len(missing), ROWS_AT_ONCE):
        some = missing[start : start + ROWS_AT_ONCE]
        found = describe([path for _, _, path in some], [number for number, _, _ in some])
        new = [row_of(image, path, settings, one) for (_, image, path), one in zip(some, found, strict=True)]
        if part is not None:
            append(part, lines_of(new))
        rows.update((row["image"], row) for row in new)
        if progress is not None:
            progress(len(rows), len(pictures))
    return [rows[image] for image, _ in pictures]


def begin(out: Path, pictures: Sequence[tuple[str, Path]], settings: str) -> dict[str, dict[str, Any]]:
    """The captions that earlier runs left of these pictures, brought together in the file under way.

    Raises:
        UserError: there is one of a picture that is not among these, or has changed.
    """
    files, content = dict(pictures), cache(content_of)  # a row may stand in both files
    found: dict[str, dict[str, Any]] = {}
    for path in (out, part_of(out)):
        for row in read_rows(path, settings):
            image = row["image"]
            if "error" not in row and (image not in files or content(files[image]) != row["content"]):
                advice = "Give another --out, or remove it."
                raise bad_file(path, f"holds a caption of {image}, which is gone or another picture now", advice)
            found[image] = row
    rows = {image: found[image] for image in files if image in found and "error" not in found[image]}
    write_bytes(part_of(out), lines_of(list(rows.values())))
    return rows


def part_of(out: Path) -> Path:
    """What a file is called while it is written."""
    return out.with_name(out.name + ".part")


def content_of(picture: Path) -> str:
    """The first 12 digits of the hash of a picture file, "" if it is not there."""
    return sha256_file(picture)[:12] if picture.is_file() else ""


def row_of(image: str, picture: Path, settings: str, found: Caption | UserError) -> dict[str, Any]:
    """A row of the file."""
    row: dict[str, Any] = {"image": image, "settings": settings}
    if isinstance(found, UserError):
        return row | {"error": str(found)}
    described = found.to_dict()
    return row | {"content": content_of(picture), "caption": described.pop("text"), **described}


def read_rows(path: Path, settings: str) -> Iterator[dict[str, Any]]:
    """The whole rows of a file that may end in the middle of one; none if it is not there.

    Raises:
        UserError: a row is of other settings, or no row of ours.
    """
    if not path.exists():
        return
    lines = read_bytes(path, MAX_FILE_BYTES).split(b"\n")[:-1]  # what follows the last line end is torn, or nothing
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            image, made_by, _ = row["image"], row["settings"], row["error" if "error" in row else "content"]
        except (ValueError, KeyError, TypeError):
            advice = "Give another --out, or remove it."
            raise bad_file(path, "is no row of captions", advice, line=number) from None
        if made_by != settings:
            advice = "Give another --out, or write with the settings it was begun with."
            raise bad_file(path, f"holds captions of other settings ({image})", advice)
        yield row


def lines_of(rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows as lines of JSON."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def append(path: Path, data: bytes) -> None:
    """Add whole lines to a file and see them on the disk.

    Raises:
        UserError: there is no room, or the file cannot be written.
    """
    try:
        with path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise bad_file(path, f"cannot be written ({error.strerror})", "Free some space and run it again.") from None
