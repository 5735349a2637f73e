"""Curves of a training while it goes on: one SVG a measure, whose axis is as long as the training will be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 320, 140
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 12, 22
SHOWN = {"loss": ("loss", "{:.2f}"), "accuracy": ("right on the training data", "{:.0%}")}
"""What is drawn of an epoch's record, how it is called and how its numbers are written."""


def curves(history: Sequence[Mapping[str, Any]], n_epochs: int) -> str:
    """Return a figure for each measure that the records have, by epoch from 1."""
    if not history:
        return ""
    drawn = [
        _figure([float(record[key]) for record in history], max(n_epochs, len(history)), name, form, key == "accuracy")
        for key, (name, form) in SHOWN.items()
        if all(key in record for record in history)
    ]
    return f'<div class="curves">{"".join(drawn)}</div>'


def _figure(values: Sequence[float], n_epochs: int, name: str, form: str, is_share: bool) -> str:
    top = 1.0 if is_share else max(values) * 1.05 or 1.0

    def place(epoch: int, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * epoch / max(1, n_epochs - 1)
        y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(place(epoch, value) for epoch, value in enumerate(values))
    end_x, end_y = place(len(values) - 1, values[-1]).split(",")
    said = f"{name}: {form.format(values[0])} after epoch 1, {form.format(values[-1])} after epoch {len(values)}"
    floor = HEIGHT - BOTTOM
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(said)}">'
        f'<line class="axis" x1="{LEFT}" y1="{floor}" x2="{WIDTH - RIGHT}" y2="{floor}"/>'
        f'<line class="grid" x1="{LEFT}" y1="{TOP}" x2="{WIDTH - RIGHT}" y2="{TOP}"/>'
        f'<text x="{LEFT - 6}" y="{TOP + 4}" text-anchor="end">{form.format(top)}</text>'
        f'<text x="{LEFT - 6}" y="{floor + 4}" text-anchor="end">{form.format(0)}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 5}">1</text>'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">epoch {n_epochs}</text>'
        f'<polyline points="{line}"/><circle cx="{end_x}" cy="{end_y}" r="3.5"/></svg>'
        f"<figcaption>{escape(name)} <b>{form.format(values[-1])}</b></figcaption></figure>"
    )
