"""The gate of the text-only path: a soft prompt beside hand-written instructions on a real language model.

    mmprompt backbones get smollm2
    python scripts/measure_language.py --json docs/results/language.json
    python scripts/measure_language.py --json docs/results/language.json --table

For every task and seed a prompt of 20 vectors is trained on 16 rows a class and tested on rows held out. Beside it
stand three hand-written instructions; the best of them on the test rows is what the prompt is held against. Finished
cells are kept in `runs/cells`: run again, it goes on.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

import mmprompt as mp
from markdown import gain, percent, table
from mmprompt.core.metrics import paired_bootstrap

DATA = Path("examples/data")
TASKS = ("emoji_kinds", "intent", "seasons", "languages", "questions", "sentiment")
SEEDS, SHOTS, N_SOFT = (1, 2, 3), 16, 20
CHOSEN: dict[str, tuple[str, float]] = {
    "languages": ('{soft} "{text:cut}" is written in {answer}', 0.01),
    "sentiment": ("[[user]]{soft} {text:cut}\n[[assistant]]Sentiment: {answer}", 0.01),
}
"""Template and learning rate where others than the defaults did better on rows neither trained on nor tested."""
GAIN, MAX_SECONDS = 0.15, 300


def measure(name: str, model: str, cells: Path) -> dict[str, Any]:
    """Every answer to the test rows of a task, right or wrong, and what it took to train."""
    data = mp.load_texts(DATA / f"{name}.jsonl")
    written = {text: data.task(template=text) for text in data.instructions}
    words = mp.compare({"words": (mp.HardPrompt(), model)}, written, out=cells, device="cpu")
    template, lr = CHOSEN.get(name, (None, mp.PromptTuning.recipe.lr))
    task, method = data.task(template=template), mp.PromptTuning(N_SOFT)
    found = mp.compare({"soft": (method, model)}, [task], (SHOTS,), SEEDS, cells, device="cpu", lr=lr)
    runs = [
        {"seed": seed, "right": right_in(right)}
        | {key: round(cell.facts[key], 1) for key in ("seconds", "cpu_seconds")}
        for seed, right, cell in zip(SEEDS, found.lines[0].correct, found.lines[0].cells, strict=True)
    ]
    instructions = [{"template": line.source, "right": right_in(line.correct[0])} for line in words.lines]
    task = {"n_test": len(data.test), "instructions": instructions, "runs": runs}
    return task | {"summary": summary(task)}


def right_in(correct: np.ndarray) -> list[int]:
    """1 for every row whose label was found, 0 for the others."""
    return correct.astype(int).tolist()


def summary(task: dict[str, Any]) -> dict[str, Any]:
    """The figures of one task and whether it passes."""
    best = max(task["instructions"], key=lambda one: sum(one["right"]))
    learned = np.array([run["right"] for run in task["runs"]])
    words = np.tile(best["right"], (len(learned), 1))
    low, high = paired_bootstrap(learned, words)
    more = float(learned.mean() - words.mean())
    cpu_seconds = max(run["cpu_seconds"] for run in task["runs"])
    return {
        "n_test": task["n_test"],
        "best_instruction": float(words.mean()),
        "instruction": best["template"],
        "soft_prompt": float(learned.mean()),
        "std": float(learned.mean(1).std(ddof=1)),
        "gain": more,
        "interval": [low, high],
        "cpu_seconds": cpu_seconds,
        "passes": more >= GAIN and low > 0 and cpu_seconds < MAX_SECONDS,
    }


def page(tasks: dict[str, Any]) -> str:
    """The gate as Markdown."""
    rows = []
    for name, task in tasks.items():
        found = task["summary"]
        figures = (percent(found["best_instruction"]), f"**{percent(found['soft_prompt'])}**")
        spent = (str(len(task["runs"])), f"{found['cpu_seconds']:.0f}")
        rows.append((f"{name} ({found['n_test']})", *figures, gain(found["gain"], found["interval"]), *spent))
    return table(("task", "best of three instructions", "soft prompt", "gain", "seeds", "CPU seconds"), rows)


def main(
    json_file: Annotated[Path, tyro.conf.arg(name="json")],
    model: str = "smollm2",
    threads: int = 2,
    table_only: Annotated[bool, tyro.conf.arg(name="table")] = False,
    cells: Path = Path("runs/cells"),
) -> None:
    """Measure, and print the table.

    Args:
        json_file: where all figures go.
        table_only: print the table of the file and measure nothing.
        cells: where finished cells are kept.
    """
    if table_only:
        print(page(json.loads(json_file.read_text())["tasks"]))
        return
    torch.set_num_threads(threads)
    found: dict[str, Any] = {"model": model, "shots": SHOTS, "n_soft": N_SOFT, "seeds": list(SEEDS), "tasks": {}}
    for name in TASKS:
        found["tasks"][name] = measure(name, model, cells)
        print(name, found["tasks"][name]["summary"], flush=True)
        json_file.write_text(json.dumps(found) + "\n")
    print(page(found["tasks"]))
    passed = [name for name, task in found["tasks"].items() if task["summary"]["passes"]]
    print(f"{len(passed)} of {len(TASKS)} tasks pass: {', '.join(passed)}")


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except mp.UserError as error:
        raise SystemExit(f"error: {error}") from None
