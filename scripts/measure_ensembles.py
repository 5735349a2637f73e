"""Measure what several seeds of one prompt give together: the average of their vectors, and of their probabilities.

All seeds of a draw learn from the same images, so an ensemble has seen no more than one prompt. Nothing is chosen by
these numbers. Finished runs are kept in `runs/ensembles`: run again, it goes on.

    python scripts/measure_ensembles.py --json docs/results/ensembles.json
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

import mmprompt as mp
from markdown import gain, percent, table
from measuring import run_main, with_rows
from mmprompt.core.combine import average_prompts
from mmprompt.files import make_folder, write_json
from mmprompt.models.image_features import ImageFeatures

STARTS = {"random": mp.CoOp(n_ctx=4), "words": mp.CoOp(ctx_init="a photo of a")}
SEEDS = (1, 2, 3)
KEYS = ("task", "start", "shots")


def right_of(features: ImageFeatures, task: str, start: str, shots: int, draw: int, place: Path) -> Any:
    """Which test images each way has right on one draw, one after the other: [single, vectors, probabilities], [N]."""
    data = mp.load_dataset(task, shots=shots, seed=draw)
    paths, labels = [item.path for item in data.test], np.array([item.label for item in data.test])
    folders = [place / f"{task}-{start}-{shots}shots-draw{draw}-seed{seed}" for seed in SEEDS]
    for folder, seed in zip(folders, SEEDS, strict=True):
        mp.fit(STARTS[start], features.backbone, data, out=folder, seed=seed, resume=True, progress=False)
    probabilities = [mp.load(folder, features.backbone).probabilities(paths, features) for folder in folders]
    averaged = average_prompts(folders, model=features.backbone).probabilities(paths, features)
    single = np.mean([each.argmax(1) == labels for each in probabilities], axis=0)
    together = [averaged, np.mean(probabilities, axis=0)]
    return [single, *(each.argmax(1) == labels for each in together)]


def row_of(features: ImageFeatures, task: str, start: str, shots: int, draws: int, place: Path) -> dict[str, Any]:
    """The figures of one task, start and number of shots."""
    each = [right_of(features, task, start, shots, draw, place) for draw in range(1, draws + 1)]
    single, vectors, probabilities = (np.stack(way).astype(float) for way in zip(*each, strict=True))  # [draws, N]
    row = {"task": task, "start": start, "shots": shots, "test_images": single.shape[1], "single": float(single.mean())}
    for name, way in {"vectors": vectors, "probabilities": probabilities}.items():
        interval = mp.classification.paired_bootstrap(way, single)
        row[name] = {"accuracy": float(way.mean()), "gain": float((way - single).mean()), "interval": list(interval)}
    return row


def page(rows: list[dict[str, Any]]) -> str:
    """The table of the documentation."""
    head = ["task", "start", "shots", "one seed", "vectors averaged", "gained", "probabilities averaged", "gained"]
    lines = []
    for row in rows:
        ways = [row[name] for name in ("vectors", "probabilities")]
        cells = [cell for way in ways for cell in (percent(way["accuracy"]), gain(way["gain"], way["interval"]))]
        lines.append([f"`{row['task']}`", row["start"], str(row["shots"]), percent(row["single"]), *cells])
    return table(head, lines)


def main(
    tasks: tuple[str, ...] = ("openart-left", "openart-action"),
    shots: tuple[int, ...] = (1, 4, 16),
    draws: int = 3,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    runs: Path = Path("runs/ensembles"),
) -> None:
    features = ImageFeatures(mp.load_backbone("tiny", device="cpu"))
    cells = [(task, start, k) for task in tasks for start in STARTS for k in shots]
    rows = []
    for task, start, k in cells:
        rows.append(row_of(features, task, start, k, draws, runs))
        print(rows[-1], flush=True)
    if json_file is not None:
        document = with_rows(json_file, rows, KEYS, seeds=list(SEEDS), draws=draws)
        write_json(make_folder(json_file.parent) / json_file.name, document)
    print(page(rows))


if __name__ == "__main__":
    run_main(main, __doc__)
