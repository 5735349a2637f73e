"""A self-contained HTML page: the templates filled, figures and images inside it, nothing from the network.

`write_report` is the page of a captioner's or a language model's run; others have pages of their own.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mmprompt.core.header import read_header
from mmprompt.errors import UserError
from mmprompt.files import make_folder, write_bytes
from mmprompt.progress import doing
from mmprompt.reports import tables
from mmprompt.reports.figures import DARK, LIGHT, Theme, draw_learning_curve
from mmprompt.training.run_files import RUN, read_log, read_run

if TYPE_CHECKING:
    from jinja2 import BaseLoader, Environment

EXTRA = ("matplotlib", "jinja2", "tabulate")
INSTALL = 'pip install "mmprompt[report]"'
COLUMN = range(690, 753)  # CSS pixels: a figure as wide as the text is fitted to it, any other keeps its size

VERBS = {"captioning": "caption eval --prompts", "language": "llm eval --prompt"}
"""What measures a run, by its kind."""
Draw = Callable[[Theme], bytes]
"""Draws a figure in a theme, as PNG."""


def missing_extra() -> str | None:
    """Return one line on how to install what reports need, None where it is there."""
    absent = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    return f"no report was written, because {' and '.join(absent)} is missing: {INSTALL}" if absent else None


def require_extra() -> None:
    """Raise what `missing_extra` says, if anything is missing."""
    problem = missing_extra()
    if problem:
        raise UserError(problem)


@doing("drawing the report")
def write_page(
    folder: Path,
    template: str,
    charts: Mapping[str, Draw],
    images: Mapping[str, bytes],
    file: str = "report.html",
    **values: Any,
) -> Path:
    """Write `report.html`, or a page of another name, and beside it every figure as a PNG file; return its path.

    The template, named without `.html.jinja`, finds the charts to show in `figures`, by their names, and the `values`
    as variables: shares are numbers, which the filters `percent`, `signed`, `interval` and others write out; every text
    is escaped. `images` are more PNG files, which the page does not show. Files of an earlier report are replaced.
    """
    from jinja2 import PackageLoader

    environment = environment_of(PackageLoader("mmprompt.reports", "templates"))
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
    path = folder / file
    write_bytes(path, page.encode())
    return path


def environment_of(loader: BaseLoader) -> Environment:
    """Return what fills in templates: every text is escaped, and numbers are written by the filters of `tables`."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "percent": tables.percent,
        "signed": tables.signed,
        "interval": tables.between,
        "verdict": tables.verdict,
        "counted": tables.counted,
        "grouped": "{:,}".format,
        "shots": tables.in_shots,
        "png": png_text,
        "zip": zip,
    }
    return environment


def png_text(image: Image.Image) -> str:
    """Return an image as base64 text of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64_text(buffer.getvalue())


def base64_text(data: bytes) -> str:
    """Return bytes as base64 text."""
    return base64.b64encode(data).decode("ascii")


def write_report(folder: Path) -> Path:
    """Write `report.html` and `learning_curve.png` of a finished run into its folder."""
    require_extra()
    header = read_header(folder)
    run = read_run(folder) if (folder / RUN).is_file() else header["training"]
    log = read_log(folder / "log.jsonl") if (folder / "log.jsonl").is_file() else []
    items = "training images" if header["kind"] == "captioning" else "training rows"
    charts: dict[str, Draw] = {"learning_curve": partial(draw_learning_curve, log, learned_from=items)} if log else {}
    data = run.get("data", {}).get("name")
    words = [str(folder), *(("--data", str(data)) if data else ())]
    verb, name = f"{VERBS.get(header['kind'], 'eval')} {shlex.join(words)}", folder.resolve().name
    return write_page(folder, "run", charts, {}, header=header, run=run, log=log, run_name=name, verb=verb)
