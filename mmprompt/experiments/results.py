"""Finished cells in one SQLite file that several processes fill at once.

A cell waits, is claimed by one process, and ends done or failed; each change is one transaction. A claim lasts as long
as its process: an owner holds a lock file that the system lets go when the process dies, however it dies. This file
knows keys, texts and numbers; what a cell means is not its business.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from mmprompt.errors import bad_file
from mmprompt.files import make_folder

FORMAT = 1
BUSY_S = 60.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS cells (
    key TEXT PRIMARY KEY,
    cell TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'claimed', 'done', 'failed')),
    owner TEXT,
    error TEXT,
    facts TEXT
);
CREATE TABLE IF NOT EXISTS scores (
    key TEXT NOT NULL REFERENCES cells (key),
    target TEXT NOT NULL,
    numbers TEXT NOT NULL,
    n INTEGER NOT NULL,
    correct BLOB NOT NULL,
    predictions BLOB NOT NULL,
    probabilities BLOB NOT NULL,
    PRIMARY KEY (key, target)
);
"""


@dataclass(frozen=True)
class Score:
    """One test of a cell.

    Args:
        target: what it was tested on.
        numbers: by name: accuracy and the like, JSON-ready.
        correct: [N] whether each test picture was right, in the order of the test part.
        predictions: [N] the class it was taken for.
        probabilities: [N] how probable that was, 0..1, kept with three digits.
    """

    target: str
    numbers: Mapping[str, Any]
    correct: np.ndarray
    predictions: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True)
class Finished:
    """A cell that was computed.

    Args:
        key: of the cell.
        facts: seconds, trainable parameters, versions and the like, JSON-ready.
        scores: its tests by target.
    """

    key: str
    facts: Mapping[str, Any]
    scores: Mapping[str, Score]


class Claim(NamedTuple):
    """A cell that this process is to compute: its key and its text."""

    key: str
    cell: str


class Owner(AbstractContextManager["Owner"]):
    """A process that claims cells; alive as long as its lock file is held.

    Args:
        results: the file that it claims in.
    """

    def __init__(self, results: Path) -> None:
        self.name = uuid.uuid4().hex
        self._lock = owner_lock(results, self.name)

    def __enter__(self) -> Owner:
        make_folder(Path(self._lock.lock_file).parent)
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)


def owner_lock(results: Path, name: str) -> FileLock:
    """The lock of a process beside the results file, not yet held."""
    return FileLock(results.with_name(f"{results.name}.owners") / name)


class Results:
    """The file of results; each method is one transaction.

    Args:
        path: the SQLite file, made if it is not there.
    Raises:
        UserError: the file cannot be made, or is not one of these.
    """

    def __init__(self, path: Path) -> None:
        make_folder(path.parent)
        self.path = path
        try:
            self._connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
            self._refuse_other()
            self._connection.execute("PRAGMA journal_mode = WAL")
            with self._transaction():
                for statement in SCHEMA.split(";")[:-1]:
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {FORMAT}")
        except sqlite3.DatabaseError as error:
            raise bad_file(path, f"is not a file of results ({error})", "Give another `results`.") from None

    def _refuse_other(self) -> None:
        """Refuse a file of another format or purpose, before anything is changed in it."""
        query = "SELECT (SELECT user_version FROM pragma_user_version), (SELECT COUNT(*) FROM sqlite_master)"
        found, n_things = self._connection.execute(query).fetchone()
        if found not in (0, FORMAT):
            raise bad_file(self.path, f"has format {found}, this version reads {FORMAT}", "Give another `results`.")
        if found == 0 and n_things:
            raise bad_file(self.path, "is a database of something else", "Give another `results`.")

    def close(self) -> None:
        """Let the file go."""
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def add(self, cells: Mapping[str, str]) -> None:
        """Put cells in line; those done or claimed stay as they are, a failed one is tried again.

        A cell that still waits takes the new text, since its pictures may lie elsewhere by now.
        """
        with self._transaction() as connection:
            connection.executemany(
                "INSERT INTO cells (key, cell, state) VALUES (?, ?, 'waiting') ON CONFLICT (key) DO UPDATE "
                "SET state = 'waiting', error = NULL, cell = excluded.cell WHERE state IN ('waiting', 'failed')",
                cells.items(),
            )

    def claim(self, keys: Sequence[str], owner: Owner) -> Claim | None:
        """Take the first of the waiting cells, so that no other process computes it; None if none waits."""
        with self._transaction() as connection:
            for key in keys:
                row = connection.execute(
                    "SELECT cell FROM cells WHERE key = ? AND state = 'waiting'", (key,)
                ).fetchone()
                if row is not None:
                    connection.execute("UPDATE cells SET state = 'claimed', owner = ? WHERE key = ?", (owner.name, key))
                    return Claim(key, row[0])
        return None

    def take_back(self, owner: Owner) -> None:
        """Put the cells that a process has claimed and not finished back in line."""
        self._free(owner.name)

    def take_back_from_dead(self) -> None:
        """Put the cells of processes that are no more back in line."""
        for (name,) in self._connection.execute("SELECT DISTINCT owner FROM cells WHERE state = 'claimed'").fetchall():
            lock = owner_lock(self.path, name)
            try:
                make_folder(Path(lock.lock_file).parent)
                with lock.acquire(blocking=False):
                    self._free(name)
            except Timeout:
                continue
            Path(lock.lock_file).unlink(missing_ok=True)

    def _free(self, name: str) -> None:
        with self._transaction() as connection:
            free = "UPDATE cells SET state = 'waiting', owner = NULL WHERE state = 'claimed' AND owner = ?"
            connection.execute(free, (name,))

    def finish(self, key: str, facts: Mapping[str, Any], scores: Sequence[Score]) -> None:
        """Keep what a cell came to."""
        rows = [(key, score.target, json.dumps(score.numbers), len(score.correct), *pack(score)) for score in scores]
        with self._transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            done = "UPDATE cells SET state = 'done', owner = NULL, error = NULL, facts = ? WHERE key = ?"
            connection.execute(done, (json.dumps(facts), key))

    def fail(self, key: str, error: str) -> None:
        """Keep why a cell could not be computed."""
        with self._transaction() as connection:
            failed = "UPDATE cells SET state = 'failed', owner = NULL, error = ? WHERE key = ?"
            connection.execute(failed, (error, key))

    def states(self, keys: Sequence[str]) -> dict[str, str]:
        """The state of each cell: waiting, claimed, done or failed; cells that are not there are left out."""
        wanted = set(keys)
        rows = self._connection.execute("SELECT key, state FROM cells").fetchall()
        return {key: state for key, state in rows if key in wanted}

    def failures(self, keys: Sequence[str]) -> dict[str, str]:
        """Why cells failed, by key."""
        wanted = set(keys)
        rows = self._connection.execute("SELECT key, error FROM cells WHERE state = 'failed'").fetchall()
        return {key: error for key, error in rows if key in wanted}

    def finished(self, keys: Sequence[str]) -> dict[str, Finished]:
        """Those of the cells that are done, by key."""
        found = {}
        for key in keys:
            row = self._connection.execute(
                "SELECT facts FROM cells WHERE key = ? AND state = 'done'", (key,)
            ).fetchone()
            if row is not None:
                found[key] = Finished(key, json.loads(row[0]), self._scores(key))
        return found

    def _scores(self, key: str) -> dict[str, Score]:
        rows = self._connection.execute(
            "SELECT target, numbers, n, correct, predictions, probabilities FROM scores WHERE key = ?", (key,)
        )
        return {target: Score(target, json.loads(numbers), *unpack(n, *blobs)) for target, numbers, n, *blobs in rows}


def pack(score: Score) -> tuple[bytes, bytes, bytes]:
    """The three vectors of a score as compressed bytes: bits, little-endian 32-bit integers and half floats."""
    bits = np.packbits(score.correct)
    return compress(bits), compress(score.predictions.astype("<i4")), compress(score.probabilities.astype("<f2"))


def unpack(n: int, correct: bytes, predictions: bytes, probabilities: bytes) -> tuple[np.ndarray, ...]:
    """The three [n] vectors behind compressed bytes."""
    bits, integers, floats = (zlib.decompress(data) for data in (correct, predictions, probabilities))
    right = np.unpackbits(np.frombuffer(bits, np.uint8), count=n).astype(bool)
    return right, np.frombuffer(integers, "<i4"), np.frombuffer(floats, "<f2").astype(float)


def compress(values: np.ndarray) -> bytes:
    """The bytes of an array, compressed."""
    return zlib.compress(values.tobytes())
