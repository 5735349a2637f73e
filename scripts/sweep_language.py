"""Learning rates and starts of the text-only path, on models of three scales.

    python scripts/sweep_language.py --models smollm2 tiny hf:PATH --tasks emoji_kinds --json FILE
    python scripts/sweep_language.py --models tiny --tasks somebody --json FILE

Every cell trains one method at one learning rate from one start, with 16 rows a class, and is judged on rows that are
neither trained on nor part of the test rows. Finished cells are kept in `runs/cells`: run again, it goes on.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

import torch
import tyro

import mmprompt as mp
from markdown import percent, table
from measuring import read_figures, run_main, short_name, write_figures
from mmprompt.language.data import TextData, load_texts, sample_shots
from mmprompt.language.methods import METHODS, PromptInit, PromptTuning

DATA = Path("examples/data")
RATES = {
    "prompt-tuning": (0.003, 0.01, 0.03, 0.1, 0.3),
    "p-tuning": (3e-4, 1e-3, 3e-3, 1e-2),
    "prefix-tuning": (1e-4, 3e-4, 1e-3, 3e-3),
    "deep-prompts": (0.003, 0.01, 0.03, 0.1),
}
STARTS = ("labels", "texts", "vocabulary", "random")
SHOTS, N_JUDGED = 16, 120
KEYS = ("model", "task", "method", "lr", "start", "seed")
Name = Literal["prompt-tuning", "p-tuning", "prefix-tuning", "deep-prompts"]


def held_out(task: str, seed: int) -> TextData:
    """The few-shot rows, with rows as test rows that are neither among them nor test rows of the data."""
    path = DATA / f"{task}.jsonl"
    data = load_texts(path if path.exists() else task)
    drawn = sample_shots(data, SHOTS, seed)
    taken = {tuple(sorted(row.fields.items())) for row in drawn.train}
    rest = [row for row in (*data.val, *data.train) if tuple(sorted(row.fields.items())) not in taken]
    return replace(drawn, val=(), test=tuple(rest[:N_JUDGED]))


def run(model: str, data: TextData, method: str, lr: float, start: str, seed: int, cells: Path) -> dict[str, Any]:
    """One training and its accuracy; 0 where the loss stopped being finite."""
    task = data.task(init=PromptInit(start))
    methods = {method: (METHODS[method](), model)}
    found = mp.compare(methods, [task], seeds=(seed,), out=cells, device="cpu", progress=False, lr=lr)
    if not found.lines:
        return {"accuracy": 0.0, "failed": next(iter(found.failures.values()))}
    (line,) = found.lines
    records = (line.cells[0].folder / "log.jsonl").read_text().splitlines()
    loss, cpu_seconds = json.loads(records[-1])["loss"], round(line.facts["cpu_seconds"], 1)
    return {"accuracy": line.mean, "n": line.correct.shape[1], "loss": loss, "cpu_seconds": cpu_seconds}


def page(rows: list[dict[str, Any]]) -> str:
    """Accuracy and training loss by learning rate and by start, as Markdown; the default rates are bold."""
    parts = []
    for method, rates in RATES.items():
        default = METHODS[method].recipe.lr
        head = [f"**{lr:g}**" if lr == default else f"{lr:g}" for lr in rates]
        some = [row for row in rows if (row["method"], row["start"]) == (method, "labels")]
        parts.append(table([f"{method}: lr", *head], lines_of("lr", rates, some)))
    some = [row for row in rows if row["method"] == "prompt-tuning" and row["lr"] == PromptTuning.recipe.lr]
    parts.append(table(["prompt-tuning: start", *STARTS], lines_of("start", STARTS, some)))
    return "\n\n".join(parts)


def lines_of(key: str, values: Sequence[Any], rows: list[dict[str, Any]]) -> Iterator[list[str]]:
    """A line for each model and task, with a cell for each value of a key."""
    for model, task in dict.fromkeys((row["model"], row["task"]) for row in rows):
        some = [row for row in rows if (row["model"], row["task"]) == (model, task)]
        yield [f"{model}, {task}", *(cell_of([row for row in some if row[key] == value]) for value in values)]


def cell_of(rows: list[dict[str, Any]]) -> str:
    """Accuracy in % and training loss, means over seeds."""
    if not rows:
        return ""
    accuracy, loss = (fmean(row.get(key, float("nan")) for row in rows) for key in ("accuracy", "loss"))
    return f"{percent(accuracy)} ({loss:.2f})"


def main(
    json_file: Annotated[Path, tyro.conf.arg(name="json")],
    models: tuple[str, ...] = ("smollm2", "tiny"),
    tasks: tuple[str, ...] = ("emoji_kinds", "sentiment"),
    methods: tuple[Name, ...] = tuple(RATES),  # type: ignore[assignment]
    seeds: tuple[int, ...] = (1,),
    table_only: Annotated[bool, tyro.conf.arg(name="table")] = False,
    cells: Path = Path("runs/cells"),
) -> None:
    """Try all learning rates from the default start, and all starts at the default learning rate.

    Args:
        json_file: where all figures go; those it has of other cells stay.
        table_only: print the table of the file and measure nothing.
        cells: where finished cells are kept.
    """
    rows: list[dict[str, Any]] = read_figures(json_file).get("rows", [])
    if table_only:
        print(page(rows))
        return
    torch.set_num_threads(1)
    known = {tuple(row[key] for key in KEYS) for row in rows}
    for model, task, seed, method in itertools.product(models, tasks, seeds, methods):
        default = METHODS[method].recipe.lr
        tried = [(lr, "labels") for lr in RATES[method]]
        tried += [(default, start) for start in STARTS if method == "prompt-tuning" and start != "labels"]
        for lr, start in tried:
            name = (short_name(model), task, method, lr, start, seed)
            if name in known:
                continue
            found = run(model, held_out(task, seed), method, lr, start, seed, cells)
            rows.append(dict(zip(KEYS, name, strict=True)) | found)
            print(rows[-1], flush=True)
            write_figures(json_file, {"shots": SHOTS, "rows": rows})


if __name__ == "__main__":
    run_main(main, __doc__)
