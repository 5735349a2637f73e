"""A self-contained HTML page: the templates filled, figures and pictures inside it, nothing from the network.

It knows templates and bytes, not what they show.
"""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Callable
from typing import Any

from PIL import Image

from mmprompt.reports.figures import DARK, LIGHT, Theme
from mmprompt.reports.numbers import between, percent, signed

EXTRA = ("matplotlib", "jinja2", "tabulate")
INSTALL = 'pip install "mmprompt[report]"'
FILTERS: dict[str, Callable[..., str]] = {"percent": percent, "signed": signed, "interval": between}
COLUMN = range(690, 753)  # CSS pixels: a figure as wide as the text is fitted to it, any other keeps its size


def missing_extra() -> str | None:
    """One line on how to install what reports need, None where it is there."""
    absent = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    return f"no report was written, because {' and '.join(absent)} is missing: {INSTALL}" if absent else None


def render_page(name: str, **values: Any) -> str:
    """Return the HTML of a template, every text in it escaped; its filters are `FILTERS`.

    Args:
        name: of the template, without `.html.jinja`.
        values: variables of the template; shares are numbers, which the filters write out.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("mmprompt.reports", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters.update(FILTERS)
    return environment.get_template(f"{name}.html.jinja").render(light=LIGHT, dark=DARK, **values)


def chart(draw: Callable[[Theme], bytes]) -> tuple[bytes, dict[str, Any]]:
    """A figure in both themes: its light PNG, and what a template needs to show it.

    Args:
        draw: draws the figure in a theme.
    """
    light = draw(LIGHT)
    with Image.open(io.BytesIO(light)) as picture:
        width = round(96 * picture.width / picture.info["dpi"][0])
    shown = {"light": encode(light), "dark": encode(draw(DARK)), "width": None if width in COLUMN else width}
    return light, shown


def encode(data: bytes) -> str:
    """Bytes as base64 text."""
    return base64.b64encode(data).decode("ascii")
