"""Images listed in a CSV or JSONL file, `path,label[,split][,novel]`, or in a split file.

The reader says the line of everything it refuses. It knows nothing about folders of classes.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmprompt.data.images import IMAGE_SUFFIXES
from mmprompt.data.split_file import read_coop_split
from mmprompt.data.splits import SPLITS, Row, Splits, assemble
from mmprompt.errors import UserError, bad_file, unknown_name
from mmprompt.files import SafeRoot, read_objects, read_text

_TRUTH = {"1": True, "true": True, "0": False, "false": False, "": False}


def read_table(path: str | Path, root: str | Path | None = None, hold_out: bool = True) -> Splits:
    """Read all images of a CSV or JSONL file or a split file, classes sorted by name, images in the order of the rows.

    Whether the images exist is not looked at.

    Args:
        path: a `.csv` file (commas, semicolons or tabulators) whose header is `path,label` and perhaps `split` (train,
            val, test) and `novel` (0, 1), or a `.jsonl` file of objects with these keys; without a test row a part is
            held out. Or a `.json` split file as `mmprompt data split` writes it.
        root: what the paths are relative to; the file's own folder by default.
        hold_out: whether a test part is held out where there is none.
    """
    path = Path(path)
    folder = (path.parent if root is None else Path(root)).resolve()
    kind = path.suffix.lower()
    if kind == ".json":
        return read_coop_split(path, folder)
    if kind not in (".csv", ".jsonl"):
        raise bad_file(path, "is neither .csv nor .jsonl nor .json", "Give a table or a split file in one of these.")
    return assemble(folder, table_rows(path, folder, "path", ("split", "novel")), str(path), hold_out)


def table_rows(path: Path, folder: Path, image: str, optional: Sequence[str] | None = None) -> list[Row]:
    """Read the rows of a CSV or JSONL file of images and labels.

    Args:
        path: the file.
        folder: what its paths are relative to, resolved; they may not leave it.
        image: the name of the column of paths; that of classes is `label`.
        optional: names of other columns that may be there; None for any, which mean nothing.
    """

    def check(columns: list[str], line: int) -> None:
        for name in (image, "label"):
            if name not in columns:
                wanted = f"{image},label" + (f" and perhaps {','.join(optional)}" if optional else "")
                raise bad_file(path, f"lacks {name!r}", f"Name the columns {wanted}.", line)
        known = None if optional is None else (image, "label", *optional)
        for name in columns:
            if known is not None and name not in known:
                raise UserError(f"{path}, line {line}: {unknown_name('column', name, known)}")

    inside = SafeRoot(folder)
    rows: dict[str, Row] = {}
    first_line: dict[str, int] = {}
    for line, record in (_csv_records if path.suffix.lower() == ".csv" else _jsonl_records)(path, check):
        try:
            row = _row(record, image, bool(optional), inside)
        except (UserError, ValueError, OSError) as error:
            raise UserError(f"{path}, line {line}: {error}") from None
        place = os.path.normpath(row.path)
        if place in rows:
            problem = f"lists {record[image]!r} again, after line {first_line[place]}"
            raise bad_file(path, problem, "Keep one row for each picture.", line)
        rows[place], first_line[place] = row, line
    if not rows:
        raise bad_file(path, "holds no pictures", f"Add a row of {image} and label for each picture.")
    return list(rows.values())


def _row(record: dict[str, Any], image: str, has_parts: bool, inside: SafeRoot) -> Row:
    for name in (image, "label"):
        if not isinstance(record[name], str) or not record[name].strip():
            advice = "Fill it in." if record[name] in ("", None) else "Write it as text; a class by its name."
            raise UserError(f"{name} is {record[name]!r}, but text was expected. {advice}")
    row = Row(inside.join(os.path.normpath(record[image].strip())), record["label"].strip())
    if not has_parts:
        return row
    split, novel = record.get("split", "train"), record.get("novel", False)
    if split not in SPLITS:
        raise UserError(f"split is {split!r}, but train, val or test was expected. Correct it.")
    if str(novel).lower() not in _TRUTH:
        raise UserError(f"novel is {novel!r}, but 0 or 1 was expected. Correct it.")
    return row._replace(split=split, novel=_TRUTH[str(novel).lower()])


def _csv_records(path: Path, check: Callable[[list[str], int], None]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows by the names of the header, each with its line; `check` refuses wrong names."""
    text = read_text(path)
    header_line = text.partition("\n")[0]
    delimiter = next((mark for mark in ",;\t" if mark in header_line), ",")  # the others are some spreadsheets'
    lines = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        header = [name.strip() for name in next(lines, [])]
        if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in header):
            names = "file_name,label" if path.name == "metadata.csv" else "path,label or path,label,split"
            problem = f"has no header, its first line is {','.join(header)!r}"
            raise bad_file(path, problem, f"Write {names} above it.", 1)
        check(header, 1)
        if len(set(header)) < len(header):
            raise bad_file(path, "has a column twice", "Keep one of each.", 1)
        for cells in lines:
            if cells and len(cells) != len(header):
                problem = f"has {len(cells)} cells, but the header has {len(header)}"
                raise bad_file(path, problem, "Quote cells that hold a comma.", lines.line_num)
            if cells:
                yield lines.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise bad_file(path, f"is not valid CSV ({error})", "Quote cells that hold quotes.", lines.line_num) from None


def _jsonl_records(path: Path, check: Callable[[list[str], int], None]) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, record in read_objects(path):
        check(list(record), line)
        yield line, record
