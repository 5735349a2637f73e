"""Finished cells: each is a folder that ends with `scores.json`, so that a kill leaves a cell finished or unfinished.

The process that holds a cell's lock computes it; the system lets the lock go when the process dies, however it dies.
What a cell means, and what else is in its folder, is not known here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmprompt.errors import UserError
from mmprompt.files import locked, make_folder, read_json, sha256_bytes, write_bytes, write_json
from mmprompt.training.problem import RunFailed

FORMAT = 1
SCORES, FAILURE, LOCK = "scores.json", "failure.json", "cell.lock"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Score:
    """One test of a cell; what is not kept of its items, or not known, is empty.

    `correct` [N] says how right each item was answered, 0..1; `predictions` are class indices, labels or texts, and
    `probabilities`, with three digits, are theirs.
    """

    correct: np.ndarray
    predictions: Sequence[Any] = ()
    probabilities: np.ndarray = field(default_factory=lambda: np.zeros(0))
    numbers: Mapping[str, float] = field(default_factory=dict)
    per_class: Mapping[str, float] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """How right the items were answered on average, 0..1."""
        return float(np.mean(self.correct))


@dataclass(frozen=True)
class Outcome:
    """What a cell came to: JSON-ready facts such as seconds and versions, and scores by what was tested on."""

    facts: Mapping[str, Any]
    scores: Mapping[str, Score]
    folder: Path = Path()


class _HeldError(UserError):
    """Another process computes the cell."""


def settle(folder: Path, compute: Callable[[], Outcome]) -> bool:
    """Compute a cell and keep what it came to, or why it failed; one that is finished is left alone.

    Return False if another process is at this cell. `compute` may keep unfinished work in the folder.
    """
    make_folder(folder)
    try:
        with locked(folder / LOCK, _HeldError(f"{folder} is held by another process. Wait until it has ended.")):
            if read_outcome(folder) is None:
                _keep(folder, compute)
    except _HeldError:
        return False
    return True


def _keep(folder: Path, compute: Callable[[], Outcome]) -> None:
    try:
        outcome = compute()
    except (UserError, RunFailed) as error:
        reason = str(error)
    except Exception as error:  # one bad cell does not stop a grid
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}: {error}"
    else:
        scores = {target: _to_json(score) for target, score in outcome.scores.items()}
        content = {"format": FORMAT, "facts": dict(outcome.facts), "scores": scores}
        write_bytes(folder / SCORES, json.dumps(content | {"sha256": _hash(content)}, allow_nan=False).encode())
        (folder / FAILURE).unlink(missing_ok=True)
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)  # nobody goes on with it
        return
    write_json(folder / FAILURE, {"error": reason})


def is_settled(folder: Path) -> bool:
    """Return whether a cell is finished or has failed."""
    return (folder / SCORES).exists() or (folder / FAILURE).exists()


def reopen(folder: Path) -> None:
    """Take away why a cell failed, or scores that are damaged, so that it is computed again, unless it is under way."""
    if is_settled(folder):
        with contextlib.suppress(_HeldError), locked(folder / LOCK, _HeldError("")):
            if read_outcome(folder) is None:
                for name in (SCORES, FAILURE):
                    (folder / name).unlink(missing_ok=True)


def read_outcome(folder: Path) -> Outcome | None:
    """Read what a cell came to; None where it is not finished, or damaged, which the log says."""
    path = folder / SCORES
    if not path.exists():
        return None
    try:
        content = read_json(path)
        if content.pop("sha256") != _hash(content) or content["format"] != FORMAT:
            raise ValueError
        return Outcome(content["facts"], {name: _from_json(one) for name, one in content["scores"].items()}, folder)
    except (UserError, AttributeError, KeyError, TypeError, ValueError):
        _log.warning("%s is damaged or of another version, so this cell is computed again.", path)
        return None


def read_failure(folder: Path) -> str | None:
    """Read why a cell failed; None where it did not, or was finished after all."""
    path = folder / FAILURE
    try:
        return str(read_json(path)["error"]) if path.exists() and not (folder / SCORES).exists() else None
    except (UserError, KeyError, TypeError):
        return f"{path} is damaged"


def _to_json(score: Score) -> dict[str, Any]:
    halves = score.probabilities.astype("<f2")  # 0.9312 takes fewer characters than 0.931172549724579
    return asdict(score) | {"correct": [*map(float, score.correct)], "probabilities": [float(str(p)) for p in halves]}


def _from_json(content: Mapping[str, Any]) -> Score:
    halves = np.array(content["probabilities"], "<f2").astype(float)
    return Score(**{**content, "correct": np.array(content["correct"], float), "probabilities": halves})


def _hash(content: Mapping[str, Any]) -> str:
    return sha256_bytes(json.dumps(content, sort_keys=True).encode())
