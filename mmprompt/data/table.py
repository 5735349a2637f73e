"""Pictures listed in a CSV or JSONL file, `path,label[,split][,novel]`, or in a split file.

The reader says the line of everything it refuses. It knows nothing about folders of classes.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmprompt.data.coop_split import read_coop_split
from mmprompt.data.images import IMAGE_SUFFIXES
from mmprompt.data.splits import SPLITS, Row, Splits, assemble
from mmprompt.errors import UserError, bad_file, unknown_name
from mmprompt.files import SafeRoot, read_bytes

Check = Callable[[list[str], Path, int], None]

_REQUIRED = ("path", "label")
_COLUMNS = (*_REQUIRED, "split", "novel")
_TRUTH = {"1": True, "true": True, "0": False, "false": False, "": False}


def read_table(path: str | Path, root: str | Path | None = None, hold_out: bool = True) -> Splits:
    """All pictures of a CSV or JSONL file or a split file, classes sorted by name, pictures in the order of the rows.

    Whether the pictures exist is not looked at.

    Args:
        path: a `.csv` file (commas, semicolons or tabulators) whose header is `path,label` and perhaps `split` (train,
            val, test) and `novel` (0, 1), or a `.jsonl` file of objects with these keys; without a test row a part is
            held out. Or a `.json` split file as `mmprompt data split` writes it.
        root: what the paths are relative to; the file's own folder by default.
        hold_out: whether a test part is held out where there is none.
    Raises:
        UserError: the file cannot be read, a row is bad or repeated, or the classes are bad.
    """
    path = Path(path)
    folder = (path.parent if root is None else Path(root)).resolve()
    if path.suffix.lower() == ".json":
        return read_coop_split(path, folder)
    readers = {".csv": csv_records, ".jsonl": jsonl_records}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise bad_file(path, "is neither .csv nor .jsonl nor .json", "Give a table or a split file in one of these.")
    inside = SafeRoot(folder)
    rows: list[Row] = []
    first_line: dict[str, int] = {}
    for line, record in reader(path, _check_columns):
        row = _row(record, inside, path, line)
        place = os.path.normpath(row.path)
        if place in first_line:
            problem = f"lists {record['path']!r} again, after line {first_line[place]}"
            raise bad_file(path, problem, "Keep one row for each picture.", line)
        first_line[place] = line
        rows.append(row)
    if not rows:
        raise bad_file(path, "holds no pictures", "Add a row of path and label for each picture.")
    return assemble(folder, rows, str(path), hold_out)


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")  # spreadsheets write a byte order mark
    except UnicodeDecodeError:
        raise bad_file(path, "is not UTF-8 text", "Save it as UTF-8.") from None


def csv_records(path: Path, check: Check) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a CSV file by the names of its header, each with its line.

    Args:
        path: the file.
        check: refuses wrong names of columns; it is given them, the path and the line.
    Raises:
        UserError: it cannot be read, has no header, or a row has more or fewer cells.
    """
    text = _text(path)
    lines = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=_delimiter(text))
    try:
        header = [name.strip() for name in next(lines, [])]
        _refuse_missing_header(header, path)
        check(header, path, 1)
        if len(set(header)) < len(header):
            raise bad_file(path, "has a column twice", "Keep one of each.", 1)
        for cells in lines:
            if not cells:
                continue
            if len(cells) != len(header):
                problem = f"has {len(cells)} cells, but the header has {len(header)}"
                raise bad_file(path, problem, "Quote cells that hold a comma.", lines.line_num)
            yield lines.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise bad_file(path, f"is not valid CSV ({error})", "Quote cells that hold quotes.", lines.line_num) from None


def _delimiter(text: str) -> str:
    """What stands between the names of the header: a comma, else the semicolon or tabulator of some spreadsheets."""
    header = text.partition("\n")[0]
    return next((mark for mark in ",;\t" if mark in header), ",")


def jsonl_records(path: Path, check: Check) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file, each with its line.

    Args:
        path: the file.
        check: refuses wrong names of keys, as in `csv_records`.
    Raises:
        UserError: it cannot be read, or a line is no object.
    """
    for line, text in enumerate(_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            raise bad_file(path, "is not valid JSON", "Write one object on each line.", line) from None
        if not isinstance(record, dict):
            raise bad_file(path, "is not a JSON object", "Write one object on each line.", line)
        check(list(record), path, line)
        yield line, record


def _refuse_missing_header(cells: list[str], path: Path) -> None:
    if any(Path(cell).suffix.lower() in IMAGE_SUFFIXES for cell in cells):
        names = "file_name,label" if path.name == "metadata.csv" else "path,label or path,label,split"
        raise bad_file(path, f"has no header, its first line is {','.join(cells)!r}", f"Write {names} above it.", 1)


def _check_columns(columns: list[str], path: Path, line: int) -> None:
    for name in _REQUIRED:
        if name not in columns:
            raise bad_file(path, f"lacks {name!r}", "Name the columns path,label and perhaps split,novel.", line)
    for name in columns:
        if name not in _COLUMNS:
            raise UserError(f"{path}, line {line}: {unknown_name('column', name, _COLUMNS)}")


def _row(record: Mapping[str, Any], inside: SafeRoot, path: Path, line: int) -> Row:
    relative, label, split = record["path"], record["label"], record.get("split", "train")
    for name, value in (("path", relative), ("label", label)):
        if not isinstance(value, str) or not value.strip():
            advice = "Fill it in." if value in ("", None) else "Write it as text; a class by its name."
            raise bad_file(path, f"{name} is {value!r}, but text was expected", advice, line)
    if split not in SPLITS:
        raise bad_file(path, f"split is {split!r}, but train, val or test was expected", "Correct it.", line)
    novel = _TRUTH.get(str(record.get("novel", False)).lower())
    if novel is None:
        raise bad_file(path, f"novel is {record['novel']!r}, but 0 or 1 was expected", "Correct it.", line)
    try:
        joined = inside.join(os.path.normpath(relative.strip()))
    except (UserError, ValueError, OSError) as error:
        raise UserError(f"{path}, line {line}: {error}") from None
    return Row(joined, label.strip(), split, novel)
