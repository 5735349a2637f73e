"""Measure the gate of the embedded default: every artwork task, five seeds, intervals over seeds and images.

Prints a table and writes every figure to a JSON file. Nothing is chosen by these numbers. Finished cells are kept in
`runs/cells`: run again, it goes on.

    python scripts/measure_openart.py --json docs/results/openart.json
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

import mmprompt as mp
from markdown import percent, table
from measuring import run_main, with_rows
from mmprompt.classification.task import BARE_NAME
from mmprompt.files import make_folder, write_json

RELATIONAL = ("openart-left", "openart-right", "openart-large", "openart-small")
TASKS = (*RELATIONAL, "openart-emotion", "openart-action", "openart-category")
SEEDS = (1, 2, 3, 4, 5)
WAYS = ("bare_name", "template", "coop")


def rows_of(task: str, methods: Mapping[str, Any], shots: tuple[int, ...], cells: Path) -> dict[str, Any]:
    """All figures of one task; a relation's are also taken on twenty concepts that pretraining never saw."""
    data = mp.load_dataset(task)
    comparison = mp.compare(methods, [task], shots, SEEDS, cells)
    lines = {(line.label, line.shots or None): line for line in comparison.lines}
    right = {key: line.correct for key, line in lines.items()}
    bare, template = right["bare_name", None], right["template", None]
    row: dict[str, Any] = {
        "task": task,
        "classes": len(data.class_names),
        "test_pictures": bare.shape[1],
        "chance": 1 / len(data.class_names),
        "bare_name": float(bare.mean()),
        "template": float(template.mean()),
        "template_words": data.template,
        "coop": {str(k): summary(right["coop", k], bare, template) for k in shots},
    }
    learned = lines["coop", shots[-1]]
    if task in RELATIONAL:
        found = novel_names(methods, learned, f"{task}-novel", cells)
    else:
        is_novel = np.array([item.novel for item in data.test])
        of_way = {"bare_name": bare, "template": template, "coop": learned.correct}
        found = {name: values[:, is_novel] for name, values in of_way.items()}
    means = {name: float(values.mean()) for name, values in found.items() if values.size}
    return row | ({"novel": means | {"test_pictures": found["coop"].shape[1]}} if means else {})


def novel_names(methods: Mapping[str, Any], learned: Any, target: str, cells: Path) -> dict[str, np.ndarray]:
    """How right the words, and the prompts of a line, are on twenty concepts that pretraining never saw."""
    words = mp.compare({name: methods[name] for name in WAYS[:2]}, [target], (None,), (1,), cells)
    found = {line.label: line.correct for line in words.lines}
    data = mp.load_dataset(target)
    prompts = [mp.load(cell.folder).with_class_names(data.class_names) for cell in learned.cells]
    return found | {"coop": np.stack([mp.evaluate(prompt, data.test).correct for prompt in prompts])}


def summary(runs: np.ndarray, bare: np.ndarray, template: np.ndarray) -> dict[str, Any]:
    """Mean over seeds, spread, and the paired gains with their intervals."""
    gain = {"gain": bare, "gain_over_template": template}
    found = {"accuracy": float(runs.mean()), "std": float(runs.mean(1).std(ddof=1))}
    for name, before in gain.items():
        found[name] = float(runs.mean() - before.mean())
        found[f"{name}_interval"] = mp.classification.paired_bootstrap(runs, np.broadcast_to(before, runs.shape))
    return found


def passes(row: dict[str, Any]) -> bool | None:
    """The gate as it was fixed: twice chance, a sure gain at 16 shots (10 points if relational), no loss at 4."""
    if not {"4", "16"} <= set(row["coop"]):
        return None
    least = 0.10 if row["task"] in RELATIONAL else 0.0
    at_16, at_4 = row["coop"]["16"], row["coop"]["4"]
    sure = at_16["gain_interval"][0] > 0 and at_16["gain"] >= least
    return row["bare_name"] >= 2 * row["chance"] and sure and at_4["gain"] >= 0


def page(rows: list[dict[str, Any]]) -> str:
    """The table of the documentation."""
    shots = list(rows[0]["coop"])
    columns = [f"CoOp, {k} shot{'s' if k != '1' else ''}" for k in shots]
    lines = []
    for row in rows:
        numbers = [percent(row[key]) for key in ("chance", "bare_name", "template")]
        cells = [f"{percent(row['coop'][k]['accuracy'])} {gain_of(row['coop'][k])}" for k in shots]
        verdict = {True: "pass", False: "fail", None: ""}[row["passes"]]
        lines.append([f"`{row['task']}`", *numbers, *cells, verdict])
        if "novel" in row:
            novel = [percent(row["novel"][key]) for key in WAYS]
            blank = [""] * (len(shots) - 1)
            lines.append([f"novel concepts ({row['novel']['test_pictures']})", "", *novel[:2], *blank, novel[2], ""])
    return table(["task", "chance", "bare name", "template", *columns, "gate"], lines)


def gain_of(value: dict[str, Any]) -> str:
    low, high = (100 * bound for bound in value["gain_interval"])
    return f"({100 * value['gain']:+.1f}; {low:+.1f} to {high:+.1f})"


def main(
    tasks: tuple[str, ...] = TASKS,
    shots: tuple[int, ...] = (1, 4, 16),
    n_ctx: int = 4,
    backbone: str = "tiny",
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    cells: Path = Path("runs/cells"),
) -> None:
    started = time.monotonic()
    zero_shot = mp.METHODS["zero-shot"]
    methods = {"bare_name": (zero_shot(BARE_NAME), backbone), "template": (zero_shot(), backbone)}
    rows = []
    for task in tasks:
        rows.append(rows_of(task, methods | {"coop": (mp.CoOp(n_ctx=n_ctx), backbone)}, shots, cells))
        rows[-1]["passes"] = passes(rows[-1])
        print(page(rows[-1:]), flush=True)
    if json_file:
        model = mp.load_backbone(backbone)
        facts = {"backbone": model.name, "fingerprint": model.fingerprint, "n_ctx": n_ctx, "seeds": list(SEEDS)}
        document = facts | {"seconds": round(time.monotonic() - started)}
        document |= with_rows(json_file, rows, ["task"], **facts)
        write_json(make_folder(json_file.parent) / json_file.name, document)
    print(f"\n{page(rows)}\n")
    print(json.dumps({"passed": [row["task"] for row in rows if row["passes"]]}))


if __name__ == "__main__":
    run_main(main, __doc__)
