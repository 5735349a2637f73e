"""Learning rates and starts of the text-only path, on models of three scales.

    python scripts/sweep_language.py --models smollm2 tiny hf:PATH --tasks emoji_kinds --json FILE
    python scripts/sweep_language.py --models tiny --tasks somebody --json FILE

Every cell trains one method at one learning rate from one start, with 16 rows a class, and is judged on rows that are
neither trained on nor part of the test rows. Finished cells are kept in the file: run again, it goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmprompt.core.fit import fit
from mmprompt.errors import UserError
from mmprompt.language.data import TextData, load_texts, sample_shots
from mmprompt.language.methods import METHODS, PromptInit, PromptTuning
from mmprompt.models.decoder.load import load_language_model
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.training.problem import RunFailed

DATA = Path("examples/data")
RATES = {
    "prompt-tuning": (0.003, 0.01, 0.03, 0.1, 0.3),
    "p-tuning": (3e-4, 1e-3, 3e-3, 1e-2),
    "prefix-tuning": (1e-4, 3e-4, 1e-3, 3e-3),
    "deep-prompts": (0.003, 0.01, 0.03, 0.1),
}
STARTS = ("labels", "texts", "vocabulary", "random")
SHOTS, N_JUDGED = 16, 120


def held_out(data: TextData, drawn: TextData) -> TextData:
    """The few-shot rows, with rows as test rows that are neither among them nor test rows of the data."""
    taken = {tuple(sorted(row.fields.items())) for row in drawn.train}
    rest = [row for row in (*data.val, *data.train) if tuple(sorted(row.fields.items())) not in taken]
    return replace(drawn, val=(), test=tuple(rest[:N_JUDGED]))


def run(model: FrozenLanguageModel, data: TextData, method: str, lr: float, start: str, seed: int) -> dict[str, Any]:
    """One training and its accuracy; 0 where the loss stopped being finite."""
    kind = METHODS[method]
    started = time.process_time()
    try:
        result = fit(kind(), model, data.task(init=PromptInit(start)), seed=seed, lr=lr, progress=False)
    except RunFailed as error:
        return {"accuracy": 0.0, "failed": str(error), "cpu_seconds": round(time.process_time() - started, 1)}
    seconds = round(time.process_time() - started, 1)
    found = result.predictor.classify(data.test)
    right = [one.label == row.label for one, row in zip(found, data.test, strict=True)]
    loss = result.history[-1]["loss"]
    return {"accuracy": sum(right) / len(right), "n": len(right), "loss": loss, "cpu_seconds": seconds}


def cells(models: list[str], tasks: list[str], methods: list[str], seeds: list[int]) -> list[dict[str, Any]]:
    """What is tried: all learning rates from the default start, and all starts at the default learning rate."""
    found = []
    for model, task, seed, method in itertools.product(models, tasks, seeds, methods):
        default = METHODS[method].recipe.lr
        pairs = [(lr, "labels") for lr in RATES[method]]
        pairs += [(default, start) for start in STARTS if method == "prompt-tuning" and (default, start) not in pairs]
        found += [
            {"model": model, "task": task, "method": method, "lr": lr, "start": start, "seed": seed}
            for lr, start in pairs
        ]
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Accuracy and training loss by learning rate and by start, as Markdown; the default rates are bold."""
    parts = []
    for method, rates in RATES.items():
        default = METHODS[method].recipe.lr
        head = [f"**{lr:g}**" if lr == default else f"{lr:g}" for lr in rates]
        parts.append("\n".join([f"| {method}: lr | {' | '.join(head)} |", "|---" * (len(rates) + 1) + "|"]))
        for model, task in dict.fromkeys((row["model"], row["task"]) for row in rows):
            found = {
                row["lr"]: row
                for row in rows
                if (row["model"], row["task"], row["method"], row["start"]) == (model, task, method, "labels")
            }
            if found:
                cells = [cell_of(found.get(lr)) for lr in rates]
                parts[-1] += f"\n| {model}, {task} | {' | '.join(cells)} |"
    starts = [row for row in rows if row["method"] == "prompt-tuning" and row["lr"] == PromptTuning.recipe.lr]
    parts.append("\n".join([f"| prompt-tuning: start | {' | '.join(STARTS)} |", "|---" * (len(STARTS) + 1) + "|"]))
    for model, task in dict.fromkeys((row["model"], row["task"]) for row in starts):
        found = {row["start"]: row for row in starts if (row["model"], row["task"]) == (model, task)}
        cells = [cell_of(found.get(start)) for start in STARTS]
        parts[-1] += f"\n| {model}, {task} | {' | '.join(cells)} |"
    return "\n\n".join(parts)


def cell_of(row: dict[str, Any] | None) -> str:
    """Accuracy in % and training loss."""
    return "" if row is None else f"{100 * row['accuracy']:.1f} ({row.get('loss', float('nan')):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2", "tiny"])
    parser.add_argument("--tasks", nargs="+", default=["emoji_kinds", "sentiment"])
    parser.add_argument("--methods", nargs="+", default=list(RATES), choices=list(RATES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="print the tables of the file and measure nothing")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.json.read_text())["rows"]))
        return
    torch.set_num_threads(1)
    done: list[dict[str, Any]] = json.loads(args.json.read_text())["rows"] if args.json.exists() else []
    known = {json.dumps({key: row[key] for key in ("model", "task", "method", "lr", "start", "seed")}) for row in done}
    models: dict[str, FrozenLanguageModel] = {}
    for cell in cells(args.models, args.tasks, args.methods, args.seeds):
        if json.dumps(named(cell)) in known:
            continue
        if cell["model"] not in models:
            models = {cell["model"]: load_language_model(cell["model"], device="cpu")}
        path = DATA / f"{cell['task']}.jsonl"
        data = load_texts(path if path.exists() else cell["task"])
        data = held_out(data, sample_shots(data, SHOTS, cell["seed"]))
        row = named(cell) | run(models[cell["model"]], data, cell["method"], cell["lr"], cell["start"], cell["seed"])
        print(row, flush=True)
        done.append(row)
        args.json.write_text(json.dumps({"shots": SHOTS, "rows": done}, indent=1) + "\n")


def named(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell with its model named as anybody would: without the folders before it."""
    return cell | {"model": cell["model"].removeprefix("hf:").rstrip("/").rsplit("/", 1)[-1]}


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
