"""A table as text, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from mmprompt.files import make_folder, write_bytes

SUFFIXES = {"text": ".txt", "markdown": ".md", "csv": ".csv", "latex": ".tex"}
STYLES = {"text": "simple", "markdown": "github", "latex": "latex_booktabs"}
NOTES = {"text": "", "markdown": "- ", "latex": "% "}
"""What a note begins with."""


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
    """Return a table in one of the four forms; CSV has no place for the notes.

    Args:
        table: what is shown.
        form: `"text"`, `"markdown"`, `"csv"` or `"latex"`.
    """
    if form == "csv":
        buffer = io.StringIO(newline="")
        csv.writer(buffer, lineterminator="\n").writerows([table.headers, *table.rows])
        return buffer.getvalue()
    from tabulate import tabulate

    cells = [table.headers, *table.rows]
    if form == "markdown":
        cells = [tuple(cell.replace("|", "\\|") for cell in row) for row in cells]
    sides = ["left" if column < table.n_names else "right" for column in range(len(table.headers))]
    shown = tabulate(cells[1:], cells[0], tablefmt=STYLES[form], disable_numparse=True, colalign=sides)
    return "\n".join([shown, "", *(f"{NOTES[form]}{note}" for note in table.notes)]).rstrip() + "\n"


def write_tables(table: Table, folder: Path, name: str) -> None:
    """Write a table in all four forms."""
    make_folder(folder)
    for form, suffix in SUFFIXES.items():
        write_bytes(folder / f"{name}{suffix}", render(table, form).encode())
