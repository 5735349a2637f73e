"""Images that ship in one zip file, unpacked once into the cache.

The folder is named after the zip's hash, so another version never meets old images. It appears by
one rename: a kill leaves nothing half-unpacked, and of two processes at once the slower one uses
what the faster one made. This file does not know what the images show.
"""

from __future__ import annotations

import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from mmprompt.errors import bad_file
from mmprompt.files import cache_folder, make_folder, sha256_file

MAX_FILES = 100_000
MAX_BYTES = 512 * 2**20

_ADVICE = "Install mmprompt again."


def unpack(archive: Path) -> Path:
    """Return the folder with a zip file's files, unpacked if it is not there or not whole."""
    if not archive.is_file():
        raise bad_file(archive, "is not there", _ADVICE)
    final = cache_folder() / f"{archive.parent.name}-{sha256_file(archive)[:8]}"
    try:
        with zipfile.ZipFile(archive) as handle:
            members = _safe_members(handle, archive)
            if not _is_whole(final, members):
                _unpack_into(final, handle, members)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise bad_file(archive, f"is a damaged archive ({error})", _ADVICE) from None
    except OSError as error:
        problem = f"cannot be filled ({error.strerror or error})"
        raise bad_file(final, problem, "Set MMPROMPT_CACHE elsewhere.") from None
    return final.resolve()


def _safe_members(handle: zipfile.ZipFile, archive: Path) -> list[zipfile.ZipInfo]:
    members = [info for info in handle.infolist() if not info.is_dir()]
    if len(members) > MAX_FILES or sum(info.file_size for info in members) > MAX_BYTES:
        raise bad_file(archive, f"unpacks to more than {MAX_FILES} files or {MAX_BYTES // 2**20} MiB", _ADVICE)
    for info in members:
        name = PurePosixPath(info.filename)
        is_link = stat.S_ISLNK(info.external_attr >> 16)
        if name.is_absolute() or ".." in name.parts or set(info.filename) & set("\\:\0") or is_link:
            raise bad_file(archive, f"holds the unsafe name {info.filename!r}", _ADVICE)
    return members


def _is_whole(folder: Path, members: list[zipfile.ZipInfo]) -> bool:
    try:
        return all((folder / info.filename).stat().st_size == info.file_size for info in members)
    except OSError:
        return False


def _unpack_into(final: Path, handle: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> None:
    make_folder(final.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent))
    try:
        fresh = temporary / "fresh"
        fresh.mkdir()
        handle.extractall(fresh, members)
        if final.exists() and not _is_whole(final, members):
            final.rename(temporary / "damaged")
        try:
            fresh.rename(final)
        except OSError:
            if not _is_whole(final, members):  # else another process was faster, and its images are ours
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
