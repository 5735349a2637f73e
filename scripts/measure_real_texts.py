"""Sets of real text: prompts, searched words and weights beside hand-written instructions, on a real language model.

    mmprompt backbones get smollm2
    python scripts/make_text_sets.py --out runs/texts
    python scripts/measure_real_texts.py --json docs/results/language_real.json
    python scripts/measure_real_texts.py --json docs/results/language_real.json --table

Of each set 16 rows a label are learned from (of headlines 64 rows), and all is tested on 240 rows held out. The best of
three instructions is the one that is best on these very rows, which favours it. Finished cells and searches are kept:
run again, it goes on, and with more seeds it computes what is new.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rouge_score.rouge_scorer import RougeScorer

import mmprompt as mp
from markdown import gain, percent, table
from measure_language import right_in
from mmprompt.core.header import read_header
from mmprompt.core.metrics import paired_bootstrap
from mmprompt.language.data import sample_shots
from mmprompt.language.search.task import search_words

SETS = {"bbc_titles": 16, "movie_snippets": 16, "spam_subjects": 16, "bbc_headlines": 64}
"""Training rows of each label."""
WAYS = {
    "soft prompt": mp.PromptTuning(20),
    "LoRA": mp.language.LoRA(),
    "prompt + LoRA": mp.PromptTuning(20) + mp.language.LoRA(),
}
INSTRUCTIONS, SEARCHED = "best of three instructions", "searched words"
Way = dict[str, Any]


def measure(
    name: str, folder: Path, model: str, seeds: tuple[int, ...], cells: Path, wanted: tuple[str, ...]
) -> dict[str, Way]:
    """Of each way its score of every test row, a list a seed, and the CPU seconds of the longest fit."""
    data = mp.load_texts(folder / f"{name}.jsonl")
    written = [row.answer or "" for row in data.test]

    def scored(line: Any) -> list[list[float]]:
        return [right_in(one.correct) if data.labels else rouge(one.predictions, written) for one in line.scores]

    def in_words(templates: dict[str, str]) -> list[list[float]]:
        tasks = {key: data.task(template=text) for key, text in templates.items()}
        found = mp.compare({"words": (mp.HardPrompt(), model)}, tasks, out=cells, device="cpu")
        return [scored(line)[0] for line in found.lines]

    rows = in_words({text: text for text in data.instructions})
    ways: dict[str, Way] = {
        INSTRUCTIONS: {"scores": [max(rows, key=sum)], "each": [float(np.mean(row)) for row in rows]}
    }
    methods = {way: (WAYS[way], model) for way in wanted if way in WAYS and (data.labels or way == "soft prompt")}
    lines = mp.compare(methods, [data], (SETS[name],), seeds, cells, device="cpu").lines if methods else ()
    for line in lines:
        seconds = max(cell.facts["cpu_seconds"] for cell in line.cells)
        ways[line.label] = {"scores": scored(line), "cpu_seconds": round(seconds, 1)}
    if SEARCHED in wanted and data.labels:
        found = {f"{name}, seed {seed}": searched(data, name, model, seed, cells.parent / "words") for seed in seeds}
        ways[SEARCHED] = {"scores": in_words(found), "templates": list(found.values())}
    best = ways[INSTRUCTIONS]["scores"]
    for way in ways.values():
        scores = np.array(way["scores"])
        way |= {"mean": float(scores.mean()), "n_test": scores.shape[1]}
        if way is not ways[INSTRUCTIONS]:
            beside = np.tile(best, (len(scores), 1))
            way |= {"gain": float(scores.mean() - beside.mean()), "interval": list(paired_bootstrap(scores, beside))}
    return ways


def searched(data: mp.language.TextData, name: str, model: str, seed: int, folder: Path) -> str:
    """The template of words that a search finds; one that is there already is read."""
    out = folder / f"{name}-{model}-{seed}"
    if not (out / "prompt.json").exists():
        search_words(sample_shots(data, SETS[name], seed), model, out=out, seed=seed)
    return str(read_header(out, "language")["template"])


def rouge(texts: Any, expected: list[str]) -> list[float]:
    """ROUGE-L of each text."""
    scorer = RougeScorer(["rougeL"])
    pairs = zip(texts, expected, strict=True)
    return [round(scorer.score(wanted, text)["rougeL"].fmeasure, 4) for text, wanted in pairs]


def cell_of(found: Way | None) -> str:
    """A mean, and the gain over the best instruction with its interval."""
    if found is None:
        return ""
    return percent(found["mean"]) + (f", {gain(found['gain'], found['interval'])}" if "gain" in found else "")


def page(sets: dict[str, dict[str, Way]]) -> str:
    """The figures as Markdown."""
    order = [INSTRUCTIONS, SEARCHED, *WAYS]
    rows = []
    for name, ways in sets.items():
        n_test = ways[INSTRUCTIONS]["n_test"]
        shown = [cell_of(ways.get(way)) for way in order]
        soft = ways.get("soft prompt", {"scores": (), "cpu_seconds": 0})
        rows.append((f"{name} ({n_test})", *shown, str(len(soft["scores"])), f"{soft['cpu_seconds']:.0f}"))
    return table(("set", *order, "seeds", "CPU seconds of a prompt"), rows)


def main(
    json_file: Annotated[Path, tyro.conf.arg(name="json")],
    sets: tuple[str, ...] = tuple(SETS),
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5),
    ways: tuple[str, ...] = (*WAYS, SEARCHED),
    folder: Path = Path("runs/texts"),
    model: str = "smollm2",
    threads: int = 2,
    cells: Path = Path("runs/cells"),
    table_only: Annotated[bool, tyro.conf.arg(name="table")] = False,
) -> None:
    """Measure, and print the table.

    Args:
        json_file: where all figures go.
        sets: which of the sets.
        seeds: of the draws and the starts.
        ways: to learn; the others' figures in the file stay.
        folder: holds NAME.jsonl of each set.
        cells: where finished cells are kept.
        table_only: print the table of the file and measure nothing.
    """
    found = json.loads(json_file.read_text())["sets"] if json_file.exists() else {}
    if not table_only:
        torch.set_num_threads(threads)
        for name in sets:
            found[name] = found.get(name, {}) | measure(name, folder, model, seeds, cells, ways)
            json_file.write_text(json.dumps({"model": model, "seeds": list(seeds), "sets": found}) + "\n")
            print(name, {way: round(one["mean"], 3) for way, one in found[name].items()}, flush=True)
    print(page(found))


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except mp.UserError as error:
        raise SystemExit(f"error: {error}") from None
