"""What a prompt gives away: whether an image was among those that it was learned from.

The attack of Yeom et al. (2018, "Privacy Risk in Machine Learning", section 3): the image with the lower loss is taken
for one that was learned from. AUC over the training images and as many test images of each class; 50 % is a guess.

    python scripts/measure_membership.py --json docs/results/membership.json
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from sklearn.metrics import roc_auc_score

import mmprompt as mp
from markdown import table
from measuring import run_main, with_rows, write_figures
from mmprompt.classification.methods import make_method
from mmprompt.data.splits import Dataset, Item

PRIVATE = {"n_ctx": 4}
METHODS = {
    "zero-shot": {},
    "coop": {"n_ctx": 4},
    "coop, one context a class": {"n_ctx": 4, "class_specific": True},
    "linear-probe": {},
    "text-probe": {},
    "tip-adapter": {},
    "clip-lora": {"rank": 2},
    "coop+dp-sgd, epsilon 1e9": PRIVATE | {"epsilon": 1e9},
    "coop+dp-sgd, epsilon 8": PRIVATE | {"epsilon": 8.0},
    "coop+dp-sgd, epsilon 1": PRIVATE | {"epsilon": 1.0},
}
WHOLE = {"batch_size": 10_000, "epochs": 15, "warmup_epochs": 0, "lr": 0.1}
"""Of dp-sgd: all images in every step, and the better of the rates 0.1 and 0.3 on validation images (seed 11)."""

KEYS = ("data", "backbone", "method", "shots")


@dataclass(frozen=True)
class Settings:
    """What is attacked."""

    json: Path | None = None
    data: str = "openart-large"
    backbone: str = "tiny"
    root: Path | None = None
    shots: tuple[int, ...] = (1, 4, 16)
    seeds: tuple[int, ...] = (1, 2, 3)
    methods: tuple[str, ...] = tuple(METHODS)
    """Rows of others that the JSON file already has stay in it; clip-lora takes a minute to an hour a run."""


def losses(classifier: mp.Classifier, items: Sequence[Item]) -> np.ndarray:
    """The cross entropy of each image."""
    table_of = classifier.predict_proba([item.path for item in items])
    return -np.log(np.maximum(table_of[np.arange(len(items)), [item.label for item in items]], 1e-12))


def strangers(data: Dataset) -> list[Item]:
    """As many test images of each class as there are training images, the first of each."""
    left = np.bincount([item.label for item in data.train], minlength=len(data.class_names))
    chosen = []
    for item in data.test:
        if left[item.label]:
            chosen.append(item)
            left[item.label] -= 1
    return chosen


def attack(name: str, backbone: object, data: Dataset, seed: int) -> dict[str, float]:
    """Learn, and tell the images apart by their loss."""
    method = make_method(name.split(",")[0], METHODS[name])
    recipe = WHOLE if "dp-sgd" in name else {}
    classifier = mp.fit(method, backbone, data, seed=seed, progress=False, **recipe).predictor
    others = strangers(data)
    found = [losses(classifier, items) for items in (data.train, others)]
    is_member = [1] * len(found[0]) + [0] * len(found[1])
    auc = float(roc_auc_score(is_member, -np.concatenate(found)))
    return {"auc": auc, "accuracy": mp.evaluate(classifier, data).accuracy}


def main(settings: Annotated[Settings, tyro.conf.arg(name="")]) -> None:
    backbone = mp.load_backbone(settings.backbone)
    found = {}
    for name in settings.methods:
        for shots in settings.shots:
            sets = [mp.load_dataset(settings.data, settings.root, shots=shots, seed=seed) for seed in settings.seeds]
            each = [attack(name, backbone, data, seed) for data, seed in zip(sets, settings.seeds, strict=True)]
            means = {key: float(np.mean([one[key] for one in each])) for key in ("auc", "accuracy")}
            spread = float(np.std([one["auc"] for one in each]))
            row = dict(zip(KEYS, (settings.data, settings.backbone, name, shots), strict=True))
            found[name, shots] = row | means | {"std": spread, "seeds": list(settings.seeds)}
            print(found[name, shots], flush=True)
            if settings.json is not None:
                write_figures(settings.json, with_rows(settings.json, [found[name, shots]], KEYS))
    header = ["AUC, accuracy in %", *(f"{shots} shots" for shots in settings.shots)]
    print(table(header, [[name, *(shown(found[name, n]) for n in settings.shots)] for name in settings.methods]))


def shown(row: dict[str, Any]) -> str:
    """Write the AUC and its spread, and the accuracy."""
    return f"{100 * row['auc']:.1f} ± {100 * row['std']:.1f}, {100 * row['accuracy']:.1f}"


if __name__ == "__main__":
    run_main(main, __doc__)
