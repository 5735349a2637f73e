"""What prompts cost and bring beside words, LoRA, adapters and full tuning, on a real language model.

    mmprompt backbones get smollm2
    python scripts/compare_language.py --json docs/results/language_comparison.json
    python scripts/compare_language.py --json docs/results/language_comparison.json --table

Every cell is a process of its own on one thread: 16 rows a class, tested on all rows held out. Trained numbers, bytes
of what is saved, CPU seconds of the training, and the most memory it took beyond the loaded model (on Linux). Finished
cells are kept in the file: run again, it goes on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

import mmprompt as mp
from markdown import table
from measuring import accuracy, read_figures, run_main, write_figures
from mmprompt.core.learned import Prompt
from mmprompt.core.soft import DecoderMethod
from mmprompt.experiments.memory import forget_peak, peak_bytes
from mmprompt.language.data import TextData, sample_shots
from mmprompt.language.methods import Adapter, DeepPrompts, FullTuning, LoRA, SearchedWords
from mmprompt.language.task import verbalizer_of
from mmprompt.models.decoder.model import FrozenLanguageModel

DATA, SHOTS = Path("examples/data"), 16
KEYS = ("model", "task", "row", "seed")
Fitted = tuple[mp.LanguagePredictor, int]
Fit = Callable[[TextData, FrozenLanguageModel, int, Path], Fitted]


def learned(method: DecoderMethod, data: TextData, model: FrozenLanguageModel, seed: int, out: Path) -> Fitted:
    prompted = mp.fit(method, model, data, seed=seed, progress=False).predictor
    mp.save(prompted, out)
    return prompted, sum(weight.numel() for weight in prompted.prompt.parameters())


def by_hand(data: TextData, model: FrozenLanguageModel, seed: int, out: Path) -> Fitted:
    """The best of the hand-written instructions on the training rows."""
    words = verbalizer_of(data)
    each = [mp.LanguagePredictor(model, Prompt(mp.Template.parse(text)), words) for text in data.instructions]
    best = max(each, key=lambda prompted: accuracy(prompted, data.train))
    mp.save(best, out)
    return best, 0


ROWS: dict[str, Fit] = {
    "hand-written instruction": by_hand,
    "hard prompt, searched": partial(learned, SearchedWords()),
    "prompt tuning": partial(learned, mp.PromptTuning()),
    "P-tuning (MLP)": partial(learned, mp.PTuning()),
    "prefix tuning (MLP)": partial(learned, mp.PrefixTuning()),
    "deep prompts (P-tuning v2)": partial(learned, DeepPrompts()),
    "LoRA": partial(learned, LoRA()),
    "prompt + LoRA": partial(learned, mp.PromptTuning() + LoRA()),
    "bottleneck adapters": partial(learned, Adapter()),
    "full fine-tuning": partial(learned, FullTuning()),
}


def run(row: str, seed: int, model_name: str, task: str) -> dict[str, Any]:
    """One cell."""
    torch.set_num_threads(1)
    model = mp.load_language_model(model_name, device="cpu")
    data = sample_shots(mp.load_texts(DATA / f"{task}.jsonl"), SHOTS, seed)
    forget_peak()
    before, started = peak_bytes(), time.process_time()
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "run"
        prompted, n_trained = ROWS[row](data, model, seed, out)
        seconds, peak = time.process_time() - started, peak_bytes() - before
        names = ("prompt.safetensors", "prompt.json")
        n_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.name in names)
    found = dict(zip(KEYS, (model_name, task, row, seed), strict=True))
    found |= {"accuracy": accuracy(prompted, data.test), "n_trained": n_trained}
    return found | {"bytes": n_bytes, "cpu_seconds": round(seconds, 1), "peak_mb": round(peak / 2**20)}


def page(cells: list[dict[str, Any]]) -> str:
    """The comparison as Markdown."""
    rows = []
    for row in [name for name in ROWS if any(cell["row"] == name for cell in cells)]:
        some = [cell for cell in cells if cell["row"] == row]
        found = 100 * np.array([cell["accuracy"] for cell in some])
        accuracy = f"{found.mean():.1f}" + (f" ± {found.std(ddof=1):.1f}" if len(found) > 1 else "")
        n_bytes, seconds, peak = (np.mean([cell[key] for cell in some]) for key in ("bytes", "cpu_seconds", "peak_mb"))
        costs = (f"{some[0]['n_trained']:,}", size(n_bytes), f"{seconds:.0f}", f"{peak:,.0f} MB")
        rows.append((row, accuracy, *costs))
    return table(("", "accuracy", "trained numbers", "file", "CPU seconds", "peak memory"), rows)


def size(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.1f} kB"


def main(
    model: str = "smollm2",
    task: str = "emoji_kinds",
    seeds: tuple[int, ...] = (1, 2, 3),
    rows: tuple[Literal[*ROWS], ...] = tuple(ROWS),  # type: ignore[valid-type]
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    table_only: Annotated[bool, tyro.conf.arg(name="table")] = False,
    one: tuple[str, int] | None = None,
) -> None:
    """Measure what the file has not, and print the table.

    Args:
        table_only: print the table of the file and measure nothing.
        one: row and seed of one cell, to be measured here.
    """
    if one is not None:
        print(json.dumps(run(*one, model, task)))
        return
    done: list[dict[str, Any]] = read_figures(json_file).get("cells", [])
    known = {tuple(cell[key] for key in KEYS) for cell in done}
    asked = [(seed, row) for seed in seeds for row in rows if (model, task, row, seed) not in known]
    for seed, row in asked if not table_only else ():
        call = [sys.executable, __file__, "--one", row, str(seed), "--model", model, "--task", task]
        cell = subprocess.run(call, capture_output=True, text=True, check=False)
        if cell.returncode:
            raise SystemExit(cell.stderr)
        done.append(json.loads(cell.stdout.splitlines()[-1]))
        print(done[-1], flush=True)
        if json_file:
            write_figures(json_file, {"shots": SHOTS, "cells": done})
    print(page([cell for cell in done if (cell["model"], cell["task"]) == (model, task)]))


if __name__ == "__main__":
    run_main(main, __doc__)
