"""Numbers as people read them, which are filters of the pages' templates too; tables as text, Markdown, CSV, LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmprompt.files import make_folder, write_bytes

SUFFIXES = {"text": ".txt", "markdown": ".md", "csv": ".csv", "latex": ".tex"}
STYLES = {"text": "simple", "markdown": "github", "latex": "latex_booktabs"}
NOTES = {"text": "", "markdown": "- ", "latex": "% "}
"""What a note begins with."""
INTERVAL = re.compile(r" \([\d.+\N{MINUS SIGN}]+ to [\d.+\N{MINUS SIGN}]+\)$")


def percent(share: float) -> str:
    """Return a share in 0..1 as `62.4 %`, with the thin space that typography asks for."""
    return f"{100 * share:.1f}\N{NARROW NO-BREAK SPACE}%"


def signed(share: float) -> str:
    """Return a difference of shares in points, `+31.2`, with a real minus."""
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")


def between(interval: Sequence[float], with_sign: bool = False) -> str:
    """Return an interval of shares as `59.1 to 65.5`."""
    low, high = (signed(bound) if with_sign else f"{100 * bound:.1f}" for bound in interval)
    return f"{low} to {high}"


def verdict(interval: Sequence[float], better: str, worse: str, unclear: str) -> str:
    """Return what the 95 % interval of a difference allows to claim: one of three texts."""
    low, high = interval
    return better if low > 0 else worse if high < 0 else unclear


def counted(n: int, noun: str) -> str:
    """Return `1 trial` or `1,200 trials`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def in_shots(shots: int | None) -> str:
    """Return how a number of training images per class is called: `4 shots`, `zero-shot`, `all shots`."""
    return "all shots" if shots is None else "zero-shot" if shots == 0 else counted(shots, "shot")


def plain_table(rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> list[str]:
    """Return rows as aligned lines without frames, wraps or trailing blanks, for files and pipes."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = enumerate(zip(row, widths, strict=True))
        lines.append("  ".join(text.rjust(n) if i in numbers else text.ljust(n) for i, (text, n) in cells).rstrip())
    return lines


@dataclass(frozen=True)
class Table:
    """Rows under headers, all of them text; `n_names` columns of names, then numbers; notes are sentences below."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_names: int
    notes: tuple[str, ...] = ()


def render(table: Table, form: str) -> str:
    """Return a table in one of the four forms; CSV has no place for the notes."""
    if form == "csv":
        buffer = io.StringIO(newline="")
        rows = [[_no_formula(cell) for cell in row] for row in (table.headers, *table.rows)]
        csv.writer(buffer, lineterminator="\n").writerows(rows)
        return buffer.getvalue()
    from tabulate import tabulate

    cells = [table.headers, *table.rows]
    if form == "markdown":
        cells = [tuple(cell.replace("|", "\\|") for cell in row) for row in cells]
    sides = ["left" if column < table.n_names else "right" for column in range(len(table.headers))]
    shown = tabulate(cells[1:], cells[0], tablefmt=STYLES[form], disable_numparse=True, colalign=sides)
    return "\n".join([shown, "", *(f"{NOTES[form]}{note}" for note in table.notes)]).rstrip() + "\n"


def _no_formula(cell: str) -> str:
    """Return a cell that a spreadsheet shows and does not compute; numbers, intervals and a lone dash stay."""
    if cell == "-":
        return cell
    try:
        float(INTERVAL.sub("", cell))
    except ValueError:
        return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
    return cell


def write_tables(table: Table, folder: Path, name: str) -> None:
    """Write a table in all four forms."""
    make_folder(folder)
    for form, suffix in SUFFIXES.items():
        write_bytes(folder / f"{name}{suffix}", render(table, form).encode())
