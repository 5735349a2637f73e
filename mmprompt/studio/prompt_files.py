"""A prompt as one file that a browser can take and bring: a zip of `prompt.json` and `prompt.safetensors`."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mmprompt.core.header import HEADER, TENSORS
from mmprompt.errors import bad_file
from mmprompt.files import BROKEN_ZIP, make_folder, write_bytes

MAX_BYTES = 64 * 2**20
ADVICE = f"Give the zip file that a studio's download gave, or {HEADER} and {TENSORS} of a run folder."


def pack(folder: Path, archive: Path) -> Path:
    """Write the prompt of a run folder as a zip file, whose path is returned."""
    make_folder(archive.parent)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as handle:
        for name in (HEADER, TENSORS):
            handle.write(folder / name, f"{archive.stem}/{name}")
    return archive


def unpack(given: Sequence[Path], folder: Path) -> Path:
    """Put the two files of a prompt, from one zip file or as they are, into a new folder, which is returned.

    Raises:
        UserError: they are not both there, too large, or the zip file is damaged.
    """
    found = _in_zip(given[0]) if len(given) == 1 and zipfile.is_zipfile(given[0]) else _as_they_are(given)
    for name in (HEADER, TENSORS):
        if name not in found:
            raise bad_file(given[0].name if given else "nothing", f"holds no {name}", ADVICE)
    for name, data in found.items():
        write_bytes(make_folder(folder) / name, data)
    return folder


def _as_they_are(given: Sequence[Path]) -> dict[str, bytes]:
    for path in given:
        if path.stat().st_size > MAX_BYTES:
            raise bad_file(path.name, f"is larger than {MAX_BYTES // 2**20} MiB", ADVICE)
    return {path.name: path.read_bytes() for path in given if path.name in (HEADER, TENSORS)}


def _in_zip(archive: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(archive) as handle:
            for info in handle.infolist():
                name = PurePosixPath(info.filename).name
                if name not in (HEADER, TENSORS):
                    continue
                if name in found:
                    raise bad_file(archive.name, f"holds {name} twice", "Give one prompt at a time.")
                with handle.open(info) as member:
                    found[name] = member.read(MAX_BYTES + 1)
                if len(found[name]) > MAX_BYTES:
                    raise bad_file(archive.name, f"{name} in it is larger than {MAX_BYTES // 2**20} MiB", ADVICE)
    except BROKEN_ZIP as error:
        raise bad_file(archive.name, f"is a damaged archive ({error})", ADVICE) from None
    return found
