from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmprompt.errors import UserError
from mmprompt.files import sha256_bytes
from mmprompt.training.checkpoint import Checkpoint, checkpoint_folders, clean, read_newest, write_checkpoint
from mmprompt.training.problem import RunFailed


def checkpoint(epoch: int, run_id: str = "this run") -> Checkpoint:
    tensors = {"module/weight": torch.full((2, 3), float(epoch)), "optimizer/0.step": torch.tensor(epoch)}
    return Checkpoint(run_id, epoch, tensors, {"history": [{"loss": 0.1 + 0.2}], "note": "é"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for epoch in (1, 2):
        write_checkpoint(tmp_path / "checkpoint", checkpoint(epoch))
    return tmp_path / "checkpoint"


def test_a_checkpoint_reads_back_exactly(folder: Path) -> None:
    newest = read_newest(folder, "this run")
    assert newest is not None
    assert (newest.epoch, newest.progress) == (2, checkpoint(2).progress)
    assert all(torch.equal(newest.tensors[name], value) for name, value in checkpoint(2).tensors.items())


def test_a_checkpoint_may_have_any_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmprompt.files.MAX_TENSOR_BYTES", 8)
    assert read_newest(folder, "this run") is not None


def test_a_folder_without_checkpoints_gives_none(tmp_path: Path) -> None:
    assert read_newest(tmp_path / "absent", "this run") is None


def test_the_three_newest_are_kept_and_nothing_else_is_left(folder: Path) -> None:
    for epoch in (3, 999_999, 1_000_000):
        write_checkpoint(folder, checkpoint(epoch))
    assert sorted(path.name for path in folder.iterdir()) == ["epoch-000003", "epoch-1000000", "epoch-999999"]
    assert [path.name for path in checkpoint_folders(folder)] == ["epoch-1000000", "epoch-999999", "epoch-000003"]


def _truncate(newest: Path) -> None:
    state = newest / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])


def _flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def _flip_run_id(newest: Path) -> None:
    manifest = newest / "manifest.json"
    manifest.write_text(manifest.read_text().replace("this run", "thas run"))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated state": _truncate,
    "flipped byte in the state": lambda newest: _flip(newest / "state.safetensors", -3),
    "flipped byte in the state's header": lambda newest: _flip(newest / "state.safetensors", 12),
    "flipped byte in the manifest": lambda newest: _flip(newest / "manifest.json", 15),
    "flipped run id": _flip_run_id,
    "missing manifest": lambda newest: (newest / "manifest.json").unlink(),
    "missing state": lambda newest: (newest / "state.safetensors").unlink(),
    "empty manifest": lambda newest: (newest / "manifest.json").write_text(""),
    "manifest of another kind": lambda newest: (newest / "manifest.json").write_text("[1]"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    folder: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    damage(folder / "epoch-000002")
    with caplog.at_level(logging.WARNING):
        found = read_newest(folder, "this run")
    assert found is not None
    assert found.epoch == 1
    assert "epoch-000002 is damaged" in caplog.text


def test_a_checkpoint_under_a_wrong_name_is_damaged(folder: Path) -> None:
    (folder / "epoch-000002").rename(folder / "epoch-000009")
    found = read_newest(folder, "this run")
    assert found is not None
    assert found.epoch == 1


def test_a_checkpoint_of_another_run_is_refused_in_one_line(folder: Path) -> None:
    with pytest.raises(UserError, match=r"epoch-000002: is a checkpoint of another run .*Resume with") as caught:
        read_newest(folder, "that run")
    assert "\n" not in str(caught.value)


def test_a_newer_format_is_refused(folder: Path) -> None:
    path = folder / "epoch-000002" / "manifest.json"
    manifest = json.loads(path.read_text()) | {"format": 2}
    del manifest["sha256"]
    own_hash = sha256_bytes(json.dumps(manifest, sort_keys=True).encode())
    path.write_text(json.dumps(manifest | {"sha256": own_hash}))
    with pytest.raises(UserError, match=r"has format 2, this version reads 1\. Update mmprompt"):
        read_newest(folder, "this run")


def test_cleaning_removes_leftovers_and_damaged_newer_checkpoints_alone(folder: Path) -> None:
    (folder / ".epoch-000003.abc.tmp").mkdir()
    (folder / ".epoch-000003.abc.tmp" / "state.safetensors").write_bytes(b"half")
    (folder / "mine.txt").write_text("kept")
    clean(folder, newest=1)
    assert sorted(path.name for path in folder.iterdir()) == ["epoch-000001", "mine.txt"]


def test_a_place_that_is_taken_fails_the_run_and_keeps_the_checkpoints(folder: Path) -> None:
    (folder / "epoch-000003").write_text("a file in the way")
    with pytest.raises(RunFailed, match="a checkpoint cannot be written"):
        write_checkpoint(folder, checkpoint(3))
    assert not list(folder.glob(".*"))
    assert read_newest(folder, "this run") is not None


def test_a_checkpoint_bears_its_name_only_once_it_is_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(RunFailed, match=r"cannot be written \(No space left on device\)"):
        write_checkpoint(folder, checkpoint(3))
    assert not (folder / "epoch-000003").exists()


def test_a_checkpoint_loses_its_name_before_it_is_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(folder, checkpoint(3))
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    write_checkpoint(folder, checkpoint(4))
    assert not (folder / "epoch-000001").exists()
