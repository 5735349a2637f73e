"""Files that survive: atomic writes, hashes, size limits, rows of JSON, and the only door to tensor files.

Nothing here unpickles but tensors. A write goes to a temporary name, is synced and renamed, so that a kill
at any moment leaves the old file or the new one and never half of either.
"""

from __future__ import annotations

import calendar
import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mmprompt.errors import UserError, bad_file, bad_value
from mmprompt.quiet import quiet
from mmprompt.settings import expanded

if TYPE_CHECKING:
    from torch import Tensor

MAX_JSON_BYTES = 64 * 2**20
MAX_TEXT_BYTES = 2**30
"""Of a file of rows; the captions of COCO with Karpathy's split take 144 MB."""
MAX_TENSOR_BYTES = 2**31
"""Of a file of tensors of which no hash is known."""
ANY_SIZE = 2**62
"""Of a file that is held to its hash: optimisers keep gigabytes of a model that learns whole."""
MAX_ZIP_FILES = 100_000
MAX_ZIP_BYTES = 512 * 2**20
BROKEN_ZIP = (
    zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, UnicodeDecodeError, IndexError
)  # fmt: skip
"""What the library raises on an archive that is damaged, encrypted, of an unknown method, or with an empty name."""
_INSTALL = "Install mmprompt again."


def cache_folder() -> Path:
    """Return where unpacked images and features go: `$MMPROMPT_CACHE`, else `~/.cache/mmprompt`."""
    chosen = os.environ.get("MMPROMPT_CACHE")
    return expanded(chosen) if chosen else Path.home() / ".cache" / "mmprompt"


def sha256_bytes(data: bytes) -> str:
    """Return the hex SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the renames inside a folder durable (a no-op where the system cannot)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_folder(folder: Path) -> Path:
    """Create a folder with its parents; refuse a place that is a file or cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # the latter of a name that is none
        reason = error.strerror if isinstance(error, OSError) else error
        raise bad_file(folder, f"cannot be made ({reason})", "Give a folder you may write to.") from None
    if not os.access(folder, os.W_OK):
        raise bad_file(folder, "cannot be written to", "Give a folder you may write to.")
    return folder


def is_alive(process: int) -> bool:
    """Return whether a process of this machine lives, by its number; taken for granted where it cannot be asked."""
    if os.name == "nt":
        return True  # a signal of 0 would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return process > 0


def _sweep(path: Path) -> None:
    """Remove what dead processes left where they made a file or folder of this name."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        owner = left.name.removeprefix(f".{path.name}.").split(".")[0]
        if owner.isascii() and owner.isdigit() and not is_alive(int(owner)):
            with contextlib.suppress(OSError):
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a kill leaves the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}.tmp")
    try:
        _sweep(path)
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise bad_file(path, f"cannot be written ({error.strerror})", "Check the folder and the disk.") from None
    sync_folder(path.parent)


def append_bytes(path: Path, data: bytes) -> None:
    """Add to a file, and see what was added on the disk."""
    try:
        with path.open("ab") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise bad_file(path, f"cannot be written ({error.strerror})", "Free some space and run it again.") from None


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically, indented, with sorted keys left as given."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def json_ready(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts by name as a JSON file gives them back; refuse one that no such file holds."""
    ready = {}
    for name, fact in facts.items():
        try:
            ready[name] = parse_json(json.dumps(fact, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            advice = "Keep to text, finite numbers, and lists and mappings of them."
            raise UserError(f"{name} is not JSON-ready ({error}). {advice}") from None
    return ready


def read_bytes(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Read a whole file; refuse one that cannot be read, is larger than `max_bytes`, or is a pipe or a device."""
    try:
        mode = path.stat().st_mode  # before it is opened, which waits at a pipe
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise bad_file(path, "is a pipe or a device, but a file was expected", "Save what it gives as a file.")
        with path.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size  # some files say 0 and hold more
            data = handle.read(min(size, max_bytes) + 1)
            if len(data) > size:
                data += handle.read(min(max_bytes, MAX_TENSOR_BYTES))  # as much is taken from memory at once
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise bad_file(path, f"cannot be read ({reason})", "Check the path.") from None
    if len(data) > max_bytes:
        raise bad_file(path, f"has more than {max_bytes} bytes, which is the limit", "Give a smaller file.")
    return data


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file of at most 1 GiB, without a byte order mark."""
    return utf8_text(path, read_bytes(path, MAX_TEXT_BYTES))


def utf8_text(path: Path, data: bytes) -> str:
    """Return what the bytes of a file say in UTF-8, without a byte order mark."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise bad_file(path, "is not UTF-8 text", "Save it as UTF-8.", line) from None


def parse_json(text: str) -> Any:
    """Read JSON, of any stranger: a ValueError too for NaN, infinity, halves of characters, numbers and depth without
    end.
    """
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if "\\ud" in text or "\\uD" in text:
        json.dumps(content, ensure_ascii=False).encode()
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def read_json(path: Path) -> Any:
    """Read a JSON file of at most 64 MiB."""
    try:
        return parse_json(read_bytes(path).decode("utf-8"))
    except ValueError as error:
        line = getattr(error, "lineno", None)
        raise bad_file(path, "is not valid JSON", "Restore the file as it was written.", line) from None


def text_lines(path: Path) -> list[str]:
    """Return the lines of a file of UTF-8 text, without their ends."""
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]  # splitlines would break at rarer signs
    return lines if lines[-1] else lines[:-1]


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSONL file with their line numbers, from 1; blank lines are passed over."""
    for number, text in enumerate(text_lines(path), start=1):
        if not text.strip():
            continue
        try:
            record = parse_json(text)
        except ValueError:
            raise bad_file(path, "is not valid JSON", "Write one object on each line.", number) from None
        if not isinstance(record, dict):
            raise bad_file(path, "is not a JSON object", "Write one object on each line.", number)
        yield number, record


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the safetensors form of named tensors."""
    from safetensors.torch import save

    # With no tensors and metadata that is empty, but there, the header is not JSON (safetensors 0.8.0).
    more = dict(metadata) if metadata else None
    return save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, more)


def read_tensors(path: Path, max_bytes: int | None = None) -> dict[str, Tensor]:
    """Read a safetensors file; refuse one that is damaged, or holds NaN, infinity or a form that is not computed in."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = read_bytes(path, max_bytes or MAX_TENSOR_BYTES)
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        detail = str(error).splitlines()[0]
        raise bad_file(path, f"is not a readable safetensors file ({detail})", "Restore the file.") from None
    for name, value in tensors.items():
        if value.is_floating_point() and value.element_size() == 1:
            kind = str(value.dtype).removeprefix("torch.")
            raise bad_file(path, f"holds {name!r} as {kind}, but 16 bits or more were expected", "Save it as float32.")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise bad_file(path, f"holds NaN or infinity in {name!r}", "Train again or restore the file.")
    return tensors


class Unread:
    """Stands for an object that a checkpoint pickled beside its tensors, such as a scheduler; nothing is kept of it."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


UNREAD = (
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray.scalar",
    "torch.optim.adam.Adam",
    "torch.optim.adamw.AdamW",
    "torch.optim.lr_scheduler.CosineAnnealingLR",
    "torch.optim.lr_scheduler.MultiStepLR",
    "torch.optim.lr_scheduler.StepLR",
    "torch.optim.rmsprop.RMSprop",
    "torch.optim.sgd.SGD",
)
"""Dassl keeps the state of a warm-up, and in it the scheduler that follows and the whole optimiser, as objects."""


def read_checkpoint(path: Path) -> Any:
    """Read what `torch.save` wrote: tensors and arrays in plain containers; no object is ever made of it.

    Raises:
        UserError: it is missing, no such file, damaged, or holds an object.
    """
    import io

    import numpy as np
    import torch

    def empty_array(*args: object) -> np.ndarray:
        return np.empty(0)

    def empty_dict(*args: object) -> dict[Any, Any]:
        return {}

    data = read_bytes(path, 2**32)
    made: list[Any] = [(empty_dict, "collections.defaultdict"), (empty_dict, "builtins.dict")]
    made += [(empty_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    dtypes = [type(np.dtype(name)) for name in ("float16", "float32", "float64", "int64")]
    known = [*made, *((Unread, name) for name in UNREAD), np.ndarray, np.dtype, *dtypes]
    try:
        with torch.serialization.safe_globals(known), quiet():
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)  # noqa: TID251
    except MemoryError:
        raise
    except Exception as error:  # it raises a dozen kinds for a damaged file
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise bad_file(
                path,
                f"holds the object {found[1]}, but only tensors are read, since an object may run anything",
                "Save its state_dict alone with torch.save.",
            ) from None
        raise bad_file(path, "is no file of torch.save, or damaged", "Give the checkpoint as it was written.") from None


class SafeRoot:
    """A folder, perhaps a link itself, that joined paths may not leave; each folder is resolved once, to be quick."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real = Path(os.path.realpath(root))
        self._is_inside = {root: True}

    def join(self, relative: str) -> Path:
        """Join a path to the root; refuse one that is absolute, climbs out with `..`, or leads out by a link."""
        joined = self.root / relative
        try:
            is_inside = "\0" not in relative and not Path(relative).is_absolute() and self._stays(joined)
        except OSError as error:
            raise bad_file(relative[:60], f"is no path ({error.strerror})", "Shorten it.") from None
        if not is_inside:
            raise UserError(
                f"{relative!r} leaves the data folder {self.root}, by its path or by a link. Keep to that folder."
            )
        return joined

    def _stays(self, path: Path) -> bool:
        if path == self.root:
            return True
        if path.name == ".." or path.is_symlink():
            return self._leads_inside(path)
        folder = path.parent
        if folder not in self._is_inside:
            self._is_inside[folder] = self._leads_inside(folder)
        return self._is_inside[folder]

    def _leads_inside(self, path: Path) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self._real)


@contextlib.contextmanager
def locked(lock: Path, refusal: UserError) -> Iterator[None]:
    """Hold a lock file until the block ends or the process dies; raise the refusal where another process holds it."""
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    try:
        held.acquire(blocking=False)
    except Timeout:
        raise refusal from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes it on release
            lock.unlink()
        held.release()


@contextlib.contextmanager
def new_folder(final: Path, is_old: Callable[[], bool] = lambda: False, is_synced: bool = True) -> Iterator[Path]:
    """Fill a folder that is renamed to `final` in the end if the block ends well; else nothing is left or changed.

    One that is there by then, made by a faster process, stays unless `is_old` says that it is to go. Its files are on
    the disk before it has its name, unless there are thousands and they can be had again.
    """
    make_folder(final.parent)
    _sweep(final)
    prefix = f".{final.name}.{os.getpid()}."
    with tempfile.TemporaryDirectory(".tmp", prefix, final.parent, ignore_cleanup_errors=True) as place:
        fresh = Path(place) / "fresh"
        fresh.mkdir()
        yield fresh
        for path in fresh.rglob("*"):
            if is_synced and path.is_file():
                with path.open("rb") as handle:
                    os.fsync(handle.fileno())
        sync_folder(fresh)
        if final.exists() and is_old():
            final.rename(Path(place) / "old")
        try:
            fresh.rename(final)
        except OSError:
            if not final.is_dir():
                raise
    sync_folder(final.parent)


def unpack(archive: Path) -> Path:
    """Return the folder with a zip file's files, unpacked into the cache if it is not there or not whole.

    The folder is named after the zip's hash, so another version never meets old files. It appears by one rename: a kill
    leaves nothing half-unpacked, and of two processes at once the slower one uses what the faster one made.
    """
    if not archive.is_file():
        raise bad_file(archive, "is not there", _INSTALL)
    final = cache_folder() / f"{archive.parent.name}-{sha256_file(archive)[:8]}"
    try:
        with zipfile.ZipFile(archive) as handle:
            members = _safe_members(handle, archive)
            if not _is_whole(final, members):
                with new_folder(final, lambda: not _is_whole(final, members), is_synced=False) as fresh:
                    handle.extractall(fresh, members)
                    for info in members:
                        os.utime(fresh / info.filename, times=(_time_of(info),) * 2)
    except BROKEN_ZIP as error:
        raise bad_file(archive, f"is a damaged archive ({error})", _INSTALL) from None
    except OSError as error:
        problem = f"cannot be filled ({error.strerror or error})"
        raise bad_file(final, problem, "Set MMPROMPT_CACHE elsewhere.") from None
    return final.resolve()


def _safe_members(handle: zipfile.ZipFile, archive: Path) -> list[zipfile.ZipInfo]:
    members = [info for info in handle.infolist() if not info.is_dir()]
    if len(members) > MAX_ZIP_FILES or sum(info.file_size for info in members) > MAX_ZIP_BYTES:
        raise bad_file(archive, f"unpacks to more than {MAX_ZIP_FILES} files or {MAX_ZIP_BYTES // 2**20} MiB", _INSTALL)
    for info in members:
        name = PurePosixPath(info.filename)
        is_link = stat.S_ISLNK(info.external_attr >> 16)
        if name.is_absolute() or ".." in name.parts or set(info.filename) & set("\\:\0") or is_link:
            raise bad_file(archive, f"holds the unsafe name {info.filename!r}", _INSTALL)
    return members


def _is_whole(folder: Path, members: list[zipfile.ZipInfo]) -> bool:
    """Return whether all files have the size and the time they were unpacked with, which whoever edits one changes."""
    try:
        stats = [((folder / info.filename).stat(), info) for info in members]
    except OSError:
        return False
    return all((one.st_size, one.st_mtime) == (info.file_size, _time_of(info)) for one, info in stats)


def _time_of(info: zipfile.ZipInfo) -> float:
    return calendar.timegm((*info.date_time, 0, 0, 0))


UNITS = {"": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}


def size_from_environment(variable: str, default_bytes: int, zero: str) -> int:
    """Return the bytes that an environment variable asks for, the default where it is not set.

    What is not a size is refused; `zero` says what 0 would mean.
    """
    text = os.environ.get(variable, "")
    if not text:
        return default_bytes
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([KMGT]B)?", text.strip().upper())
    if match is None:
        raise bad_value(variable, repr(text), "a size was expected", f"Use 500MB, 4GB, or 0 for {zero}.")
    return int(float(match[1]) * UNITS[match[2] or ""])
