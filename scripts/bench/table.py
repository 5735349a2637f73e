"""Print the figures of the benchmarks as the tables of docs/speed.md.

python scripts/bench/table.py docs/results/text_step.json docs/results/memory.json
"""

import json
from pathlib import Path

import tyro

COLUMNS = {
    "ratio": ("plain / ours", "{:.1f}"),
    "step_ratio": ("of a step alone", "{:.0f}"),
    "equal": ("equal", "{}"),
    "plain_s": ("plain, s", "{:.2f}"),
    "ours_s": ("ours, s", "{:.2f}"),
    "of_floor": ("of the floor's speed", "{:.0%}"),
    "gradient_error": ("gradient's error", "{:.0e}"),
    "weights_error": ("error of what is learned", "{:.0e}"),
    "probability_error": ("error of the answer", "{:.0e}"),
    "batch": ("images a step", "{}"),
    "epochs": ("epochs", "{}"),
    "passes": ("passes of the image tower", "{}"),
    "peak_gb": ("peak, GB", "{:.2f}"),
    "before_the_step_gb": ("of it before the step, GB", "{:.2f}"),
    "plain_peak_gb": ("plain peak, GB", "{:.2f}"),
}


def main(files: tyro.conf.Positional[tuple[Path, ...]]) -> None:
    for path in files:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        columns = {key: column for key, column in COLUMNS.items() if any(row.get(key) is not None for row in rows)}
        print("| " + " | ".join(["row", *(title for title, _ in columns.values())]) + " |")
        print("|---" * (1 + len(columns)) + "|")
        for row in rows:
            cells = [cell(key, row.get(key), form) for key, (_, form) in columns.items()]
            print("| " + " | ".join([row["name"], *cells]) + " |")
        print()


def cell(key: str, value: object, form: str) -> str:
    """A figure as people read it; empty where the row has none of the kind."""
    if value is None:
        return "not run" if key in ("ratio", "plain_s", "plain_peak_gb") else ""
    return ("yes" if value else "no") if isinstance(value, bool) else form.format(value)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
