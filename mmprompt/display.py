"""What a notebook shows of a result: facts, bars, a curve, small images, as HTML; and tables as DataFrames.

It knows numbers and texts, not what they are of. The colours are the notebook's own, so that it works dark and light.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmprompt.errors import UserError, visible

if TYPE_CHECKING:
    from pandas import DataFrame
    from PIL import Image

MOST_ROWS = 12
THUMBNAIL = 72
CURVE_WIDTH, CURVE_HEIGHT = 240, 60
CELL = "padding:1px 10px 1px 0;text-align:left;vertical-align:top"


def frame(columns: Mapping[str, Sequence[Any]]) -> DataFrame:
    """Return columns as a DataFrame.

    Raises:
        UserError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise UserError("a DataFrame was asked for, but pandas is not installed. Use pip install pandas.") from None
    return pd.DataFrame({name: list(values) for name, values in columns.items()})


def section(title: str, *parts: str) -> str:
    """Return a title with parts of HTML below it."""
    return f"<div><strong>{escaped(title)}</strong>{''.join(parts)}</div>"


def facts(rows: Mapping[str, object]) -> str:
    """Return names and what they are in two columns; what is empty is left out."""
    return table((), [(name, value) for name, value in rows.items() if value not in (None, "", ())])


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows below headers; of many the first are shown, and how many more there are."""
    head = "".join(f'<th style="{CELL}">{escaped(text)}</th>' for text in headers)
    body = "".join(
        "<tr>" + "".join(f'<td style="{CELL}">{escaped(cell)}</td>' for cell in row) + "</tr>"
        for row in rows[:MOST_ROWS]
    )
    more = f"<div>and {len(rows) - MOST_ROWS} more</div>" if len(rows) > MOST_ROWS else ""
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>{more}"


def bars(shares: Mapping[str, float]) -> str:
    """Return shares, 0..1, as bars with their names and numbers; of many the first are shown."""
    rows = "".join(
        f'<tr><td style="{CELL}">{escaped(name)}</td><td style="{CELL};width:160px"><div style="height:0.8em;'
        f'width:{160 * share:.0f}px;background:#4477aa"></div></td><td style="{CELL}">{share:.1%}</td></tr>'
        for name, share in list(shares.items())[:MOST_ROWS]
    )
    more = f"<div>and {len(shares) - MOST_ROWS} more</div>" if len(shares) > MOST_ROWS else ""
    return f"<table>{rows}</table>{more}"


def curve(name: str, values: Sequence[float]) -> str:
    """Return numbers over time as a line, with the first and the last."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    height = (high - low) or 1.0
    points = " ".join(
        f"{4 + (CURVE_WIDTH - 8) * i / (len(values) - 1):.1f},{4 + (CURVE_HEIGHT - 8) * (high - value) / height:.1f}"
        for i, value in enumerate(values)
    )
    line = f'<polyline fill="none" stroke="#4477aa" stroke-width="2" points="{points}"/>'
    size = f'width="{CURVE_WIDTH}" height="{CURVE_HEIGHT}"'
    drawn = f'<svg {size} role="img" aria-label="{escaped(name)}">{line}</svg>'
    return f"<div>{escaped(name)} {values[0]:.3g} {drawn} {values[-1]:.3g}</div>"


def images(named: Iterable[tuple[str, Image.Image]]) -> str:
    """Return small images in a row, with their names."""
    shown = []
    for name, image in named:
        small, buffer = image.copy(), io.BytesIO()
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        small.save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        shown.append(f'<img src="data:image/png;base64,{data}" alt="{escaped(name)}" title="{escaped(name)}"> ')
    return f"<div>{''.join(shown)}</div>"


def escaped(value: object) -> str:
    """Return a text as HTML shows it: names may come from a stranger."""
    return html.escape(visible(str(value)))
