"""Run folders as a training leaves them, written without training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmprompt.core.metrics import bootstrap_interval, paired_bootstrap
from mmprompt.files import write_json
from mmprompt.training.log import write_log

MakeRun = Callable[..., Path]


def summary(labels: np.ndarray, predicted: np.ndarray, n_classes: int) -> dict[str, object]:
    confusion = np.zeros((n_classes, n_classes), int)
    np.add.at(confusion, (labels, predicted), 1)
    correct = labels == predicted
    return {
        "accuracy": float(correct.mean()),
        "interval": list(bootstrap_interval(correct)),
        "n": len(labels),
        "confusion": confusion.tolist(),
    }


def write_run(
    folder: Path, class_names: Sequence[str], accuracies: tuple[float, float, float] = (0.3, 0.5, 0.7), n: int = 60
) -> Path:
    """A run folder with `n` test pictures of noise and predictions right with the given shares."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    n_classes = len(class_names)
    labels = np.arange(n) % n_classes
    paths = [folder / "pictures" / f"{i}.png" for i in range(n)]
    paths[0].parent.mkdir()
    for path, label in zip(paths, labels, strict=True):
        colour = np.random.default_rng(int(label)).integers(60, 255, 3)
        Image.fromarray((rng.random((32, 48, 3)) * colour).astype(np.uint8)).save(path)
    guesses = {}
    for key, share in zip(("zero_shot_name", "zero_shot_template", "learned"), accuracies, strict=True):
        wrong = (labels + rng.integers(1, n_classes, n)) % n_classes
        guesses[key] = np.where(rng.random(n) < share, labels, wrong)
    metrics: dict[str, object] = {key: summary(labels, guess, n_classes) for key, guess in guesses.items()}
    right = guesses["learned"] == labels
    for key in ("zero_shot_name", "zero_shot_template"):
        interval = paired_bootstrap(right[None], (guesses[key] == labels)[None])
        gain = metrics["learned"]["accuracy"] - metrics[key]["accuracy"]  # type: ignore[index]
        metrics["learned"][f"gain_over_{key}"] = {"gain": gain, "interval": list(interval)}  # type: ignore[index]
    metrics["class_names"] = list(class_names)
    metrics["predictions"] = [
        {"path": str(path), "label": int(label), "predicted": int(guess), "probability": float(p)}
        for path, label, guess, p in zip(paths, labels, guesses["learned"], rng.uniform(0.3, 1, n), strict=True)
    ]
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "run.json", run_facts(class_names, n))
    epochs = range(1, 51)
    write_log(
        folder / "log.jsonl",
        [{"epoch": e, "lr": 0.002, "loss": 3 / e**0.4, "accuracy": 1 - 0.8 / e**0.5, "seconds": 0.2} for e in epochs],
    )
    words = [(word, 0.31 + 0.07 * i) for i, word in enumerate(("left", "beside", "of", "small", "</w>"))]
    write_json(folder / "nearest_words.json", [{"vector": f"vector {m + 1}", "words": words} for m in range(4)])
    return folder


def run_facts(class_names: Sequence[str], n_test: int) -> dict[str, object]:
    return {
        "format": 1,
        "backbone": {"name": "tiny", "fingerprint": "ab" * 32, "transform": "resize 64"},
        "data": {
            "name": "openart-left",
            "fingerprint": "cd" * 32,
            "protocol": "coop",
            "shots": 16,
            "seed": 1,
            "template": "a {} on the left",
            "sizes": {"train": 16 * len(class_names), "val": 4 * len(class_names), "test": n_test},
            "notes": [],
        },
        "class_names": list(class_names),
        "method": {"name": "coop", "settings": {"n_ctx": 4, "ctx_init": None, "class_specific": False}},
        "recipe": {"optimizer": "sgd", "lr": 0.002, "epochs": 50, "batch_size": 32, "augment": "none"},
        "seed": 1,
        "device": "cpu",
        "dtype": "float32",
        "versions": {"mmprompt": "0.1.0", "torch": "2.14.1", "python": "3.11.7"},
    }


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A function that writes a run folder below the test's own."""
    return lambda *args, **kwargs: write_run(tmp_path / "run", *args, **kwargs)
