"""Lines of JSON objects: the form of our own files of captions and of texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmprompt.errors import bad_file
from mmprompt.files import read_text


def text_lines(path: Path) -> list[str]:
    """Return the lines of a file of UTF-8 text, without their ends.

    Raises:
        UserError: it cannot be read, is larger than 1 GiB, or a line is not UTF-8.
    """
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]  # splitlines would break at rarer signs
    return lines if lines[-1] else lines[:-1]


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSONL file with their line numbers, from 1; blank lines are passed over.

    Raises:
        UserError: the file cannot be read, or a line is not UTF-8 or not a JSON object.
    """
    for number, text in enumerate(text_lines(path), start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            raise bad_file(path, "is not valid JSON", "Write one object on each line.", number) from None
        if not isinstance(record, dict):
            raise bad_file(path, "is not a JSON object", "Write one object on each line.", number)
        yield number, record
