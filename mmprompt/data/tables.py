"""Records of tables: JSONL, CSV, TSV, Parquet and Arrow files, and folders of them as the `datasets` library has them.

A record is a mapping of its columns, with the file and the line or row that it is from. What columns mean is not known
here. Parquet and Arrow are read by pyarrow, which an extra installs.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmprompt.data.splits import SPLITS, SplitName
from mmprompt.errors import UserError, bad_file
from mmprompt.files import MAX_TEXT_BYTES, read_objects, read_text

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet", ".arrow")
PARTS: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""Names of files and folders of each part."""


class Record(NamedTuple):
    """A row of a table: its file, its line or number from 1, its columns, and the part that the file's name says."""

    file: Path
    line: int
    values: dict[str, Any]
    part: SplitName | None = None


def read_records(path: Path, header: Sequence[str] = ()) -> Iterator[Record]:
    """Yield the records of a file, or of all files of a folder, those of `train` first.

    Args:
        path: a file, whose suffix says what it is; or a folder with files such as `train.csv` or
            `data/train-00000-of-00001.parquet`, or with folders `train`, `test` of them, as `save_to_disk` writes.
        header: names of the columns of CSV and TSV files that have no line of them.
    Raises:
        UserError: there is no such file, it is damaged, or pyarrow is needed and not installed.
    """
    for file, part in _files(path) if path.is_dir() else [(path, None)]:
        for line, values in _of_file(file, header):
            yield Record(file, line, values, part)


def _files(folder: Path) -> list[tuple[Path, SplitName | None]]:
    """List the tables of a folder with their parts; the name of a file or of its folder says which."""
    found: list[tuple[Path, SplitName | None]] = []
    for place in (folder, folder / "data", *sorted(path for path in folder.glob("*") if path.name in PARTS)):
        for file in sorted(path for path in place.glob("*") if path.suffix.lower() in SUFFIXES):
            name = file.name.partition(".")[0].partition("-")[0].lower()
            found.append((file, PARTS.get(place.name if place.parent == folder and place.name in PARTS else name)))
    named = [pair for pair in found if pair[1] is not None] or found
    if not named:
        kinds = ", ".join(SUFFIXES)
        raise bad_file(folder, f"holds no table ({kinds})", "Give a folder with train.csv and test.csv, for example.")
    return sorted(named, key=lambda pair: SPLITS.index(pair[1]) if pair[1] else 0)


def _of_file(path: Path, header: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    kind = path.suffix.lower()
    if kind == ".jsonl":
        return read_objects(path)
    if kind in (".csv", ".tsv"):
        return csv_records(path, header)
    if kind in (".parquet", ".arrow"):
        return _arrow_records(path)
    raise bad_file(path, f"is none of {', '.join(SUFFIXES)}", "Give a table in one of these, or a folder of them.")


def csv_records(
    path: Path, header: Sequence[str] = (), check: Callable[[list[str]], None] = lambda names: None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a file by the names of the header, each with its line; `check` refuses wrong names.

    Between cells stand commas, semicolons or tabulators; a `.tsv` file quotes nothing but whole cells. `header` names
    the columns where the file has no line of them.
    """
    text = read_text(path)
    first = text.partition("\n")[0]
    is_tsv = path.suffix.lower() == ".tsv"
    mark = "\t" if is_tsv else next((sign for sign in ",;\t" if sign in first), ",")
    if is_tsv:
        lines = csv.reader(io.StringIO(text, newline=None), delimiter=mark, quoting=csv.QUOTE_NONE)
    else:
        lines = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=mark)
    try:
        names = list(header) or [name.strip() for name in next(lines, [])]
        check(names)
        if len(set(names)) < len(names):
            raise bad_file(path, "has a column twice", "Keep one of each.", 1)
        for cells in lines:
            if cells and len(cells) != len(names):
                problem = f"has {len(cells)} cells, but the header has {len(names)}"
                advice = "Take tabulators out of its cells." if is_tsv else "Quote cells that hold a comma."
                raise bad_file(path, problem, advice, lines.line_num)
            if cells:
                yield lines.line_num, dict(zip(names, map(_unquoted, cells) if mark == "\t" else cells, strict=True))
    except csv.Error as error:
        if "field larger" in str(error):
            problem = f"has a cell of more than {csv.field_size_limit():,} characters"
            raise bad_file(path, problem, "Shorten it, or give the rows as .jsonl.", lines.line_num) from None
        raise bad_file(path, f"is not valid CSV ({error})", "Quote cells that hold quotes.", lines.line_num) from None


def _unquoted(cell: str) -> str:
    """Return the text of a cell of a TSV file, of which some programs quote those with quotes in them."""
    inner = cell[1:-1].replace('""', "")
    return (
        cell[1:-1].replace('""', '"') if cell[:1] == cell[-1:] == '"' and len(cell) > 1 and '"' not in inner else cell
    )


def _arrow_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a Parquet file or an Arrow stream; classes of the `datasets` library by their names."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        advice = 'Install it: pip install "mmprompt[tables]".'
        raise UserError(f"{path} is read by pyarrow, which is not installed. {advice}") from None
    if not path.is_file() or path.stat().st_size > MAX_TEXT_BYTES:
        problem = "is larger than 1 GiB" if path.is_file() else "is not there"
        raise bad_file(path, problem, "Give another file.")
    try:
        if path.suffix.lower() == ".parquet":
            table = pyarrow.parquet.ParquetFile(path).read()
        else:
            with pyarrow.OSFile(str(path)) as source:
                table = pyarrow.ipc.open_stream(source).read_all()
        columns = {name: table.column(name).to_pylist() for name in table.column_names}
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise bad_file(path, f"cannot be read as {path.suffix[1:]} ({reason})", "Restore the file.") from None
    for name, classes in _class_names(table.schema.metadata or {}).items():
        if name in columns:
            columns[name] = [
                classes[n] if isinstance(n, int) and 0 <= n < len(classes) else None for n in columns[name]
            ]
    for number, values in enumerate(zip(*columns.values(), strict=True), start=1):
        yield number, dict(zip(columns, values, strict=True))


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Find the names of classes that the `datasets` library wrote beside a table, by column."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {name: one["names"] for name, one in features.items() if one.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
