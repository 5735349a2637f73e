"""The gate of the text-only path: a soft prompt beside hand-written instructions on a real language model.

    mmprompt backbones get smollm2
    python scripts/measure_language.py --json docs/results/language.json
    python scripts/measure_language.py --json docs/results/language.json --table

For every task and seed a prompt of 20 vectors is trained on 16 rows a class and tested on rows held out. Beside it
stand three hand-written instructions; the best of them on the test rows is what the prompt is held against. Finished
cells are kept in `runs/cells`: run again, it goes on.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

import mmprompt as mp
from markdown import gain, percent, table
from measuring import read_figures, run_main, write_figures
from mmprompt.language.methods import Instruction

DATA = Path("examples/data")
TASKS = ("emoji_kinds", "intent", "seasons", "languages", "questions", "sentiment")
SEEDS, SHOTS, N_SOFT, SOFT = (1, 2, 3), 16, 20, "soft prompt"
CHOSEN: dict[str, tuple[str, float]] = {
    "languages": ('{soft} "{text:cut}" is written in {answer}', 0.01),
    "sentiment": ("[[user]]{soft} {text:cut}\n[[assistant]]Sentiment: {answer}", 0.01),
}
"""Template and learning rate where others than the defaults did better on rows neither trained on nor tested."""
GAIN, MAX_SECONDS = 0.15, 300


def measure(name: str, model: str, cells: Path) -> dict[str, Any]:
    """The figures of one task, and whether it passes."""
    data = mp.load_texts(DATA / f"{name}.jsonl")
    template, lr = CHOSEN.get(name, (None, mp.PromptTuning.recipe.lr))
    methods: dict[str, Any] = {
        f"instruction {n + 1}": (Instruction(n + 1), model) for n in range(len(data.instructions))
    }
    methods[SOFT] = (mp.PromptTuning(N_SOFT), model)
    found = mp.compare(methods, [data.task(template=template)], (SHOTS,), SEEDS, cells, device="cpu", lr=lr)
    ((soft, more),) = [pair for pair in zip(found.lines, found.gains, strict=True) if pair[0].label == SOFT]
    best = found.find(more.over, data.name, data.name, SHOTS)
    cpu_seconds = max(cell.facts["cpu_seconds"] for cell in soft.cells)
    return {
        "n_test": soft.correct.shape[1],
        "n_seeds": len(soft.cells),
        "best_instruction": best.mean,
        "instruction": best.facts["template"],
        "soft_prompt": soft.mean,
        "gain": more.value,
        "interval": list(more.interval),
        "cpu_seconds": round(cpu_seconds, 1),
        "passes": more.value >= GAIN and more.interval[0] > 0 and cpu_seconds < MAX_SECONDS,
    }


def page(tasks: dict[str, Any]) -> str:
    """The gate as Markdown."""
    rows = []
    for name, found in tasks.items():
        figures = (percent(found["best_instruction"]), f"**{percent(found['soft_prompt'])}**")
        spent = (str(found["n_seeds"]), f"{found['cpu_seconds']:.0f}")
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
        print(page(read_figures(json_file)["tasks"]))
        return
    torch.set_num_threads(threads)
    found: dict[str, Any] = {"model": model, "shots": SHOTS, "n_soft": N_SOFT, "seeds": list(SEEDS), "tasks": {}}
    for name in TASKS:
        found["tasks"][name] = measure(name, model, cells)
        print(name, found["tasks"][name], flush=True)
        write_figures(json_file, found)
    print(page(found["tasks"]))
    passed = [name for name, task in found["tasks"].items() if task["passes"]]
    print(f"{len(passed)} of {len(TASKS)} tasks pass: {', '.join(passed)}")


if __name__ == "__main__":
    run_main(main, __doc__)
