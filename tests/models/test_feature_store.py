from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmprompt.errors import UserError
from mmprompt.models.feature_index import INDEX
from mmprompt.models.feature_store import INDEX_BYTES_PER_ROW, FeatureStore, Space, limit_bytes

SPACE = Space("tiny", "f" * 64, "shorter side to 32", "cpu", 6)
ROW_COST = SPACE.row_bytes + INDEX_BYTES_PER_ROW


def row_of(key: str, space: Space = SPACE) -> np.ndarray:
    """A row that follows from its key."""
    return np.random.default_rng(list(key.encode())).standard_normal(space.width).astype(space.dtype)


def rows_of(*keys: str, space: Space = SPACE) -> dict[str, np.ndarray]:
    return {key: row_of(key, space) for key in keys}


def row_file(store: FeatureStore) -> Path:
    (path,) = store.folder.glob("*/rows-*")
    return path


def assert_holds(store: FeatureStore, *keys: str, space: Space = SPACE) -> None:
    """Exactly these keys of a, b, c, d, e, each with its row to the last bit."""
    found = store.read(space, list("abcde"))
    assert sorted(found) == sorted(keys)
    for key in keys:
        np.testing.assert_array_equal(found[key], row_of(key, space))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """A store with rows a and b."""
    store = FeatureStore(tmp_path / "features")
    store.open(SPACE)
    store.add(SPACE, rows_of("a", "b"))
    return store


def reopened(store: FeatureStore, space: Space = SPACE) -> FeatureStore:
    again = FeatureStore(store.folder, store.limit)
    again.open(space)
    return again


def test_rows_come_back_to_the_last_bit(store: FeatureStore) -> None:
    store.add(SPACE, rows_of("c"))
    assert_holds(reopened(store), "a", "b", "c")


def test_rows_are_a_plain_file(store: FeatureStore) -> None:
    np.testing.assert_array_equal(np.fromfile(row_file(store), np.float32).reshape(-1, 6)[0], row_of("a"))


def test_double_precision_is_kept(store: FeatureStore) -> None:
    double = replace(SPACE, dtype="float64")
    store.add(double, rows_of("a", space=double))
    assert_holds(store, "a", space=double)


@pytest.mark.parametrize("change", ["fingerprint", "transform", "computed_by"])
def test_rows_of_another_space_are_not_found(store: FeatureStore, change: str) -> None:
    assert_holds(store, space=replace(SPACE, **{change: "another"}))


def test_the_name_of_a_backbone_does_not_matter(store: FeatureStore) -> None:
    assert_holds(store, "a", "b", space=replace(SPACE, backbone="renamed"))


def test_the_first_writer_of_a_row_wins(store: FeatureStore) -> None:
    store.add(SPACE, {"a": np.zeros(6, np.float32), "c": row_of("c")})
    assert_holds(store, "a", "b", "c")
    assert row_file(store).stat().st_size == 3 * SPACE.row_bytes


def test_a_torn_row_is_cut_off_at_the_next_opening(store: FeatureStore) -> None:
    with row_file(store).open("ab") as handle:
        handle.write(b"half a row")
    again = reopened(store)
    assert row_file(again).stat().st_size == 2 * SPACE.row_bytes
    again.add(SPACE, rows_of("c"))
    assert_holds(again, "a", "b", "c")


def test_a_kill_in_the_middle_of_an_append_leaves_whole_rows(store: FeatureStore) -> None:
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from mmprompt.models.feature_store import FeatureStore
from tests.models.test_feature_store import SPACE, rows_of
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
FeatureStore(Path({str(store.folder)!r})).add(SPACE, rows_of("c", "d"))
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    assert row_file(store).stat().st_size == 4 * SPACE.row_bytes
    again = reopened(store)
    assert row_file(again).stat().st_size == 2 * SPACE.row_bytes
    assert_holds(again, "a", "b")
    again.add(SPACE, rows_of("e"))
    assert_holds(again, "a", "b", "e")


def test_rows_that_the_file_lost_are_forgotten(store: FeatureStore) -> None:
    os.truncate(row_file(store), SPACE.row_bytes + 3)
    assert_holds(reopened(store), "a")


def test_rows_whose_file_is_gone_are_forgotten(store: FeatureStore) -> None:
    row_file(store).unlink()
    again = reopened(store)
    assert_holds(again)
    again.add(SPACE, rows_of("c"))
    assert_holds(again, "c")


@pytest.mark.parametrize("is_opened_again", [True, False])
def test_a_damaged_row_is_noticed_and_replaced(store: FeatureStore, is_opened_again: bool) -> None:
    with row_file(store).open("r+b") as handle:
        handle.write(b"\x01")
    again = reopened(store) if is_opened_again else store
    assert_holds(again, "b")
    again.add(SPACE, rows_of("a"))
    assert_holds(again, "a", "b")


def test_rows_that_changed_places_are_noticed(store: FeatureStore) -> None:
    data = row_file(store).read_bytes()
    row_file(store).write_bytes(data[SPACE.row_bytes :] + data[: SPACE.row_bytes])
    assert_holds(store)


def test_a_damaged_index_starts_the_store_anew(store: FeatureStore, caplog: pytest.LogCaptureFixture) -> None:
    (store.folder / INDEX).write_bytes(b"not a database, but a text of some length" * 30)
    again = reopened(store)
    assert "damaged" in caplog.text
    assert_holds(again)
    again.add(SPACE, rows_of("c"))
    assert_holds(again, "c")
    assert len(list(store.folder.glob("*/rows-*"))) == 1


def test_a_store_of_another_version_is_refused(store: FeatureStore) -> None:
    with sqlite3.connect(store.folder / INDEX) as db:
        db.execute("PRAGMA user_version = 7")
    message = r"format 7, but this version of mmprompt reads format 1\. Empty it with `mmprompt data cache --clear`"
    with pytest.raises(UserError, match=message):
        reopened(store)
    (gone,) = store.clear()
    assert gone.size_bytes > 0
    assert_holds(reopened(store))


def test_processes_that_fill_a_store_at_once_give_each_row_once(tmp_path: Path) -> None:
    program = f"""
import random, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from mmprompt.models.feature_store import FeatureStore
from tests.models.test_feature_store import SPACE, rows_of
store, keys = FeatureStore(Path(sys.argv[1])), [str(i) for i in range(60)]
store.open(SPACE)
random.Random(sys.argv[2]).shuffle(keys)
for start in range(0, 60, 5):
    store.add(SPACE, rows_of(*keys[start : start + 5]))
    assert len(store.read(SPACE, keys[: start + 5])) == start + 5
"""
    writers = [subprocess.Popen([sys.executable, "-c", program, tmp_path / "f", str(i)]) for i in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    store = FeatureStore(tmp_path / "f")
    found = store.read(SPACE, [str(i) for i in range(60)])
    assert len(found) == 60
    for key, row in found.items():
        np.testing.assert_array_equal(row, row_of(key))
    assert row_file(store).stat().st_size == 60 * SPACE.row_bytes


def other(number: int) -> Space:
    return replace(SPACE, fingerprint=str(number))


def test_the_space_not_used_for_longest_is_dropped_whole(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, limit=5 * ROW_COST)
    for number in (1, 2):
        store.open(other(number))
        store.add(other(number), rows_of("a", "b"))
    store.open(other(1))
    store.add(other(3), rows_of("a", "b"))
    assert_holds(store, "a", "b", space=other(1))
    assert_holds(store, space=other(2))
    assert_holds(store, "a", "b", space=other(3))
    assert sum(one.size_bytes for one in store.contents()) <= store.limit
    assert len(list(tmp_path.glob("*/rows-*"))) == 2


def test_a_space_that_outgrows_the_limit_starts_anew(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, limit=3 * ROW_COST)
    store.open(SPACE)
    store.add(SPACE, rows_of("a", "b"))
    store.add(SPACE, rows_of("c", "d"))
    assert_holds(store, "c", "d")


def test_rows_beyond_the_limit_are_not_kept(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, limit=ROW_COST)
    store.open(SPACE)
    store.add(SPACE, rows_of("a", "b"))
    assert store.contents() == []


def test_what_the_limit_counts_is_what_the_disk_holds(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    store.open(SPACE)
    store.add(SPACE, rows_of(*map(str, range(5000))))
    on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert on_disk <= store.contents()[0].size_bytes <= 1.25 * on_disk


def test_contents_say_what_is_there(store: FeatureStore) -> None:
    (one,) = store.contents()
    assert (one.backbone, one.fingerprint, one.transform) == ("tiny", "f" * 64, "shorter side to 32")
    assert (one.rows, one.size_bytes) == (2, 2 * ROW_COST)
    assert time.time() - one.last_used < 60


def test_clearing_drops_all_and_says_what_went(store: FeatureStore) -> None:
    assert [one.rows for one in store.clear()] == [2]
    assert store.clear() == []
    assert not list(store.folder.glob("*/*"))
    store.add(SPACE, rows_of("c"))
    assert_holds(store, "c")


def test_looking_at_a_store_that_is_not_there_makes_none(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "none")
    assert store.contents() == store.clear() == []
    assert not store.folder.exists()


def write_settled(path: Path, text: str) -> Path:
    """A file whose time stamp is long past."""
    path.write_text(text)
    os.utime(path, (1e9, 1e9))
    return path


def test_a_file_with_a_known_time_stamp_is_not_read_again(store: FeatureStore, tmp_path: Path) -> None:
    path = write_settled(tmp_path / "a.png", "one")
    before = store.hash_files([path])
    write_settled(path, "two")  # the same size and time stamp: nothing shows the change
    assert store.hash_files([path]) == before


def test_a_file_with_another_time_stamp_is_read_again(store: FeatureStore, tmp_path: Path) -> None:
    path = write_settled(tmp_path / "a.png", "one")
    before = store.hash_files([path])
    path.write_text("two")
    assert store.hash_files([path]) != before


def test_a_file_that_was_just_written_is_always_read(store: FeatureStore, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("one")
    stamp = path.stat().st_mtime_ns
    before = store.hash_files([path])
    path.write_text("two")
    os.utime(path, ns=(stamp, stamp))
    assert store.hash_files([path]) != before


def test_a_file_that_is_not_there_is_named(store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png: cannot be read"):
        store.hash_files([tmp_path / "gone.png"])


@pytest.mark.skipif(os.name == "nt", reason="names are text on this system")
def test_names_that_are_no_text_are_files_too(store: FeatureStore, tmp_path: Path) -> None:
    path = write_settled(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")), "one")
    assert len(store.hash_files([path])[path]) == 64


@pytest.mark.parametrize(
    ("text", "size"), [("", 4 * 2**30), ("0", 0), ("1000", 1000), ("500MB", 500 * 2**20), ("1.5 gb", 1536 * 2**20)]
)
def test_the_limit_is_a_size_with_a_unit(text: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMPROMPT_CACHE_LIMIT", text)
    assert limit_bytes() == size


@pytest.mark.parametrize("text", ["lots", "-1", "4 PB", "1e3"])
def test_a_limit_that_is_no_size_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMPROMPT_CACHE_LIMIT", text)
    with pytest.raises(UserError, match=r"MMPROMPT_CACHE_LIMIT is .* a size was expected"):
        limit_bytes()
