"""A table as text, Markdown, CSV and LaTeX. What stands in it is made elsewhere."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmprompt.files import make_folder, write_bytes

SUFFIXES = {"text": ".txt", "markdown": ".md", "csv": ".csv", "latex": ".tex"}
STYLES = {"text": "simple", "markdown": "github", "latex": "latex_booktabs"}


@dataclass(frozen=True)
class Table:
    """Rows under headers, all of them text.

    Args:
        headers: one a column.
        rows: each as long as the headers.
        n_names: columns at the left that hold names; the others hold numbers and stand flush right.
        notes: sentences below the table.
    """

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_names: int
    notes: tuple[str, ...] = ()


def render(table: Table, form: str) -> str:
    """A table in one of the four forms; CSV has no place for the notes.

    Args:
        table: what is shown.
        form: `"text"`, `"markdown"`, `"csv"` or `"latex"`.
    """
    if form == "csv":
        buffer = io.StringIO(newline="")
        csv.writer(buffer, lineterminator="\n").writerows([table.headers, *table.rows])
        return buffer.getvalue()
    from tabulate import tabulate

    rows = [[_escape(cell, form) for cell in row] for row in table.rows]
    sides = ["left" if column < table.n_names else "right" for column in range(len(table.headers))]
    headers = [_escape(header, form) for header in table.headers]
    shown = tabulate(rows, headers, tablefmt=STYLES[form], disable_numparse=True, colalign=sides)
    return "\n".join([shown, "", *_notes(table.notes, form)]).rstrip() + "\n"


def write_tables(table: Table, folder: Path, name: str) -> list[Path]:
    """Write a table in all four forms."""
    make_folder(folder)
    paths = [folder / f"{name}{suffix}" for suffix in SUFFIXES.values()]
    for form, path in zip(SUFFIXES, paths, strict=True):
        write_bytes(path, render(table, form).encode())
    return paths


def _escape(cell: str, form: str) -> str:
    return cell.replace("|", "\\|") if form == "markdown" else cell


def _notes(notes: Sequence[str], form: str) -> list[str]:
    mark = {"text": "", "markdown": "- ", "latex": "% "}[form]
    return [f"{mark}{note}" for note in notes]
