"""What a run folder holds beside its checkpoints: the lock of its one writer, the log, and what `run.json` says.

It does not know what was trained; a task adds its data, its method and its recipe.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Lt

from mmprompt.errors import UserError, bad_file
from mmprompt.files import locked, make_folder, parse_json, read_bytes, read_json, sha256_bytes, write_bytes
from mmprompt.settings import validate
from mmprompt.training.problem import RunFailed
from mmprompt.version import __version__

LOCK, RUN = "run.lock", "run.json"
RESTORE = "Restore the file as it was written."


@dataclass(frozen=True)
class _Named:
    name: str


@dataclass(frozen=True)
class _MethodFacts(_Named):
    settings: dict[str, Any]


@dataclass(frozen=True)
class _DataFacts:
    name: str = ""


@dataclass(frozen=True)
class _Place:
    data: str | None = None
    root: str | None = None
    datasets_dir: str | None = None
    template: str | None = None
    protocol: str | None = None
    skip_broken: bool = False


@dataclass(frozen=True)
class _Call:
    command: str = ""
    data: _Place = _Place()


@dataclass(frozen=True)
class _RunFacts:
    """What anything reads of a `run.json`; each room adds what it alone knows."""

    backbone: _Named
    data: _DataFacts
    method: _MethodFacts
    recipe: dict[str, Any]
    seed: int
    call: _Call = _Call()
    notices: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _EpochFacts:
    """What anything reads of a line of the log."""

    loss: Annotated[float, Lt(math.inf)]
    seconds: float | None = None


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a run folder, so that no other process writes into it at the same time.

    The folder is made if it is not there, and then taken away again if nothing was written to it. The lock of a
    process that died is taken over.
    """
    is_new = not folder.exists()
    make_folder(folder)
    advice = "Wait until it has ended, or give another `out`."
    try:
        with locked(folder / LOCK, bad_file(folder, "is being written by another training", advice)):
            yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()


def read_run(folder: Path) -> dict[str, Any]:
    """Read the `run.json` of a folder, which may be a stranger's, and refuse what no run writes."""
    content = read_json(folder / RUN)
    if not isinstance(content, dict):
        raise bad_file(folder / RUN, "is no JSON object", RESTORE)
    validate(_RunFacts, content, folder / RUN, RESTORE, is_whole=False)
    return content


def refuse_other_run(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse to go on in the folder of a run with another `run.json`, and say in what it differs."""
    saved, now = read_run(folder), json.loads(json.dumps(config))
    others = [key for key in now if key != "versions" and saved.get(key) != now[key]]
    if others:
        advice = "Resume with the settings of that run, or give another `out`."
        raise bad_file(folder, f"holds a run with another {' and '.join(others)}", advice)


def write_log(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Replace a log by these records, one JSON line per epoch, so that a resumed run holds no line twice."""
    write_bytes(path, "".join(_line(record) for record in records).encode())


def append_log(path: Path, record: Mapping[str, Any]) -> None:
    """Add one record; the file is closed again, so that a killed process loses no line."""
    line = _line(record)
    try:
        with path.open("a", encoding="utf-8") as handle:
            handle.write(line)
    except OSError as error:
        raise RunFailed(f"{path}: the log cannot be written ({error.strerror}). Check the disk, then resume.") from None


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Return the records of a log, oldest first; a last line that a kill left unfinished is passed over."""
    *lines, _unfinished = read_bytes(Path(path)).decode("utf-8", errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(dict(parse_json(line)))
        except (ValueError, TypeError):
            raise bad_file(path, "is not valid JSON", RESTORE, number) from None
        validate(_EpochFacts, records[-1], f"{path}, line {number}", RESTORE, is_whole=False)
    return records


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def surroundings(model: Any) -> dict[str, Any]:
    """Return where, in which precision and by what versions a run computes, JSON-ready."""
    import torch

    return {
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": {"mmprompt": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def run_id_of(config: Mapping[str, Any]) -> str:
    """Return the hash of what makes two runs the same run, to which a resume is held: everything but the versions."""
    return sha256_bytes(repr(sorted((key, value) for key, value in config.items() if key != "versions")).encode())


def place_of_data(folder: Path, training: Mapping[str, Any]) -> dict[str, Any]:
    """Return where the data lies that a run learned from: `data`, a name or path, what else its call said, and `run`.

    `training` is what its prompt file says of where it comes from; where that does not say either, it is refused.
    """
    place = read_run(folder).get("call", {}).get("data", {}) if (folder / RUN).is_file() else {}
    place = place or {"data": training.get("data", {}).get("name")}
    if not place.get("data"):
        raise UserError(f"{folder} does not say what it learned from. Give `data=PATH`.")
    return {**place, "run": str(folder)}


def provenance(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a prompt file says of the run it comes from."""
    return {key: config[key] for key in ("data", "method", "recipe", "seed", "versions")}
