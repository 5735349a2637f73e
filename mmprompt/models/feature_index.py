"""The index of a feature store: one SQLite file that several processes may use at once.

It knows tables, versions and transactions, and where a space's file lies; what a row is, it does not know.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from mmprompt.errors import bad_file

FORMAT = 1
INDEX = "index.sqlite"
BUSY_SECONDS = 60.0
KEYS_PER_QUERY = 500
TABLES = """
CREATE TABLE spaces (
    id INTEGER PRIMARY KEY, key TEXT UNIQUE, file TEXT, facts TEXT, row_bytes INTEGER, n_slots INTEGER, last_used REAL);
CREATE TABLE rows (space INTEGER, key BLOB, slot INTEGER, crc INTEGER, PRIMARY KEY (space, key)) WITHOUT ROWID;
CREATE TABLE files (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, sha256 TEXT) WITHOUT ROWID;
"""
Found = TypeVar("Found")
_log = logging.getLogger(__name__)


class StoredSpace(NamedTuple):
    """A space as the index has it."""

    id: int
    path: Path
    n_slots: int
    row_bytes: int


class FeatureIndex:
    """The index in a folder; made with its first transaction.

    Args:
        folder: of the store; must be there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def exists(self) -> bool:
        """Whether there is an index."""
        return (self.folder / INDEX).exists()

    def mended(self, work: Callable[[], Found]) -> Found:
        """Do some work; if the index turns out to be damaged, do it again on an empty store."""
        try:
            return work()
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:  # its subclasses are locks, full disks, missing rights
                raise
            _log.warning("the index of the feature store in %s is damaged; the store starts anew.", self.folder)
            self.remove_all()
            return work()

    def remove_all(self) -> None:
        """Take away the index and all rows."""
        for path in self.folder.glob(f"{INDEX}*"):
            path.unlink(missing_ok=True)
        self._remove_spaces()

    def _remove_spaces(self) -> None:
        for path in self.folder.iterdir():
            if re.fullmatch(r"[0-9a-f]{32}", path.name):
                shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def transaction(self, kind: str) -> Iterator[sqlite3.Connection]:
        """One transaction on a connection of its own, which therefore never crosses a fork or a thread."""
        with contextlib.closing(sqlite3.connect(self.folder / INDEX, timeout=BUSY_SECONDS, isolation_level=None)) as db:
            self._prepare(db)
            db.execute(f"BEGIN {kind}")
            try:
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Make the tables of a new index, and refuse one of another version."""
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            db.execute("PRAGMA auto_vacuum = FULL")
            db.execute("BEGIN IMMEDIATE")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version == 0:  # else another process was quicker
                self._remove_spaces()  # rows without an index
                for statement in TABLES.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {FORMAT}")
                version = FORMAT
            db.execute("COMMIT")
        if version != FORMAT:
            raise bad_file(
                self.folder,
                f"is a feature store of format {version}, but this version of mmprompt reads format {FORMAT}",
                "Empty it with `mmprompt data cache --clear`, or set MMPROMPT_CACHE elsewhere.",
            )

    def spaces(self, db: sqlite3.Connection) -> list[StoredSpace]:
        """Every space, the one not used for longest first."""
        found = db.execute("SELECT id, key, file, n_slots, row_bytes FROM spaces ORDER BY last_used, id").fetchall()
        return [StoredSpace(number, self.folder / key / file, n, size) for number, key, file, n, size in found]

    def find(self, db: sqlite3.Connection, key: str) -> StoredSpace | None:
        """The space of a key, None if there is none."""
        found = db.execute("SELECT id, file, n_slots, row_bytes FROM spaces WHERE key = ?", [key]).fetchone()
        return None if found is None else StoredSpace(found[0], self.folder / key / found[1], *found[2:])


def select(db: sqlite3.Connection, query: str, keys: Sequence[bytes], *before: int) -> list[tuple]:
    """All rows of a query whose last placeholder is a list of keys of any length."""
    found = []
    for start in range(0, len(keys), KEYS_PER_QUERY):
        part = keys[start : start + KEYS_PER_QUERY]
        found += db.execute(query.format(", ".join("?" * len(part))), [*before, *part]).fetchall()
    return found
