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
from mmprompt.files import write_json
from mmprompt.models.image_features import ImageFeatures

LEARNED_ON = [f"openart-{task}" for task in ("left", "large", "action", "category")]
HELD_OUT = [f"openart-{task}" for task in ("right", "small", "emotion")]
WORDS = "a photo of a"
SEEDS = (1, 2, 3, 4, 5)
SHOTS = (1, 2)
EPOCHS = (10, 100)
ROUNDS = {"n_rounds": 60, "n_inner": 10}
LR = 0.02  # the tasks' own


def starts_in(folder: Path, features: ImageFeatures) -> dict[str, mp.CoOp]:
    """The ways to start: Reptile over four tasks, an ordinary prompt of one of them, words, random numbers."""
    datas = [mp.load_dataset(task, shots=16, seed=1) for task in LEARNED_ON]
    recipe, method = mp.Recipe(lr=LR), mp.CoOp(ctx_init=WORDS)
    start = mp.classification.meta_init(
        datas, features.backbone, method, recipe, out=folder / "meta", features=features, **ROUNDS
    )
    n_ctx = len(start.predictor.prompt.sources[0].values)
    mp.fit(method, features.backbone, datas[0].task(features), folder / "one", progress=False)
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
        learned = mp.fit(method, features.backbone, data.task(features), seed=seed, progress=False, epochs=epochs)
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
                print(line(row), flush=True)
                rows.append(row)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row of the table of the documentation."""
    means = row["accuracy"]
    low, high = (100 * end for end in row["gain_interval"])
    gain = f"{100 * (means['Reptile'] - means['words']):+.1f} ({low:+.1f} to {high:+.1f})"
    cells = [f"`{row['task']}`", row["shots"], row["epochs"], *(f"{100 * each:.1f}" for each in means.values()), gain]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Learn the starts, adapt them, print a table, and keep every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    features = ImageFeatures(mp.load_backbone("tiny", "cpu"))
    with tempfile.TemporaryDirectory() as folder:
        starts = starts_in(Path(folder), features)
        print("| held out | shots | epochs | " + " | ".join(starts) + " | Reptile over words |")
        print("|" + "---|" * (4 + len(starts)))
        rows = measured(starts, features)
    facts = {"learned_on": LEARNED_ON, "words": WORDS, "seeds": list(SEEDS), "lr": LR, **ROUNDS}
    write_json(arguments.json, facts | {"rows": rows})


if __name__ == "__main__":
    main()
