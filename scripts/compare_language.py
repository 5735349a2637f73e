"""What prompts cost and bring beside words, LoRA, adapters and full tuning, on a real language model.

    mmprompt backbones get smollm2
    python scripts/compare_language.py --json docs/results/language_comparison.json
    python scripts/compare_language.py --json docs/results/language_comparison.json --table

Every cell is a process of its own on one thread: 16 rows a class, tested on all rows held out. Trained numbers, bytes
of what is saved, CPU seconds of the training, and the most memory it took beyond the loaded model (on Linux). Finished
cells are kept in the file: run again, it goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmprompt.core import fit as core
from mmprompt.core.file import save
from mmprompt.core.learned import Prompt
from mmprompt.core.soft import DecoderMethod
from mmprompt.errors import UserError
from mmprompt.language.data import TextData, load_texts, sample_shots
from mmprompt.language.methods import DeepPrompts, PrefixTuning, PromptTuning, PTuning
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.search.task import search_words
from mmprompt.language.task import verbalizer_of
from mmprompt.language.templates.template import Template
from mmprompt.language.weights import fit_weights
from mmprompt.models.decoder.load import load_language_model
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.decoder.tuned import Adapters, FullTuning, Lora, Tuning

DATA, SHOTS = Path("examples/data"), 16
Fitted = tuple[LanguagePredictor, int]
Fit = Callable[[TextData, FrozenLanguageModel, int, Path], Fitted]


def by_prompt(method: DecoderMethod) -> Fit:
    def fit(data: TextData, model: FrozenLanguageModel, seed: int, out: Path) -> Fitted:
        prompted = core.fit(method, model, data, seed=seed, progress=False).predictor
        save(prompted, out)
        return prompted, sum(weight.numel() for weight in prompted.prompt.parameters())

    return fit


def by_weights(tuning: Tuning, method: PromptTuning | None = None) -> Fit:
    def fit(data: TextData, model: FrozenLanguageModel, seed: int, out: Path) -> Fitted:
        result = fit_weights(data, tuning, model, method, out=out, seed=seed)
        return result.prompted, result.n_trained

    return fit


def by_search(data: TextData, model: FrozenLanguageModel, seed: int, out: Path) -> Fitted:
    return search_words(data, model, out=out, seed=seed).prompted, 0


def by_hand(data: TextData, model: FrozenLanguageModel, seed: int, out: Path) -> Fitted:
    """The best of the hand-written instructions on the training rows."""
    words = verbalizer_of(data)
    each = [LanguagePredictor(model, Prompt(Template.parse(text)), words) for text in data.instructions]
    best = max(each, key=lambda prompted: accuracy(prompted, data.train))
    save(best, out)
    return best, 0


ROWS: dict[str, Fit] = {
    "hand-written instruction": by_hand,
    "hard prompt, searched": by_search,
    "prompt tuning": by_prompt(PromptTuning()),
    "P-tuning (MLP)": by_prompt(PTuning()),
    "prefix tuning (MLP)": by_prompt(PrefixTuning()),
    "deep prompts (P-tuning v2)": by_prompt(DeepPrompts()),
    "LoRA": by_weights(Lora()),
    "prompt + LoRA": by_weights(Lora(), PromptTuning()),
    "bottleneck adapters": by_weights(Adapters()),
    "full fine-tuning": by_weights(FullTuning()),
}


def accuracy(prompted: LanguagePredictor, rows: Any) -> float:
    found = prompted.classify(rows)
    return sum(one.label == row.label for one, row in zip(found, rows, strict=True)) / len(rows)


def run(row: str, seed: int, model_name: str, task: str) -> dict[str, Any]:
    """One cell."""
    torch.set_num_threads(1)
    model = load_language_model(model_name, device="cpu")
    data = sample_shots(load_texts(DATA / f"{task}.jsonl"), SHOTS, seed)
    forget_peak()
    before = memory("VmHWM")
    started = time.process_time()
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "run"
        prompted, n_trained = ROWS[row](data, model, seed, out)
        seconds = time.process_time() - started
        peak = memory("VmHWM") - before
        names = ("prompt.safetensors", "prompt.json", "weights.safetensors", "adapter_model.safetensors")
        n_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.name in names)
    found = {"row": row, "seed": seed, "accuracy": accuracy(prompted, data.test), "n_trained": n_trained}
    return found | {"bytes": n_bytes, "cpu_seconds": round(seconds, 1), "peak_mb": round(peak / 1024)}


def forget_peak() -> None:
    """Forget the most memory so far; Linux alone can."""
    place = Path("/proc/self/clear_refs")
    if place.exists():
        place.write_text("5")


def memory(name: str) -> int:
    """Kilobytes of this process, 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def in_a_process(row: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """`run` in a fresh process."""
    call = [sys.executable, __file__, "--one", row, str(seed), "--model", args.model, "--task", args.task]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def table(cells: list[dict[str, Any]]) -> str:
    """The comparison as Markdown."""
    lines = [
        "| | accuracy | trained numbers | file | CPU seconds | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        some = [cell for cell in cells if cell["row"] == row]
        if not some:
            continue
        found = 100 * np.array([cell["accuracy"] for cell in some])
        spread = f" ± {found.std(ddof=1):.1f}" if len(found) > 1 else ""
        mean = {key: float(np.mean([cell[key] for cell in some])) for key in ("bytes", "cpu_seconds", "peak_mb")}
        lines.append(
            f"| {row} | {found.mean():.1f}{spread} | {some[0]['n_trained']:,} | {size(mean['bytes'])} | "
            f"{mean['cpu_seconds']:.0f} | {mean['peak_mb']:,.0f} MB |"
        )
    return "\n".join(lines)


def size(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.1f} kB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="emoji_kinds")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", action="store_true", help="print the table of the file and measure nothing")
    parser.add_argument("--one", nargs=2, metavar=("ROW", "SEED"), help="measure one cell here")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run(args.one[0], int(args.one[1]), args.model, args.task)))
        return
    done = json.loads(args.json.read_text())["cells"] if args.json.exists() else []
    known = {(cell["row"], cell["seed"]) for cell in done}
    for seed in args.seeds:
        for row in args.rows:
            if args.table or (row, seed) in known:
                continue
            done.append(in_a_process(row, seed, args))
            print(done[-1], flush=True)
            found = {"model": args.model, "task": args.task, "shots": SHOTS, "cells": done}
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(done))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
