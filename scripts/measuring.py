"""What scripts that measure share: figures of hours that a kill leaves whole, and mistakes in one line."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

import mmprompt as mp
from mmprompt.files import make_folder, write_bytes
from mmprompt.language.data import TextRow


def read_figures(path: Path | None) -> dict[str, Any]:
    """The figures of a file, none where there is no file."""
    return json.loads(path.read_text("utf-8")) if path is not None and path.is_file() else {}


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    """Write a file of figures, the whole of it or nothing."""
    text = json.dumps(figures, indent=1, ensure_ascii=False) + "\n"
    write_bytes(make_folder(path.parent) / path.name, text.encode())


def with_rows(path: Path, rows: Sequence[dict[str, Any]], keys: Sequence[str], **facts: Any) -> dict[str, Any]:
    """The rows of a file and new ones, in the place of those with the same keys; none of a file with other facts."""
    found = read_figures(path)
    is_same = all(found.get(name) == fact for name, fact in facts.items())
    known = [*found.get("rows", [])] if is_same else []
    return facts | {"rows": list({tuple(row[key] for key in keys): row for row in (*known, *rows)}.values())}


def accuracy(prompted: mp.LanguagePredictor, rows: Sequence[TextRow]) -> float:
    """The share of rows whose own label is the likeliest."""
    found = prompted.classify(rows)
    return sum(one.label == row.label for one, row in zip(found, rows, strict=True)) / len(rows)


def short_name(model: str) -> str:
    """The name of a model without the folders before it."""
    return model.removeprefix("hf:").rstrip("/").rsplit("/", 1)[-1]


def run_main(main: Callable[..., None], description: str | None) -> None:
    """Call `main` with what the command line says; a mistake of the user's is one line."""
    try:
        tyro.cli(main, description=description)
    except mp.UserError as error:
        raise SystemExit(f"error: {error}") from None
