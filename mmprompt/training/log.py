"""The log of a run: one JSON line per finished epoch. It knows no checkpoint and no loop."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmprompt.errors import bad_file
from mmprompt.files import read_bytes, write_bytes
from mmprompt.training.problem import RunFailed


def write_log(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Replace a log by these records, so that a resumed run holds no line twice."""
    write_bytes(path, "".join(_line(record) for record in records).encode())


def append_log(path: Path, record: Mapping[str, Any]) -> None:
    """Add one record; the file is closed again, so that a killed process loses no line.

    Raises:
        RunFailed: the disk is full or the folder is gone.
    """
    line = _line(record)
    try:
        with path.open("a", encoding="utf-8") as handle:
            handle.write(line)
    except OSError as error:
        raise RunFailed(f"{path}: the log cannot be written ({error.strerror}). Check the disk, then resume.") from None


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The records of a log, oldest first; a last line that a kill left unfinished is passed over.

    Args:
        path: `log.jsonl` of a run folder.
    Raises:
        UserError: the file is missing or a line is not JSON.
    """
    *lines, _unfinished = read_bytes(Path(path)).decode("utf-8", errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            raise bad_file(path, "is not valid JSON", "Restore the file as it was written.", number) from None
    return records


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
