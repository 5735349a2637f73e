"""A self-contained HTML page: the templates filled, figures and images inside it, nothing from the network.

It knows templates and bytes, not what they show.
"""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from mmprompt.errors import UserError
from mmprompt.files import make_folder, write_bytes
from mmprompt.reports import numbers
from mmprompt.reports.figures import DARK, LIGHT, Theme

EXTRA = ("matplotlib", "jinja2", "tabulate")
INSTALL = 'pip install "mmprompt[report]"'
COLUMN = range(690, 753)  # CSS pixels: a figure as wide as the text is fitted to it, any other keeps its size

Draw = Callable[[Theme], bytes]
"""Draws a figure in a theme, as PNG."""


def missing_extra() -> str | None:
    """One line on how to install what reports need, None where it is there."""
    absent = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    return f"no report was written, because {' and '.join(absent)} is missing: {INSTALL}" if absent else None


def require_extra() -> None:
    """Raise what `missing_extra` says, if anything is missing."""
    problem = missing_extra()
    if problem:
        raise UserError(problem)


def write_page(
    folder: Path, template: str, charts: Mapping[str, Draw], images: Mapping[str, bytes], **values: Any
) -> Path:
    """Write `report.html` and, beside it, every figure as a PNG file.

    Args:
        folder: where they go, made if need be; files of an earlier report are replaced.
        template: its name, without `.html.jinja`.
        charts: figures by file name without suffix; the template finds those to show in `figures`, by the same names.
        images: more PNG files by name, which the page does not show.
        values: further variables of the template. Shares are passed as numbers, which the filters `percent`, `signed`,
            `interval` and the others write out; every text is escaped.
    Returns:
        The path of the page.
    Raises:
        UserError: the folder cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("mmprompt.reports", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "percent": numbers.percent,
        "signed": numbers.signed,
        "interval": numbers.between,
        "verdict": numbers.verdict,
        "counted": numbers.counted,
        "grouped": "{:,}".format,
        "shots": numbers.in_shots,
        "png": png_text,
    }
    drawn = {name: (draw(LIGHT), draw(DARK)) for name, draw in charts.items()}
    figures: dict[str, dict[str, Any]] = {}
    for name, (light, dark) in drawn.items():
        with Image.open(io.BytesIO(light)) as image:
            width = round(96 * image.width / image.info["dpi"][0])
        shown_width = None if width in COLUMN else width
        figures[name] = {"light": base64_text(light), "dark": base64_text(dark), "width": shown_width}
    page = environment.get_template(f"{template}.html.jinja").render(light=LIGHT, dark=DARK, figures=figures, **values)
    make_folder(folder)
    for name, data in {**{name: light for name, (light, _) in drawn.items()}, **images}.items():
        write_bytes(folder / f"{name}.png", data)
    path = folder / "report.html"
    write_bytes(path, page.encode())
    return path


def png_text(image: Image.Image) -> str:
    """Return an image as base64 text of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return base64_text(buffer.getvalue())


def base64_text(data: bytes) -> str:
    """Return bytes as base64 text."""
    return base64.b64encode(data).decode("ascii")
