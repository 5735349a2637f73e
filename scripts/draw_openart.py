"""Draw the README's picture from the measured figures: what is asked of the scenes, and what learning to ask brings.

python scripts/draw_openart.py docs/results/openart.json docs/images/openart.png
"""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import tyro

mpl.use("Agg")
import matplotlib.pyplot as plt

import mmprompt as mp

INK, QUIET, ACCENT = "#22262a", "#9aa0a6", "#1f8a80"
N_IMAGES = 4


def draw_scenes(figure: Any, grid: Any, task: str) -> None:
    """Test images with the answer that is wanted under each."""
    data = mp.load_dataset(task)
    for i in range(N_IMAGES):
        item = data.test[7 * i]
        axes = figure.add_subplot(grid[i // 2, i % 2])
        axes.imshow(mp.classification.read_image(item.path))
        axes.set_xlabel(data.class_names[item.label], color=INK, fontsize=9)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)


def draw_curve(axes: Any, row: dict[str, Any]) -> None:
    """Accuracy over shots beside both zero-shot lines."""
    shots = [int(k) for k in row["coop"]]
    learned = [100 * row["coop"][str(k)]["accuracy"] for k in shots]
    spread = [100 * row["coop"][str(k)]["std"] for k in shots]
    axes.errorbar(range(len(shots)), learned, spread, color=ACCENT, marker="o", markersize=4, linewidth=1.6, capsize=2)
    for key, style in (("bare_name", "-"), ("template", (0, (4, 3)))):
        axes.axhline(100 * row[key], color=QUIET, linestyle=style, linewidth=1.2)
    axes.axhline(100 * row["chance"], color=QUIET, linewidth=0.8, linestyle=":")
    axes.set_title(row["task"].removeprefix("openart-"), color=INK, fontsize=10, loc="left")
    axes.set_xticks(range(len(shots)), [str(k) for k in shots])
    axes.set_ylim(0, None)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(QUIET)
    axes.grid(axis="y", color="#e6e8ea", linewidth=0.8)
    axes.set_axisbelow(True)


def main(source: tyro.conf.Positional[Path], target: tyro.conf.Positional[Path]) -> None:
    """Scenes on the left, one panel per task on the right."""
    rows = json.loads(source.read_text())["rows"]
    figure = plt.figure(figsize=(9.6, 3.9), dpi=160, facecolor="white")
    left, right = figure.add_gridspec(
        1, 2, width_ratios=(1, 2.1), wspace=0.16, left=0.02, right=0.985, top=0.84, bottom=0.12
    )
    figure.text(0.02, 0.93, "What is on the left?", color=INK, fontsize=11, weight="bold")
    figure.text(0.375, 0.93, "Test accuracy in %, by training pictures a class", color=INK, fontsize=11, weight="bold")
    draw_scenes(figure, left.subgridspec(2, 2, wspace=0.08, hspace=0.28), "openart-left")
    columns = -(-len(rows) // 2)
    panels = right.subgridspec(2, columns, wspace=0.3, hspace=0.42)
    for i, row in enumerate(rows):
        draw_curve(figure.add_subplot(panels[i // columns, i % columns]), row)
    legend = [plt.Line2D([], [], color=ACCENT, marker="o", markersize=4), plt.Line2D([], [], color=QUIET)]
    legend += [plt.Line2D([], [], color=QUIET, linestyle=style) for style in ((0, (4, 3)), ":")]
    names = ["CoOp, 4 vectors (five seeds)", "bare class name", "hand-written template", "chance"]
    form = {"ncols": 4, "frameon": False, "fontsize": 8, "labelcolor": INK, "bbox_to_anchor": (0.99, -0.015)}
    figure.legend(legend, names, loc="lower right", **form)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
