"""What `mmprompt llm generate` is asked: words of the command line, lines, and rows of tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mmprompt.data.tables import SUFFIXES, Record, read_records
from mmprompt.errors import bad_file, bad_value
from mmprompt.files import parse_json, text_lines
from mmprompt.language.data import TextRow
from mmprompt.progress import waiting

STDIN = "-"
MOST_LETTERS = 256
"""Of a word of the command line that may be a path."""


def read_input(given: Sequence[str]) -> list[Record] | tuple[str, ...]:
    """Read the records of a file, a folder or the standard input; other words are returned as they are."""
    if len(given) != 1:
        return tuple(given)
    path = Path(given[0])
    suffix = path.suffix.lower()
    is_place = len(given[0]) < MOST_LETTERS and (" " not in given[0] or path.exists())  # and no sentence
    if given[0] == STDIN:
        with waiting():
            lines = [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
        records = _lines_of(Path("standard input"), lines)
    elif is_place and suffix == ".txt":
        records = [Record(path, n, {"": line}) for n, line in enumerate(text_lines(path), 1) if line.strip()]
    elif is_place and (suffix in SUFFIXES or ("/" in given[0] and path.is_dir())):
        records = list(read_records(path))
    else:
        return tuple(given)
    if not records:
        raise bad_file(path if given[0] != STDIN else "standard input", "holds no rows", "Write a text on each line.")
    return records


def _lines_of(place: Path, lines: Sequence[str]) -> list[Record]:
    """Make records of lines: rows of JSON where the first line is one, else a text each."""
    try:
        is_json = isinstance(parse_json(lines[0]), dict)
    except (ValueError, IndexError):
        is_json = False
    records = []
    for number, line in enumerate(lines, 1):
        try:
            values = parse_json(line) if is_json else {"": line}
        except ValueError:
            raise bad_file(
                place, "is not valid JSON, as the first line is", "Write one object a line.", number
            ) from None
        if not isinstance(values, dict):
            raise bad_file(place, "is not a JSON object", "Write one object a line.", number)
        records.append(Record(place, number, values))
    return records


def row_of(record: Record, fields: Sequence[str], task: str) -> TextRow:
    """Make the row of a record, whose other columns are passed over."""
    values = record.values
    if "" in values:  # a line of text
        if len(fields) != 1:
            problem = f"is a text, but the template has the fields {', '.join(fields)}"
            raise bad_file(record.file, problem, "Give a table with these columns.", record.line)
        return TextRow({fields[0]: values[""]}, task=task)
    for name in fields:
        if not isinstance(values.get(name), str):
            has = ", ".join(map(repr, values))
            problem = f"has no text {name!r}, a field of the template" + ("" if name in values else f"; it has {has}")
            raise bad_file(record.file, problem, "Write it in every row.", record.line)
    return TextRow({name: values[name] for name in fields}, task=str(values.get("task", task)))


def typed_row(given: Sequence[str], fields: Sequence[str], task: str) -> TextRow:
    """Make the row of a text, or of NAME=TEXT for each field."""
    pairs = [item.partition("=") for item in given]
    named = {name: text for name, sign, text in pairs if sign and name in fields}
    if len(fields) == 1 and len(given) == 1 and not named:
        named = {fields[0]: given[0]}
    if len(named) < len(given) or any(name not in named for name in fields):
        names = " ".join(f'{name}="..."' for name in fields) if len(fields) > 1 else '"..."'
        wanted = f"the template has {'the fields ' + ', '.join(fields) if fields else 'no field'}"
        advice = f"Write --input {names}." if fields else "Leave it out."
        raise bad_value("input", repr(" ".join(given)) if given else "empty", wanted, advice)
    return TextRow(named, task=task)
