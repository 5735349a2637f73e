"""The metadata of a Hugging Face `imagefolder`: `metadata.csv` or `metadata.jsonl` with file_name and label.

Other columns are passed over. This file knows neither class folders nor how parts are held out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from mmprompt.data.splits import Row, SplitName
from mmprompt.data.table import csv_records, jsonl_records
from mmprompt.errors import UserError, bad_file
from mmprompt.files import SafeRoot

_READERS = {"metadata.csv": csv_records, "metadata.jsonl": jsonl_records}
_COLUMNS = ("file_name", "label")
_ADVICE = "Name the columns file_name,label."


def metadata_file(folder: Path) -> Path | None:
    """The metadata file of a folder, None where there is none.

    Raises:
        UserError: there are two.
    """
    found = [folder / name for name in _READERS if (folder / name).is_file()]
    if len(found) > 1:
        raise bad_file(found[1], f"lies beside {found[0].name}", "Keep one of the two.")
    return found[0] if found else None


def metadata_rows(folder: Path, split_folders: Mapping[str, SplitName] | None = None) -> list[Row]:
    """The pictures that a folder's metadata names, in the order of the file.

    Args:
        folder: holds the metadata, and the pictures by the paths in it.
        split_folders: parts by the first folder of a path, followed where every path begins with one; without them
            all is for training.
    Raises:
        UserError: a column is missing, a picture is named twice or leaves the folder, or nothing is named.
    """
    path = metadata_file(folder)
    assert path is not None, "the caller looked for the file"
    inside = SafeRoot(folder.resolve())
    rows: list[Row] = []
    first_line: dict[Path, int] = {}
    for line, record in _READERS[path.name](path, _check_columns):
        for name in _COLUMNS:
            value = record[name]
            if not isinstance(value, str) or not value.strip():
                raise bad_file(
                    path, f"{name} is {value!r}, but text was expected", "Write the class by its name.", line
                )
        try:
            picture = inside.join(os.path.normpath(record["file_name"].strip()))
        except UserError as error:
            raise UserError(f"{path}, line {line}: {error}") from None
        if picture in first_line:
            raise bad_file(
                path, f"names {record['file_name']!r} again, after line {first_line[picture]}", _ADVICE, line
            )
        first_line[picture] = line
        rows.append(Row(picture, record["label"].strip()))
    if not rows:
        raise bad_file(path, "names no pictures", _ADVICE)
    return _in_parts(rows, inside.root, split_folders or {})


def _check_columns(columns: list[str], path: Path, line: int) -> None:
    for name in _COLUMNS:
        if name not in columns:
            raise bad_file(path, f"lacks {name!r}", _ADVICE, line)


def _in_parts(rows: list[Row], root: Path, split_folders: Mapping[str, SplitName]) -> list[Row]:
    first = [PurePosixPath(row.path.relative_to(root).as_posix()).parts[0] for row in rows]
    if not all(name in split_folders for name in first):
        return rows
    return [row._replace(split=split_folders[name]) for row, name in zip(rows, first, strict=True)]
