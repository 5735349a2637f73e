"""The feature store: rows of numbers on disk, found again by what they were computed from.

The rows of one backbone and transform lie one behind the other in a raw file that `numpy.memmap` reads; an
SQLite index beside them says where each row is and what it sums up to. A row counts once the index is
committed, so a kill leaves whole rows and a tail that the next opening cuts off, and several processes may read
and add at once. This file knows fingerprints and hashes; it knows no model and never opens a picture as one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import sqlite3
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mmprompt.errors import UserError, bad_file
from mmprompt.files import cache_folder, make_folder, sha256_file
from mmprompt.models.feature_index import FeatureIndex, StoredSpace, select
from mmprompt.models.limits import size_from_environment

LIMIT_VARIABLE = "MMPROMPT_CACHE_LIMIT"
DEFAULT_LIMIT_BYTES = 4 * 2**30
INDEX_BYTES_PER_ROW, INDEX_BYTES_PER_FILE = 48, 192  # what SQLite takes, measured and rounded up
HASHING_THREADS = 8
UNREADABLE = "(unreadable, or of another version)"
SETTLED_NS = 2 * 10**9  # a file younger than this may change again under the same time stamp
_log = logging.getLogger(__name__)


def features_folder() -> Path:
    """Where features are kept unless a caller names another place: `features` in the cache folder."""
    return cache_folder() / "features"


def limit_bytes() -> int:
    """The most that a store may hold: `$MMPROMPT_CACHE_LIMIT` such as `500MB`, else 4 GB; 0 keeps nothing on disk.

    Raises:
        UserError: the variable is no size.
    """
    return size_from_environment(LIMIT_VARIABLE, DEFAULT_LIMIT_BYTES, "no store")


@dataclass(frozen=True)
class Space:
    """What all rows of one file have in common; rows that differ in any of it never meet.

    Args:
        backbone: its name, for people; not part of the key.
        fingerprint: of its weights.
        transform: what was done to the pictures first, in one line of text.
        computed_by: device, precision and libraries, which decide the last bits.
        width: numbers in a row.
        dtype: `"float32"` or `"float64"`.
    """

    backbone: str
    fingerprint: str
    transform: str
    computed_by: str
    width: int
    dtype: str = "float32"

    @property
    def key(self) -> str:
        """32 hex digits, the name of the space's folder."""
        facts = {name: value for name, value in asdict(self).items() if name != "backbone"}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.width * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Contents:
    """What a store holds of one space.

    Args:
        backbone, fingerprint, transform, computed_by: as in `Space`.
        rows: how many.
        size_bytes: of the rows and their part of the index.
        last_used: seconds since 1970.
    """

    backbone: str
    fingerprint: str
    transform: str
    computed_by: str
    rows: int
    size_bytes: int
    last_used: float


class FeatureStore:
    """Rows of features on disk, for any number of backbones and processes.

    Args:
        folder: made when the first row is added.
        limit: in bytes; whole spaces that were not used for longest are dropped to stay below it.
    """

    def __init__(self, folder: Path, limit: int = DEFAULT_LIMIT_BYTES) -> None:
        self.folder = folder
        self.limit = limit
        self._index = FeatureIndex(folder)

    def open(self, space: Space) -> None:
        """Note that a space is in use, and mend what a kill or a full disk left of it.

        Raises:
            UserError: the folder cannot be made, or another version wrote the store.
        """
        make_folder(self.folder)
        self._index.mended(lambda: self._open(space))

    def read(self, space: Space, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """The rows that are there and whole, by key; each [width].

        Raises:
            UserError: another version wrote the store.
        """
        return self._index.mended(lambda: self._read(space, keys))

    def add(self, space: Space, rows: Mapping[str, np.ndarray]) -> None:
        """Add the rows whose keys are not there yet; the first of two writers of a row wins.

        Args:
            space: of all rows.
            rows: [width] each, of the space's dtype.
        Raises:
            UserError: another version wrote the store.
        """
        self._index.mended(lambda: self._add(space, rows))

    def hash_files(self, paths: Iterable[Path]) -> dict[Path, str]:
        """The SHA-256 of files; a file whose size and time stamp are known is not read again.

        Raises:
            UserError: a file cannot be read, or another version wrote the store.
        """
        return self._index.mended(lambda: self._hash_files(list(paths)))

    def contents(self) -> list[Contents]:
        """What is there, last used first.

        Raises:
            UserError: another version wrote the store.
        """
        return self._index.mended(self._contents) if self._index.exists else []

    def clear(self) -> list[Contents]:
        """Drop everything, also what is damaged or what another version wrote; what went.

        Raises:
            UserError: other processes hold the store for too long.
        """
        if not self._index.exists:
            return []
        try:
            gone = self._contents()
            with self._index.transaction("IMMEDIATE") as db:
                for stored in self._index.spaces(db):
                    self._drop(db, stored)
                db.execute("DELETE FROM files")
        except sqlite3.OperationalError as error:
            advice = "Try again when no training is running."
            raise bad_file(self.folder, f"cannot be emptied ({error})", advice) from None
        except (UserError, sqlite3.DatabaseError):
            size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
            gone = [Contents(UNREADABLE, "", "", "", 0, size, time.time())]
            self._index.remove_all()
        return gone

    def _contents(self) -> list[Contents]:
        query = """SELECT facts, last_used, (SELECT COUNT(*) FROM rows WHERE space = id), n_slots, row_bytes
                   FROM spaces ORDER BY last_used DESC"""
        with self._index.transaction("DEFERRED") as db:
            found = db.execute(query).fetchall()
        return [
            Contents(**json.loads(facts), rows=n, size_bytes=n_slots * (row + INDEX_BYTES_PER_ROW), last_used=used)
            for facts, used, n, n_slots, row in found
        ]

    def _open(self, space: Space) -> None:
        with self._index.transaction("IMMEDIATE") as db:
            stored = self._index.find(db, space.key)
            if stored is not None:
                db.execute("UPDATE spaces SET last_used = ? WHERE id = ?", [time.time(), stored.id])
                self._cut(db, stored)

    def _cut(self, db: sqlite3.Connection, stored: StoredSpace) -> None:
        """Bring a file and its index to the same length: bytes without a row go, and rows without bytes."""
        size = stored.path.stat().st_size if stored.path.exists() else 0
        n_slots = min(stored.n_slots, size // stored.row_bytes)
        if n_slots < stored.n_slots:
            db.execute("DELETE FROM rows WHERE space = ? AND slot >= ?", [stored.id, n_slots])
            db.execute("UPDATE spaces SET n_slots = ? WHERE id = ?", [n_slots, stored.id])
        if size > n_slots * stored.row_bytes:
            os.truncate(stored.path, n_slots * stored.row_bytes)

    def _read(self, space: Space, keys: Sequence[str]) -> dict[str, np.ndarray]:
        digests = {_digest(key): key for key in keys}
        with self._index.transaction("DEFERRED") as db:  # the file cannot be dropped before it is mapped
            stored = self._index.find(db, space.key)
            if stored is None:
                return {}
            places = self._places(db, stored, list(digests))
            block = _rows(stored, space, [slot for slot, _ in places.values()])
        good, bad = {}, []
        for (digest, (_, crc)), row in zip(places.items(), block, strict=True):
            if row is not None and _crc(digest, row) == crc:
                good[digests[digest]] = row
            else:
                bad.append(digest)
        if bad:
            _log.warning("%d damaged rows of the feature store in %s are computed again.", len(bad), self.folder)
            with self._index.transaction("IMMEDIATE") as db:
                statement = "DELETE FROM rows WHERE space = ? AND key = ?"
                db.executemany(statement, [(stored.id, digest) for digest in bad])
        return good

    def _places(
        self, db: sqlite3.Connection, stored: StoredSpace, digests: Sequence[bytes]
    ) -> dict[bytes, tuple[int, int]]:
        """Slot and checksum of the rows that are there."""
        query = "SELECT key, slot, crc FROM rows WHERE space = ? AND key IN ({})"
        return {key: (slot, crc) for key, slot, crc in select(db, query, digests, stored.id)}

    def _add(self, space: Space, rows: Mapping[str, np.ndarray]) -> None:
        values = {_digest(key): np.ascontiguousarray(row, dtype=space.dtype) for key, row in rows.items()}
        with self._index.transaction("IMMEDIATE") as db:
            stored = self._index.find(db, space.key)
            known = {} if stored is None else self._places(db, stored, list(values))
            new = {digest: row for digest, row in values.items() if digest not in known}
            needed = len(new) * (space.row_bytes + INDEX_BYTES_PER_ROW)
            if not new or not self._make_room(db, space, needed):
                return
            stored = self._index.find(db, space.key) or self._create(db, space)
            _append(stored, b"".join(row.tobytes() for row in new.values()))
            records = [
                (stored.id, digest, slot, _crc(digest, row))
                for slot, (digest, row) in enumerate(new.items(), stored.n_slots)
            ]
            db.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", records)
            update = "UPDATE spaces SET n_slots = ?, last_used = ? WHERE id = ?"
            db.execute(update, [stored.n_slots + len(new), time.time(), stored.id])

    def _create(self, db: sqlite3.Connection, space: Space) -> StoredSpace:
        """A new space; its file has a name of its own, so that one dropped while it is read is never refilled."""
        file = f"rows-{secrets.token_hex(4)}.{space.dtype}"
        (self.folder / space.key).mkdir(exist_ok=True)
        facts = {name: getattr(space, name) for name in ("backbone", "fingerprint", "transform", "computed_by")}
        statement = "INSERT INTO spaces (key, file, facts, row_bytes, n_slots, last_used) VALUES (?, ?, ?, ?, 0, ?)"
        cursor = db.execute(statement, [space.key, file, json.dumps(facts), space.row_bytes, time.time()])
        assert cursor.lastrowid is not None, "an insert has a row"
        return StoredSpace(cursor.lastrowid, self.folder / space.key / file, 0, space.row_bytes)

    def _make_room(self, db: sqlite3.Connection, space: Space, needed: int) -> bool:
        """Drop whole spaces until so many bytes fit, the one in use last; False if they never will."""
        own = [stored for stored in self._index.spaces(db) if stored.path.parent.name == space.key]
        others = [stored for stored in self._index.spaces(db) if stored not in own]
        for stored in (*others, *own):
            if self._used(db) + needed <= self.limit:
                break
            self._drop(db, stored)
            db.execute("DELETE FROM files")
        return self._used(db) + needed <= self.limit

    def _used(self, db: sqlite3.Connection) -> int:
        (n_files,) = db.execute("SELECT COUNT(*) FROM files").fetchone()
        rows = sum(stored.n_slots * (stored.row_bytes + INDEX_BYTES_PER_ROW) for stored in self._index.spaces(db))
        return rows + n_files * INDEX_BYTES_PER_FILE

    def _drop(self, db: sqlite3.Connection, stored: StoredSpace) -> None:
        db.execute("DELETE FROM rows WHERE space = ?", [stored.id])
        db.execute("DELETE FROM spaces WHERE id = ?", [stored.id])
        shutil.rmtree(stored.path.parent, ignore_errors=True)

    def _hash_files(self, paths: Sequence[Path]) -> dict[Path, str]:
        now = time.time_ns()
        try:
            names = {os.fsencode(path.absolute()): path for path in paths}
            stats = {name: path.stat() for name, path in names.items()}
            with self._index.transaction("DEFERRED") as db:
                known = select(db, "SELECT path, size, mtime_ns, sha256 FROM files WHERE path IN ({})", list(names))
            hashes = {
                name: sha256
                for name, size, mtime_ns, sha256 in known
                if (size, mtime_ns) == (stats[name].st_size, stats[name].st_mtime_ns)
            }
            unread = [name for name in names if name not in hashes]
            with ThreadPoolExecutor(HASHING_THREADS) as pool:
                read = dict(zip(unread, pool.map(lambda name: sha256_file(names[name]), unread), strict=True))
        except OSError as error:
            raise bad_file(
                error.filename, f"cannot be read ({error.strerror})", "Check the path of the picture."
            ) from None
        records = [
            (name, stats[name].st_size, stats[name].st_mtime_ns, sha256)
            for name, sha256 in read.items()
            if now - stats[name].st_mtime_ns > SETTLED_NS
        ]
        if records:
            with self._index.transaction("IMMEDIATE") as db:
                db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", records)
        return {path: (hashes | read)[name] for name, path in names.items()}


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()[:16]


def _crc(digest: bytes, row: np.ndarray) -> int:
    """Over the key too, so that a whole row in a wrong place is seen."""
    return zlib.crc32(row.tobytes(), zlib.crc32(digest))


def _rows(stored: StoredSpace, space: Space, slots: Sequence[int]) -> Sequence[np.ndarray | None]:
    """The rows in some slots, each a copy; None for those that the file is too short for."""
    n_slots = stored.path.stat().st_size // stored.row_bytes if stored.path.exists() else 0
    if not slots or not n_slots:
        return [None] * len(slots)
    mapped = np.memmap(stored.path, dtype=space.dtype, mode="r", shape=(n_slots, space.width))
    block = mapped[[min(slot, n_slots - 1) for slot in slots]]
    return [row if slot < n_slots else None for slot, row in zip(slots, np.asarray(block), strict=True)]


def _append(stored: StoredSpace, data: bytes) -> None:
    """Write rows behind the last one that counts and wait until they are on the disk."""
    stored.path.touch()
    with stored.path.open("r+b") as handle:
        start = stored.n_slots * stored.row_bytes
        handle.truncate(start)
        handle.seek(start)
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
