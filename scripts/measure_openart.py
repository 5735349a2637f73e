"""Measure the gate of the embedded default: every artwork task, five seeds, intervals over seeds and pictures.

Prints a table and writes every figure to a JSON file. Nothing is chosen by these numbers.

    python scripts/measure_openart.py --json docs/results/openart.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import mmprompt as mp
from mmprompt.files import write_json
from mmprompt.predictors.features import ImageFeatures
from mmprompt.tasks.classification import BARE_NAME

TASKS = [f"openart-{task}" for task in ("left", "right", "large", "small", "emotion", "action", "category")]
RELATIONAL = {"openart-left", "openart-right", "openart-large", "openart-small"}
SEEDS = (1, 2, 3, 4, 5)


def correct_and_novel(
    task: str, features: ImageFeatures, method: mp.Method | None, shots: int, seed: int, template: str
):
    """[N] right or wrong on the test split, learned or zero-shot, and [N] whether the concept is novel."""
    data = mp.load_dataset(task, shots=shots, seed=seed)
    if method is None:
        classifier = mp.zero_shot(features.backbone, data.class_names, template)
    else:
        classifier = mp.fit(method, features.backbone, data, seed=seed).classifier
    return mp.evaluate(classifier, data.test, features).correct, np.array([item.novel for item in data.test])


def rows_of(task: str, features: ImageFeatures, n_ctx: int, shots: list[int]) -> dict[str, Any]:
    """All figures of one task."""
    data = mp.load_dataset(task)
    bare, novel = correct_and_novel(task, features, None, 16, 1, BARE_NAME)
    template, _ = correct_and_novel(task, features, None, 16, 1, data.template)
    row: dict[str, Any] = {
        "task": task,
        "classes": len(data.class_names),
        "test_pictures": len(bare),
        "chance": 1 / len(data.class_names),
        "bare_name": float(bare.mean()),
        "template": float(template.mean()),
        "template_words": data.template,
        "coop": {},
    }
    for k in shots:
        runs = [correct_and_novel(task, features, mp.CoOp(n_ctx=n_ctx), k, seed, "")[0] for seed in SEEDS]
        row["coop"][str(k)] = summary(np.stack(runs), bare, template)
    if novel.any() and not novel.all():
        row["novel"] = {
            "test_pictures": int(novel.sum()),
            "bare_name": float(bare[novel].mean()),
            "template": float(template[novel].mean()),
            "coop": float(np.stack(runs)[:, novel].mean()),
        }
    return row


def summary(runs: np.ndarray, bare: np.ndarray, template: np.ndarray) -> dict[str, Any]:
    """Mean over seeds, spread, and the paired gains with their intervals."""
    gain = float(runs.mean() - bare.mean())
    return {
        "accuracy": float(runs.mean()),
        "std": float(runs.mean(1).std(ddof=1)),
        "gain": gain,
        "gain_interval": mp.paired_bootstrap(runs, np.repeat(bare[None], len(runs), 0)),
        "gain_over_template": float(runs.mean() - template.mean()),
        "gain_over_template_interval": mp.paired_bootstrap(runs, np.repeat(template[None], len(runs), 0)),
    }


def passes(row: dict[str, Any]) -> bool:
    """The gate as it was fixed: twice chance, a sure gain at 16 shots (10 points if relational), no loss at 4."""
    least = 0.10 if row["task"] in RELATIONAL else 0.0
    at_16, at_4 = row["coop"]["16"], row["coop"]["4"]
    sure = at_16["gain_interval"][0] > 0 and at_16["gain"] >= least
    return row["bare_name"] >= 2 * row["chance"] and sure and at_4["gain"] >= 0


def print_row(row: dict[str, Any]) -> None:
    cells = [f"{row['task']:<17}", f"{row['classes']:>3}", f"{row['test_pictures']:>5}"]
    cells += [f"{100 * row[key]:5.1f}" for key in ("chance", "bare_name", "template")]
    for k, value in row["coop"].items():
        low, high = (100 * v for v in value["gain_interval"])
        cells.append(f"{k}: {100 * value['accuracy']:.1f} ({100 * value['gain']:+.1f} [{low:+.1f}, {high:+.1f}])")
    print(" | ".join(cells), "| pass" if row["passes"] else "| fail", flush=True)
    if "novel" in row:
        novel = row["novel"]
        print(
            f"  novel concepts ({novel['test_pictures']}): bare {100 * novel['bare_name']:.1f}, template "
            f"{100 * novel['template']:.1f}, CoOp {100 * novel['coop']:.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--n-ctx", type=int, default=4)
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    started = time.monotonic()
    features = ImageFeatures(mp.load_backbone(arguments.backbone))
    rows = []
    for task in arguments.tasks:
        row = rows_of(task, features, arguments.n_ctx, arguments.shots)
        row["passes"] = passes(row) if {"4", "16"} <= set(row["coop"]) else None
        rows.append(row)
        print_row(row)
    document = {
        "backbone": features.backbone.name,
        "fingerprint": features.backbone.fingerprint,
        "n_ctx": arguments.n_ctx,
        "seeds": list(SEEDS),
        "seconds": round(time.monotonic() - started),
        "rows": rows,
    }
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.json, document)
    print(json.dumps({"passed": [row["task"] for row in rows if row["passes"]]}))


if __name__ == "__main__":
    main()
