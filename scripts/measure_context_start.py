"""Measure a start of context vectors learned over artwork tasks, on tasks that were held out, beside words.

Learned by Reptile on four tasks at 16 shots, then adapted to three others at 1 and 2 shots, five seeds, in ten epochs
and in the tasks' own hundred. Settings were fixed before the first run; nothing is chosen by these numbers.

    python scripts/measure_context_start.py --json docs/results/context_start.json
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import mmprompt as mp
from markdown import gain, percent, table
from mmprompt.files import make_folder, write_json
from mmprompt.models.image_features import ImageFeatures

LEARNED_ON = [f"openart-{task}" for task in ("left", "large", "action", "category")]
HELD_OUT = [f"openart-{task}" for task in ("right", "small", "emotion")]
WORDS = "a photo of a"
SEEDS = (1, 2, 3, 4, 5)
SHOTS = (1, 2)
EPOCHS = (10, 100)
ROUNDS = {"n_rounds": 60, "n_inner": 10}
LR = 0.02


def starts_in(folder: Path, features: ImageFeatures) -> dict[str, mp.CoOp]:
    """The ways to start: Reptile over four tasks, an ordinary prompt of one of them, words, random numbers."""
    datas = [mp.load_dataset(task, shots=16, seed=1) for task in LEARNED_ON]
    recipe, method = mp.Recipe(lr=LR), mp.CoOp(ctx_init=WORDS)
    start = mp.classification.meta_init(
        datas, features.backbone, method, recipe, out=folder / "meta", features=features, **ROUNDS
    )
    n_ctx = len(start.predictor.prompt.sources[0].values)
    mp.fit(method, features.backbone, datas[0].task(features), folder / "one", progress=False, lr=LR)
    return {
        "Reptile": mp.CoOp(ctx_init=str(folder / "meta")),
        "prompt of left": mp.CoOp(ctx_init=str(folder / "one")),
        "words": method,
        "random": mp.CoOp(n_ctx=n_ctx),
    }


def adapted(task: str, method: mp.CoOp, shots: int, epochs: int, features: ImageFeatures) -> np.ndarray:
    """[5, N] right or wrong on the test images, by seed."""
    rows = []
    for seed in SEEDS:
        data = mp.load_dataset(task, shots=shots, seed=seed)
        few = data.task(features)
        learned = mp.fit(method, features.backbone, few, seed=seed, progress=False, epochs=epochs, lr=LR)
        rows.append(mp.evaluate(learned.predictor, data.test, features=features).correct)
    return np.stack(rows)


def measured(starts: dict[str, mp.CoOp], features: ImageFeatures) -> list[dict[str, Any]]:
    """A row for each task that was held out, number of shots and of epochs."""
    rows = []
    for task in HELD_OUT:
        for shots in SHOTS:
            for epochs in EPOCHS:
                runs = {name: adapted(task, method, shots, epochs, features) for name, method in starts.items()}
                interval = mp.classification.paired_bootstrap(runs["Reptile"], runs["words"])
                means = {name: float(run.mean()) for name, run in runs.items()}
                row = {"task": task, "shots": shots, "epochs": epochs, "accuracy": means, "gain_interval": interval}
                print(row, flush=True)
                rows.append(row)
    return rows


def page(rows: list[dict[str, Any]]) -> str:
    """The table of the documentation."""
    lines = []
    for row in rows:
        means = row["accuracy"]
        gained = gain(means["Reptile"] - means["words"], row["gain_interval"])
        which = [f"`{row['task']}`", str(row["shots"]), str(row["epochs"])]
        lines.append([*which, *map(percent, means.values()), gained])
    return table(["held out", "shots", "epochs", *rows[0]["accuracy"], "Reptile over words"], lines)


def main() -> None:
    """Learn the starts, adapt them, print a table, and keep every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    make_folder(arguments.json.parent)
    features = ImageFeatures(mp.load_backbone("tiny", "cpu"))
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(starts_in(Path(folder), features), features)
    facts = {"learned_on": LEARNED_ON, "words": WORDS, "seeds": list(SEEDS), "lr": LR, **ROUNDS}
    write_json(arguments.json, facts | {"rows": rows})
    print(page(rows))


if __name__ == "__main__":
    main()
