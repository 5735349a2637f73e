"""Draw the idea of the frozen-tower forward: which slots of which class are computed, plainly and by us.

python scripts/draw_speed.py docs/images/frozen_tower.png
"""

from pathlib import Path

import matplotlib as mpl
import tyro

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

NAMES = ["cat", "dog house", "red car", "fish", "happy bird tree"]
N_CTX, N_SLOTS = 4, 20
COLORS = {"start": "#555555", "context": "#d95f02", "name": "#1b9e77", "end": "#7570b3", "padding": "#dddddd"}
LABELS = {"context": "learned vectors", "name": "name and full stop"}


def kinds_of(name: str) -> list[str]:
    """What stands in each slot of a class's text, without padding."""
    return ["start", *["context"] * N_CTX, *["name"] * (len(name.split()) + 1), "end"]


def draw_slots(axes: Axes, kinds: list[str], row: float, first: int = 0) -> None:
    """One row of boxes."""
    for place, kind in enumerate(kinds):
        box = Rectangle((first + place, -row), 0.9, 0.8, color=COLORS[kind], linewidth=0)
        axes.add_patch(box)


def finish(axes: Axes, title: str, n_rows: float) -> None:
    """Title and limits; no scales, since boxes are counted."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlim(-5.4, N_SLOTS)
    axes.set_ylim(-n_rows, 1.1)
    axes.axis("off")


def main(out: tyro.conf.Positional[Path]) -> None:
    """Draw the PNG file."""
    figure, (plain, ours, last) = plt.subplots(
        3, 1, figsize=(7.2, 6.2), height_ratios=[len(NAMES), len(NAMES) + 1, len(NAMES)]
    )
    for row, name in enumerate(NAMES):
        kinds = kinds_of(name)
        for axes, line in ((plain, row), (ours, row + 1), (last, row)):
            axes.text(-0.3, -line + 0.4, name, ha="right", va="center", fontsize=9)
        draw_slots(plain, kinds + ["padding"] * (N_SLOTS - len(kinds)), row)
        draw_slots(ours, kinds[1 + N_CTX :], row + 1, first=1 + N_CTX)
        draw_slots(last, ["end"], row, first=len(kinds) - 1)
    ours.text(-0.3, 0.4, "all classes", ha="right", va="center", fontsize=9)
    draw_slots(ours, ["start", *["context"] * N_CTX], 0)
    n_plain = len(NAMES) * N_SLOTS
    n_ours = 1 + N_CTX + sum(len(kinds_of(name)) - 1 - N_CTX for name in NAMES)
    finish(plain, f"plain: {n_plain} slots in every block (with 77 slots: {len(NAMES) * 77})", len(NAMES))
    finish(ours, f"the frozen-tower forward: {n_ours} slots in every block but the last", len(NAMES) + 1)
    finish(last, f"its last block: keys and values of those, everything else for {len(NAMES)} end tokens", len(NAMES))
    handles = [Rectangle((0, 0), 1, 1, color=color, label=LABELS.get(kind, kind)) for kind, color in COLORS.items()]
    figure.legend(handles=handles, loc="lower center", ncol=5, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
