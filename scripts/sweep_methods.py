"""Learning rates of the classification methods: which are good, and whether the default is among them.

    python scripts/sweep_methods.py --json FILE
    python scripts/sweep_methods.py --json FILE --backbone photo --tasks caltech101 --root DATA

Every trained method runs at its default rate and at multiples of it, and is judged on images that are neither trained
on nor test images. A method of which a neighbour beats the default is the one to look at. Run again, it goes on.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import tyro

import mmprompt as mp
from markdown import percent, table
from measuring import read_figures, run_main, write_figures
from mmprompt.classification.methods import METHODS
from mmprompt.core.method import resolved_recipe
from mmprompt.data.catalog import recipe_of
from mmprompt.data.splits import Dataset
from mmprompt.training.problem import RunFailed

TRAINED = tuple(name for name, kind in METHODS.items() if kind.learns and kind.needs_shots and kind.is_trained)
FACTORS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
KEYS = ("backbone", "task", "method", "shots", "seed", "lr")
MAX_LR = 100.0
"""Of a recipe."""
Row = dict[str, Any]


def held_out(task: str, root: Path | None, shots: int, seed: int) -> Dataset:
    """The few-shot part, and for test images those that are neither in it nor test images of the data set."""
    drawn, whole = (mp.load_dataset(task, root, k, seed) for k in (shots, None))
    taken = {item.path for item in drawn.train}
    rest = [item for item in (*whole.val, *whole.train) if item.path not in taken]
    return replace(drawn, val=(), test=tuple(rest))


def default_rate(method: str, backbone: str, task: str) -> float:
    """The rate that `fit` takes where none is given."""
    return resolved_recipe(METHODS[method], (backbone, "classification"), recipe_of(task), None).lr


def run(method: str, backbone: Any, data: Dataset, lr: float, seed: int) -> Row:
    """One training and its accuracy; 0 where the loss stopped being finite."""
    started = time.perf_counter()
    try:
        result = mp.fit(method, backbone, data, seed=seed, progress=False, lr=lr)
    except RunFailed as failed:
        return {"accuracy": 0.0, "failed": str(failed)}
    seconds = round(time.perf_counter() - started, 1)
    found = result.evaluate(data.test)
    return {"accuracy": found.accuracy, "n": len(data.test), "loss": result.history[-1]["loss"], "seconds": seconds}


def page(rows: Sequence[Row], backbone: str, defaults: dict[str, float]) -> str:
    """Accuracy in % at the default and the best rate, and at all rates that were tried on the same images."""
    lines = []
    for method, default in defaults.items():
        found: dict[float, dict[tuple[Any, ...], float]] = {}
        for row in rows:
            if (row["backbone"], row["method"]) == (backbone, method):
                found.setdefault(row["lr"], {})[row["task"], row["shots"], row["seed"]] = row["accuracy"]
        means = {lr: fmean(found[lr].values()) for lr in sorted(found) if found[lr].keys() >= found[default].keys()}
        best = max(means, key=lambda lr: means[lr])
        tried = ", ".join(f"{lr:g}: {percent(means[lr])}" for lr in means)
        behind = f"{100 * (means[best] - means[default]):.1f}"
        lines.append([f"`{method}`", f"{default:g}", percent(means[default]), f"{best:g}", behind, tried])
    return table(["method", "default rate", "there", "best rate", "behind it", "tried"], lines)


def rate(default: float, factor: float) -> float:
    """The default times a factor, to three digits, and no more than a recipe takes."""
    return min(float(f"{default * factor:.3g}"), MAX_LR)


def main(
    json_file: Annotated[Path, tyro.conf.arg(name="json")],
    backbone: str = "tiny",
    tasks: tuple[str, ...] = ("openart-left", "openart-large"),
    root: Path | None = None,
    methods: tuple[str, ...] = TRAINED,
    shots: tuple[int, ...] = (4, 16),
    seeds: tuple[int, ...] = (1,),
    factors: tuple[float, ...] = FACTORS,
    table_only: Annotated[bool, tyro.conf.arg(name="table")] = False,
) -> None:
    """Try all learning rates.

    Args:
        json_file: where all figures go; those it has of other cells stay.
        table_only: print the table of the file and measure nothing.
    """
    rows: list[Row] = read_figures(json_file).get("rows", [])
    defaults = {method: default_rate(method, backbone, tasks[0]) for method in methods}
    known = {tuple(row[key] for key in KEYS) for row in rows}
    if not table_only:
        torch.set_num_threads(1)
        model = mp.load_backbone(backbone)
        data = {(task, k, seed): held_out(task, root, k, seed) for task in tasks for k in shots for seed in seeds}
    for method, default in defaults.items() if not table_only else ():
        for lr in sorted({rate(default, factor) for factor in factors}):
            for (task, k, seed), part in data.items():
                name = (backbone, task, method, k, seed, lr)
                if name in known:
                    continue
                rows.append(dict(zip(KEYS, name, strict=True)) | run(method, model, part, lr, seed))
                print(rows[-1], flush=True)
                write_figures(json_file, {"rows": rows})
    measured = {
        row["method"] for row in rows if row["backbone"] == backbone and row["lr"] == defaults.get(row["method"])
    }
    print(page(rows, backbone, {method: lr for method, lr in defaults.items() if method in measured}))


if __name__ == "__main__":
    run_main(main, __doc__)
