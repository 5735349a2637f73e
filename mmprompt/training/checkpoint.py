"""Checkpoints that survive a kill at any moment: written aside, hashed, synced, renamed.

`checkpoint/epoch-000012/` holds `state.safetensors` and `manifest.json`. The manifest hashes the state
and itself, so a torn or edited one is recognised and the one before is taken. What the tensors mean is
not known here.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from mmprompt.errors import UserError, bad_file
from mmprompt.files import ANY_SIZE, new_folder, read_json, read_tensors, sha256_bytes, sha256_file, tensor_bytes
from mmprompt.settings import validate
from mmprompt.training.problem import RunFailed
from mmprompt.version import __version__

FORMAT = 1
KEEP = 3
_NAME = re.compile(r"epoch-(\d{6,})")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A run after a whole number of epochs: its finite tensors by name; history, stop mark and scaler as JSON."""

    run_id: str
    epoch: int
    tensors: Mapping[str, Tensor]
    progress: Mapping[str, Any]


def checkpoint_folders(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, newest first; it need not exist."""
    found = [path for path in folder.glob("epoch-*") if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=_epoch, reverse=True)


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Add a checkpoint, of a newer epoch, and remove all but the `KEEP` newest; a kill leaves it whole or absent."""
    state = tensor_bytes(checkpoint.tensors)
    manifest = {
        "format": FORMAT,
        "run_id": checkpoint.run_id,
        "epoch": checkpoint.epoch,
        "progress": checkpoint.progress,
        "versions": {"mmprompt": __version__, "torch": torch.__version__, "safetensors": safetensors.__version__},
        "state_sha256": sha256_bytes(state),
    }
    try:
        with new_folder(folder / f"epoch-{checkpoint.epoch:06d}") as temporary:
            (temporary / "state.safetensors").write_bytes(state)
            text = json.dumps(manifest | {"sha256": _own_hash(manifest)}, indent=2, allow_nan=False)
            (temporary / "manifest.json").write_text(text + "\n", encoding="utf-8")
        for old in checkpoint_folders(folder)[KEEP:]:
            _remove(old)
    except OSError as error:
        raise RunFailed(
            f"{folder}: a checkpoint cannot be written ({error.strerror}). "
            "Check the disk, then resume from the checkpoint before."
        ) from None


def read_newest(folder: Path, run_id: str) -> Checkpoint | None:
    """Return the newest undamaged checkpoint, or None; damaged ones are named in the log and passed over.

    One of another run, or of a format newer than this version reads, is refused.
    """
    for path in checkpoint_folders(folder):
        try:
            manifest = _read_manifest(path)
            tensors = read_tensors(path / "state.safetensors", ANY_SIZE)
        except _DamagedError as error:
            _log.warning("%s is damaged (%s); the checkpoint before it is taken.", path, error)
            continue
        if manifest["run_id"] != run_id:
            raise bad_file(
                path,
                f"is a checkpoint of another run ({manifest['run_id'][:12]}, this one is {run_id[:12]})",
                "Resume with the settings, data and backbone of run.json, or give another output folder.",
            )
        return Checkpoint(run_id, manifest["epoch"], tensors, manifest["progress"])
    return None


def clean(folder: Path, newest: int) -> None:
    """Remove what a kill left half written, and checkpoints newer than the one that is taken (they are damaged)."""
    for leftover in folder.glob(".epoch-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    for path in checkpoint_folders(folder):
        if _epoch(path) > newest:
            _remove(path)


@dataclass(frozen=True)
class _Manifest:
    format: int
    run_id: str
    epoch: int
    progress: dict[str, Any]
    state_sha256: str


class _DamagedError(Exception):
    pass


def _read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint whose hashes match; `_DamagedError` unless only its format is newer."""
    try:
        manifest = read_json(path / "manifest.json")
        state_sha256 = sha256_file(path / "state.safetensors")
    except (UserError, OSError) as error:
        raise _DamagedError(str(error)) from None
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _own_hash(manifest):
        raise _DamagedError("its manifest does not match its hash")
    if isinstance(manifest.get("format"), int) and manifest["format"] > FORMAT:
        raise bad_file(path, f"has format {manifest['format']}, this version reads {FORMAT}", "Update mmprompt.")
    try:
        validate(_Manifest, manifest, path / "manifest.json", is_whole=False)
    except UserError as error:
        raise _DamagedError(str(error)) from None
    if manifest["state_sha256"] != state_sha256:
        raise _DamagedError("its state does not match its hash")
    if manifest["epoch"] != _epoch(path):
        raise _DamagedError(f"it is the checkpoint of epoch {manifest['epoch']}")
    return manifest


def _own_hash(manifest: Mapping[str, Any]) -> str:
    return sha256_bytes(json.dumps(manifest, sort_keys=True, allow_nan=False).encode())


def _epoch(path: Path) -> int:
    return int(path.name.removeprefix("epoch-"))


def _remove(path: Path) -> None:
    """Rename, then delete: a kill in between leaves a leftover, never half a checkpoint."""
    doomed = path.with_name(f".{path.name}.old.tmp")
    path.rename(doomed)
    shutil.rmtree(doomed)
