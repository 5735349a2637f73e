from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from mmprompt.errors import UserError
from mmprompt.models import feature_store
from mmprompt.models.feature_store import MANY_FILES, UNREADABLE, FeatureStore, Space, StoreError, limit_bytes

SPACE = Space("tiny", "f" * 64, "shorter side to 32", "cpu", 6)
PROGRAM = f"""
import os, random, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from mmprompt.models.feature_store import FeatureStore
from tests.models.test_feature_store import SPACE, rows_of
store = FeatureStore(Path(sys.argv[1]))
"""


def row_of(key: str, width: int = 6, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A row that follows from its key."""
    return torch.from_numpy(np.random.default_rng(list(key.encode())).standard_normal(width)).to(dtype)


def rows_of(*keys: str) -> dict[str, torch.Tensor]:
    return {key: row_of(key) for key in keys}


def files(store: FeatureStore) -> list[Path]:
    return sorted(store.folder.glob("*/*.safetensors"))


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def assert_holds(store: FeatureStore, *keys: str, space: Space = SPACE) -> None:
    """Exactly these keys of a, b, c, d, e, each with its row to the last bit."""
    rows = FeatureStore(store.folder, store.limit).read(space, list("abcde"))
    assert sorted(rows) == sorted(keys)
    for key in keys:
        assert torch.equal(rows[key], row_of(key))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """A store with rows a and b in one file."""
    store = FeatureStore(tmp_path / "features")
    store.add(SPACE, rows_of("a", "b"))
    return store


def test_rows_come_back_to_the_last_bit(store: FeatureStore) -> None:
    store.add(SPACE, rows_of("c"))
    assert_holds(store, "a", "b", "c")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_precision_of_rows_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    store = FeatureStore(tmp_path)
    store.add(SPACE, {"a": row_of("a", dtype=dtype)})
    assert torch.equal(store.read(SPACE, ["a"])["a"], row_of("a", dtype=dtype))


@pytest.mark.parametrize("change", ["fingerprint", "transform", "computed_by"])
def test_rows_of_another_space_are_not_read(store: FeatureStore, change: str) -> None:
    assert_holds(store, space=replace(SPACE, **{change: "another"}))


def test_rows_of_another_width_are_not_read(store: FeatureStore) -> None:
    assert_holds(store, space=replace(SPACE, width=7))


def test_the_name_of_a_backbone_does_not_matter(store: FeatureStore) -> None:
    assert_holds(store, "a", "b", space=replace(SPACE, backbone="renamed"))


def test_the_first_writer_of_a_row_wins(store: FeatureStore) -> None:
    store.add(SPACE, {"a": torch.zeros(6), "c": row_of("c")})
    assert_holds(store, "a", "b", "c")
    assert [held.rows for held in store.contents()] == [3]


def test_a_kill_while_a_file_is_written_leaves_the_old_rows(store: FeatureStore) -> None:
    program = PROGRAM + "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL); store.add(SPACE, rows_of('c', 'd'))"
    done = subprocess.run([sys.executable, "-c", program, store.folder], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(store.folder.glob("*/.*.tmp"))
    assert_holds(store, "a", "b")
    store.add(SPACE, rows_of("e"))
    assert not list(store.folder.glob("*/.*.tmp"))
    assert_holds(store, "a", "b", "e")


def test_a_file_with_a_damaged_row_is_dropped_and_may_be_written_anew(
    store: FeatureStore, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = files(store)
    data = bytearray(path.read_bytes())
    data[data.index(row_of("a").numpy().tobytes())] ^= 1
    path.write_bytes(data)
    assert_holds(store)
    assert "a checksum is wrong" in caplog.text
    store.add(SPACE, rows_of("a", "b"))
    assert_holds(store, "a", "b")


def test_rows_that_changed_places_are_not_read(store: FeatureStore) -> None:
    (path,) = files(store)
    a, b = (row_of(key).numpy().tobytes() for key in "ab")
    path.write_bytes(path.read_bytes().replace(a + b, b + a))
    assert_holds(store)


@pytest.mark.parametrize("content", [b"", b"not a file of tensors, but some text" * 9, None])
def test_a_file_that_is_damaged_is_dropped(store: FeatureStore, content: bytes | None) -> None:
    (path,) = files(store)
    path.write_bytes(path.read_bytes()[:-10] if content is None else content)
    assert [held.backbone for held in store.contents() if held.size_bytes] in ([UNREADABLE], [])
    assert_holds(store)
    store.add(SPACE, rows_of("c"))
    assert_holds(store, "c")


def test_rows_whose_file_is_gone_are_forgotten(store: FeatureStore) -> None:
    files(store)[0].unlink()
    assert_holds(store)


def test_many_small_files_become_one(store: FeatureStore) -> None:
    for number in range(MANY_FILES - 1):
        store.add(SPACE, rows_of(str(number)))
    assert len(files(store)) == MANY_FILES
    store.add(SPACE, rows_of("c"))
    assert len(files(store)) == 1
    assert_holds(store, "a", "b", "c")
    assert [held.rows for held in store.contents()] == [MANY_FILES + 2]


def write_format_1(folder: Path) -> int:
    """What versions until 0.9 left: an index, and rows in the folders of spaces; their size."""
    (folder / ("0" * 32)).mkdir(parents=True)
    (folder / ("0" * 32) / "rows-1234abcd.float32").write_bytes(bytes(4000))
    (folder / "index.sqlite").write_bytes(bytes(5000))
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))
    return 9000


def test_what_another_version_wrote_is_counted_and_cleared_and_never_read(store: FeatureStore) -> None:
    size = write_format_1(store.folder)
    assert_holds(store, "a", "b")
    assert sum(held.size_bytes for held in store.contents() if held.backbone == UNREADABLE) == size
    assert len(store.clear()) == 3
    assert_holds(store)


def test_what_another_version_wrote_goes_first(tmp_path: Path) -> None:
    write_format_1(tmp_path)
    store = FeatureStore(tmp_path, limit=5000)
    store.add(SPACE, rows_of("a", "b"))
    assert_holds(store, "a", "b")
    assert [held.backbone for held in store.contents()] == ["tiny"]


def test_files_of_the_user_in_the_same_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("a" * 3000)
    (tmp_path / "notes.txt").write_text("b" * 3000)
    store = FeatureStore(tmp_path, limit=1000)
    store.add(SPACE, rows_of("a"))
    assert_holds(store, "a")
    store.clear()
    assert on_disk(tmp_path) == 6000


def test_processes_that_fill_a_store_at_once_give_each_row_once(tmp_path: Path) -> None:
    program = (
        PROGRAM
        + """
keys = [str(i) for i in range(60)]
random.Random(sys.argv[2]).shuffle(keys)
for start in range(0, 60, 5):
    store.add(SPACE, rows_of(*keys[start : start + 5]))
    assert len(store.read(SPACE, keys[: start + 5])) == start + 5
"""
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, tmp_path / "f", str(i)]) for i in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    store = FeatureStore(tmp_path / "f")
    rows = store.read(SPACE, [str(i) for i in range(60)])
    assert len(rows) == 60
    for key, row in rows.items():
        assert torch.equal(row, row_of(key))
    assert [held.rows for held in store.contents()] == [60]


def test_a_store_that_another_process_holds_is_given_up_after_a_while(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_store, "LOCK_SECONDS", 0.01)
    with FileLock(store.folder / ".lock"), pytest.raises(StoreError, match="Try again when no training is running"):
        store.clear()


FILE_BYTES = 500  # of one or two rows of six numbers, rounded up


def other(number: int) -> Space:
    return replace(SPACE, fingerprint=str(number))


def test_the_space_not_used_for_longest_is_dropped_whole(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, limit=2 * FILE_BYTES)
    for number in (1, 2):
        store.add(other(number), rows_of("a", "b"))
    store.read(other(1), ["a"])
    store.add(other(3), rows_of("a", "b"))
    assert_holds(store, "a", "b", space=other(1))
    assert_holds(store, space=other(2))
    assert_holds(store, "a", "b", space=other(3))
    assert on_disk(tmp_path) <= store.limit


def test_a_space_that_outgrows_the_limit_starts_anew(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, limit=FILE_BYTES)
    store.add(SPACE, rows_of("a", "b"))
    store.add(SPACE, rows_of("c", "d"))
    assert_holds(store, "c", "d")


def many_small_files(store: FeatureStore) -> None:
    for number in range(MANY_FILES):
        store.add(SPACE, rows_of(str(number)))
    assert len(files(store)) >= MANY_FILES


def test_small_files_that_become_one_push_nothing_out_that_there_is_room_for(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    store.add(other(1), rows_of("a"))
    many_small_files(store)
    store.limit = on_disk(tmp_path) + 600
    store.add(SPACE, rows_of("c"))
    assert [held.rows for held in store.contents()] == [MANY_FILES + 1, 1]


def test_small_files_that_would_be_one_beyond_the_limit_leave_the_new_rows(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    many_small_files(store)
    store.limit = 1000
    store.add(SPACE, rows_of("c"))
    assert_holds(store, "c")


def test_rows_beyond_the_limit_are_not_kept_and_push_nothing_out(store: FeatureStore) -> None:
    limited = FeatureStore(store.folder, limit=FILE_BYTES)
    limited.add(other(1), rows_of(*map(str, range(100))))
    assert_holds(store, "a", "b")


def test_what_the_limit_counts_is_what_the_disk_holds(store: FeatureStore) -> None:
    store.add(SPACE, rows_of(*map(str, range(500))))
    assert [held.size_bytes for held in store.contents()] == [on_disk(store.folder)]


def test_contents_say_what_is_there(store: FeatureStore) -> None:
    (held,) = store.contents()
    assert (held.backbone, held.fingerprint, held.transform) == ("tiny", "f" * 64, "shorter side to 32")
    assert held.rows == 2
    assert time.time() - held.last_used < 60


def test_clearing_deletes_all_and_returns_what_was_there(store: FeatureStore) -> None:
    assert [held.rows for held in store.clear()] == [2]
    assert store.clear() == []
    assert files(store) == []
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


@pytest.mark.parametrize("text", ["lots", "-1", "4 PB", "1e3", "9" * 400], ids=lambda text: text[:5])
def test_a_limit_that_is_no_size_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMPROMPT_CACHE_LIMIT", text)
    with pytest.raises(UserError, match=r"MMPROMPT_CACHE_LIMIT is .* a size was expected"):
        limit_bytes()
