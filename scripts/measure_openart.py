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
from mmprompt.classification.task import BARE_NAME
from mmprompt.files import write_json
from mmprompt.models.image_features import ImageFeatures

TASKS = [f"openart-{task}" for task in ("left", "right", "large", "small", "emotion", "action", "category")]
RELATIONAL = {"openart-left", "openart-right", "openart-large", "openart-small"}
SEEDS = (1, 2, 3, 4, 5)


def right_or_wrong(classifier: mp.Classifier, data: mp.classification.Dataset, features: ImageFeatures) -> np.ndarray:
    """[N] booleans on the test split."""
    return mp.evaluate(classifier, data.test, features).correct


def rows_of(task: str, features: ImageFeatures, n_ctx: int, shots: list[int]) -> dict[str, Any]:
    """All figures of one task."""
    data, backbone = mp.load_dataset(task), features.backbone
    written = [mp.zero_shot(backbone, data.class_names, words) for words in (BARE_NAME, data.template)]
    bare, template = (right_or_wrong(classifier, data, features) for classifier in written)
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
        sets = [mp.load_dataset(task, shots=k, seed=seed) for seed in SEEDS]
        learned = [
            mp.fit(mp.CoOp(n_ctx=n_ctx), backbone, drawn, seed=seed).classifier
            for seed, drawn in zip(SEEDS, sets, strict=True)
        ]
        runs = np.stack([right_or_wrong(classifier, data, features) for classifier in learned])
        row["coop"][str(k)] = summary(runs, bare, template)
    novel = np.array([item.novel for item in data.test])
    if novel.any():
        means = [float(part[..., novel].mean()) for part in (bare, template, runs)]
        row["novel"] = dict(zip(("bare_name", "template", "coop"), means, strict=True), test_pictures=int(novel.sum()))
    elif task in RELATIONAL:
        row["novel"] = novel_names(task, features, learned)
    return row


def novel_names(task: str, features: ImageFeatures, learned: list[mp.Classifier]) -> dict[str, Any]:
    """A relation's twenty concepts that pretraining never saw: the prompts of the seen classes on their names."""
    data = mp.load_dataset(f"{task}-novel")
    written = [mp.zero_shot(features.backbone, data.class_names, words) for words in (BARE_NAME, data.template)]
    bare, template = (right_or_wrong(classifier, data, features).mean() for classifier in written)
    renamed = [right_or_wrong(one.with_class_names(data.class_names), data, features).mean() for one in learned]
    return {
        "test_pictures": len(data.test),
        "bare_name": float(bare),
        "template": float(template),
        "coop": float(np.mean(renamed)),
    }


def summary(runs: np.ndarray, bare: np.ndarray, template: np.ndarray) -> dict[str, Any]:
    """Mean over seeds, spread, and the paired gains with their intervals."""
    gain = float(runs.mean() - bare.mean())
    return {
        "accuracy": float(runs.mean()),
        "std": float(runs.mean(1).std(ddof=1)),
        "gain": gain,
        "gain_interval": mp.classification.paired_bootstrap(runs, np.repeat(bare[None], len(runs), 0)),
        "gain_over_template": float(runs.mean() - template.mean()),
        "gain_over_template_interval": mp.classification.paired_bootstrap(
            runs, np.repeat(template[None], len(runs), 0)
        ),
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


def cell(value: dict[str, Any]) -> str:
    """Accuracy and gain with its interval, as the documentation shows them."""
    low, high = (100 * v for v in value["gain_interval"])
    return f"{100 * value['accuracy']:.1f} ({100 * value['gain']:+.1f}; {low:+.1f} to {high:+.1f})"


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of the documentation."""
    shots = list(rows[0]["coop"])
    head = [
        "task",
        "chance",
        "bare name",
        "template",
        *(f"CoOp, {k} shot{'s' if k != '1' else ''}" for k in shots),
        "gate",
    ]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        numbers = [f"{100 * row[key]:.1f}" for key in ("chance", "bare_name", "template")]
        verdict = {True: "pass", False: "fail", None: ""}[row["passes"]]
        lines.append([f"`{row['task']}`", *numbers, *(cell(row["coop"][k]) for k in shots), verdict])
        if "novel" in row:
            novel = [f"{100 * row['novel'][key]:.1f}" for key in ("bare_name", "template", "coop")]
            blank = [""] * (len(shots) - 1)
            lines.append([f"novel concepts ({row['novel']['test_pictures']})", "", *novel[:2], *blank, novel[2], ""])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
    print(f"\n{markdown(rows)}\n")
    print(json.dumps({"passed": [row["task"] for row in rows if row["passes"]]}))


if __name__ == "__main__":
    main()
