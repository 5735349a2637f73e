"""The feature store: rows of numbers on disk, found again by what they were computed from.

Each space (one backbone under one transform) is a folder of safetensors files of keys, rows and checksums. A file
appears whole and never changes, so a kill leaves whole files; no index lies beside them. A lock lets several processes
share a store. This file knows fingerprints and hashes; it knows no model and opens no image as one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from safetensors import safe_open

from mmprompt.errors import UserError, bad_file
from mmprompt.files import cache_folder, sha256_bytes, sha256_file, size_from_environment, tensor_bytes, write_bytes

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 2
LIMIT_VARIABLE = "MMPROMPT_CACHE_LIMIT"
DEFAULT_LIMIT_BYTES = 4 * 2**30
KEY_BYTES = 16
MANY_FILES, SMALL_BYTES = 32, 32 * 2**20  # so many files smaller than this become one
LOCK_SECONDS = 60.0
HASHING_THREADS = 8
SETTLED_NS = 2 * 10**9  # a file younger than this may change again under the same time stamp
UNREADABLE = "(unreadable, or of another version)"
_OURS = re.compile(r"[0-9a-f]{32}|index\.sqlite.*")  # spaces, and the index of format 1; other files are the user's
_log = logging.getLogger(__name__)


class StoreError(UserError):
    """The store cannot be read or written, or another process holds it for too long."""


@dataclass(frozen=True)
class Space:
    """What all rows of one folder have in common; rows that differ in any of it never meet.

    The backbone's name is for people, and no part of the key. `computed_by` are device, precision and libraries, which
    decide the last bits; a row is `width` numbers.
    """

    backbone: str
    fingerprint: str
    transform: str
    computed_by: str
    width: int

    @property
    def key(self) -> str:
        """32 hex digits, the name of the space's folder."""
        facts = [FORMAT, self.fingerprint, self.transform, self.computed_by, self.width]
        return sha256_bytes(json.dumps(facts).encode())[:32]


FILE_HASHES = Space("(hashes of files)", "", "", "", 32)


@dataclass(frozen=True)
class Contents:
    """What a store holds of one space: its facts, the number of rows, bytes on disk, and seconds since 1970."""

    backbone: str
    fingerprint: str
    transform: str
    computed_by: str
    rows: int
    size_bytes: int
    last_used: float


def features_folder() -> Path:
    """Return where features are kept unless a caller names another place: `features` in the cache folder."""
    return cache_folder() / "features"


def limit_bytes() -> int:
    """Return the most that a store may hold: `$MMPROMPT_CACHE_LIMIT` such as `500MB`, else 4 GB; 0 keeps nothing."""
    return size_from_environment(LIMIT_VARIABLE, DEFAULT_LIMIT_BYTES, "no store")


class FeatureStore:
    """Rows of features on disk, for any number of backbones and processes. All methods may raise `StoreError`.

    Args:
        folder: made when it is first used.
        limit: in bytes; whole spaces that were not used for longest are deleted to stay below it.
    """

    def __init__(self, folder: Path, limit: int = DEFAULT_LIMIT_BYTES) -> None:
        self.folder = folder
        self.limit = limit

    def read(self, space: Space, keys: Iterable[str]) -> dict[str, Tensor]:
        """Return the rows [width] that are there and whole, by key."""
        with self._locked():
            return self._read(space, keys)

    def add(self, space: Space, rows: Mapping[str, Tensor]) -> None:
        """Add the rows [width] whose keys are not there yet; the first of two writers of a row wins."""
        with self._locked():
            known = self._read(space, rows)
            new = {key: row for key, row in rows.items() if key not in known}
            if not new:
                return
            digests = bytearray(b"".join(map(_digest, new)))
            import torch

            values = torch.stack(list(new.values())).cpu()
            keys = torch.frombuffer(digests, dtype=torch.uint8).view(-1, KEY_BYTES)
            added = {"keys": keys, "rows": values, "checksums": _checksums(values)}
            small = [path for path in self._shards(space) if path.stat().st_size < SMALL_BYTES]
            if len(small) < MANY_FILES or not self._write(space, [added, *map(_load, small)], small):
                self._write(space, [added])

    def hash_files(self, paths: Iterable[Path]) -> dict[Path, str]:
        """Return the SHA-256 of files; a file whose size and time stamp are known is not read again."""
        now = time.time_ns()
        try:
            stats = {path: path.stat() for path in paths}
            keys = {
                path: f"{os.fsencode(path.absolute())!r} {stat.st_size} {stat.st_mtime_ns}"
                for path, stat in stats.items()
            }
            known = self.read(FILE_HASHES, keys.values())
            hashes = {path: known[key].numpy().tobytes().hex() for path, key in keys.items() if key in known}
            unread = [path for path in keys if path not in hashes]
            with ThreadPoolExecutor(HASHING_THREADS) as pool:
                hashes.update(zip(unread, pool.map(sha256_file, unread), strict=True))
        except OSError as error:
            problem = f"cannot be read ({error.strerror})"
            raise bad_file(error.filename, problem, "Check the path of the image.") from None
        settled = {keys[path]: hashes[path] for path in unread if now - stats[path].st_mtime_ns > SETTLED_NS}
        import torch

        rows = {key: torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8) for key, digest in settled.items()}
        self.add(FILE_HASHES, rows)
        return hashes

    def contents(self) -> list[Contents]:
        """Return what is there, last used first."""
        if not self.folder.is_dir():
            return []
        with self._locked():
            return sorted(map(_describe, self._entries()), key=lambda held: -held.last_used)

    def clear(self) -> list[Contents]:
        """Delete everything, also damaged files and those of other versions, and return what was deleted."""
        deleted = self.contents()
        if deleted:
            with self._locked():
                for path in self._entries():
                    _delete(path)
        return deleted

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the store, so that no other process reads or changes it meanwhile."""
        try:
            with FileLock(self.folder / ".lock", timeout=LOCK_SECONDS):
                yield
        except (UserError, OSError, NotImplementedError) as error:  # the last where a file system has no locks
            advice = "Try again when no training is running, or set MMPROMPT_CACHE elsewhere."
            raise StoreError(str(bad_file(self.folder, f"cannot be used ({error})", advice))) from None

    def _entries(self) -> list[Path]:
        """Return the folders of all spaces, and what other versions left, the one not used for longest first."""
        ours = [path for path in self.folder.iterdir() if _OURS.fullmatch(path.name)]
        return sorted(ours, key=lambda path: path.stat().st_mtime_ns)

    def _shards(self, space: Space) -> list[Path]:
        return sorted((self.folder / space.key).glob("*.safetensors"))

    def _read(self, space: Space, keys: Iterable[str]) -> dict[str, Tensor]:
        names = {_digest(key): key for key in keys}
        rows: dict[str, Tensor] = {}
        for path in self._shards(space):
            try:
                rows.update(_read_shard(path, names))
            except Exception as error:  # whatever the library raises on damaged headers
                _log.warning("%s is damaged (%s) and deleted; its features are computed again.", path, error)
                path.unlink()
        self._mark_used(space)
        return rows

    def _mark_used(self, space: Space) -> None:
        """Note the time to the nanosecond: the system's own stamps are equal within some milliseconds."""
        now = time.time_ns()
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.folder / space.key, ns=(now, now))

    def _write(self, space: Space, parts: Sequence[Mapping[str, Tensor]], replaced: Sequence[Path] = ()) -> bool:
        """Write a file of rows, in place of others of the space, and return whether it is not beyond the limit.

        Spaces are deleted first, this one last, to make room.
        """
        import torch

        own = self.folder / space.key
        facts = {name: value for name, value in asdict(space).items() if name != "width"}
        shard = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        data = tensor_bytes(shard, {"space": json.dumps(facts)})
        if len(data) > self.limit:
            return False
        sizes = {path: _size(path) for path in self._entries()}
        sizes[own] = sizes.get(own, 0) - sum(map(_size, replaced))
        room = self.limit - sum(sizes.values()) - len(data)
        for path in sorted(sizes, key=lambda path: path == own):
            if room < 0:
                room += sizes[path]
                _delete(path)
        own.mkdir(exist_ok=True)
        for left in own.glob(".*.tmp"):  # by a kill: nobody else writes now
            left.unlink()
        write_bytes(own / f"{time.time_ns():020d}.safetensors", data)
        for path in replaced:
            path.unlink(missing_ok=True)
        self._mark_used(space)
        return True


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()[:KEY_BYTES]


def _checksums(rows: Tensor) -> Tensor:
    import torch

    data = rows.contiguous().view(torch.uint8).numpy()  # [N, bytes]
    return torch.tensor([zlib.crc32(row) for row in data], dtype=torch.int64)


def _read_shard(path: Path, names: Mapping[bytes, str]) -> dict[str, Tensor]:
    """Return the rows of a file that are asked for, by name; `names` maps their digests to names."""
    shard = _load(path)
    digests = [digest.tobytes() for digest in shard["keys"].numpy()]
    places = [place for place, digest in enumerate(digests) if digest in names]
    values = shard["rows"][places]
    if (_checksums(values) != shard["checksums"][places]).any():
        raise ValueError("a checksum is wrong")
    return {names[digests[place]]: row for place, row in zip(places, values, strict=True)}


def _load(path: Path) -> dict[str, Tensor]:
    """Open a file of rows, of which only what is looked at is read from the disk."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in ("keys", "rows", "checksums")}


def _describe(entry: Path) -> Contents:
    size, last_used = _size(entry), entry.stat().st_mtime
    try:
        rows, facts = 0, {}
        for path in entry.glob("*.safetensors"):
            with safe_open(path, "np") as file:
                rows += file.get_slice("keys").get_shape()[0]
                facts = json.loads(file.metadata()["space"])
        return Contents(**facts, rows=rows, size_bytes=size, last_used=last_used)
    except Exception:  # whatever the library raises on damaged headers
        return Contents(UNREADABLE, "", "", "", 0, size, last_used)


def _size(entry: Path) -> int:
    return sum(path.stat().st_size for path in (entry, *entry.rglob("*")) if path.is_file())


def _delete(entry: Path) -> None:
    if entry.is_dir():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)
