"""Kill commands before any change they make to their files, run them again, and print what came of each as JSON.

Run as `python kill_verbs.py WORK [--blank-figures] [VERB=KILLS...]` with CUDA hidden, such as `train=6`: so many kills
spread evenly over the changes that the verb makes, 0 for one at each; by default 0 for all verbs. Seconds and memory
stand still, since they are all in which two runs differ. Blank figures are drawn in no time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from matplotlib.figure import Figure

from mmprompt.cli.main import main
from mmprompt.experiments import compute
from tests import small_models
from tests.fixtures.blank_figures import paint_nothing
from tests.fixtures.cli_run import COLOURS, write_pictures
from tests.kills import POINT, count_changes, fork, killed_at, wait

BLANK = "--blank-figures"
QUICK = "--epochs 3 --checkpoint-seconds 0 --device cpu --out run"
UNSTABLE = {"study.db", "cell.lock"}
"""A database keeps its pages as they came, and `trials.csv` shows what is in it; a lock that is left is nobody's."""

TEXTS = Path(small_models.__file__).parents[1] / "mmprompt" / "assets" / "language" / "somebody.jsonl"


def lines_of(root: Path) -> dict[str, tuple[str, str]]:
    """Each command, and what is added to it when it is run again."""
    own = root / "own"
    place = f"--data {own / 'colours'} --backbone {own / 'model'}"
    images = " ".join(str(path) for path in sorted(own.glob("colours/test/*/*.png")))
    return {
        "train": (f"train {place} --n-ctx 2 --shots 2 {QUICK}", "--resume"),
        "train a head": (
            f"train {place} --method linear-probe --inverse-strength 1 --shots 2 --device cpu --out run",
            "--resume",
        ),
        "llm train": (f"llm train --n-soft 2 --shots 4 {QUICK}", "--resume"),
        "caption train": (f"caption train --data {own / 'captions.jsonl'} --focus plain {QUICK}", "--resume"),
        "caption write": (f"caption write {images} --out run/rows.jsonl --device cpu --max-tokens 4", ""),
        "llm generate": (f"llm generate --input {TEXTS} --out run/answers.jsonl --device cpu --max-tokens 2", ""),
        "compare": (
            f"compare {place} --method coop --n-ctx 2 --shots 1 --seed 1 --epochs 2 --checkpoint-seconds 0 "
            "--device cpu --out run/report --results run/cells",
            "",
        ),
        "tune": (f"tune {place} --n-ctx 2 --search lr --shots 2 --epochs 2 --trials 4 --device cpu --out run", ""),
    }


def call(folder: Path, line: str) -> None:
    """Run a command in a folder of its own."""
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    with (folder / "said").open("a") as said, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(line.split())
    assert code == 0, (folder / "said").read_text()


def content(folder: Path) -> dict[str, str]:
    """The hash of every file of a run."""
    files = [path for path in sorted((folder / "run").rglob("*")) if path.is_file() and path.name not in UNSTABLE]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in files}


def trials_of(root: Path, name: str, line: str, more: str, n_kills: int) -> list[dict[str, object]]:
    """Kill a command at some of its changes or all, and look at what it ends in when it is run again."""
    place = root / name.replace(" ", "-")
    place.mkdir()
    whole = place / "whole"
    n_changes = count_changes(partial(call, whole, line), whole / "run", place / "count")
    expected = content(whole)
    n_kills = min(n_kills, n_changes) or n_changes
    points = [1 + (2 * trial + 1) * n_changes // (2 * n_kills) for trial in range(n_kills)]
    trials = []
    for at in points:
        folder = place / f"kill-{at}"
        status = killed_at(partial(call, folder, line), folder / "run", at)
        found = sorted(content(folder)) if (folder / "run").exists() else []
        ended = wait(fork(partial(call, folder, f"{line} {more}")))
        now = content(folder)
        others = sorted(path for path in expected.keys() | now.keys() if expected.get(path) != now.get(path))
        trials.append({"verb": name, "at": at, "of": n_changes, "killed": status == -9, "found": found})
        trials[-1] |= {"ended": ended, "differ": others}
        if ended:
            trials[-1]["said"] = (folder / "said").read_text()[-400:]
    return trials


def make_own(folder: Path) -> None:
    """A small model, and pictures with captions."""
    folder.mkdir()
    small_models.save_open_clip(folder / "model")
    for part, n in (("train", 3), ("val", 2), ("test", 2)):
        write_pictures(folder / "colours" / part, COLOURS, n)
    rows = [
        {
            "image": f"colours/{part}/{name}/{i}.png",
            "captions": [f"all of it is {name}"],
            "focus": "plain",
            "split": part,
        }
        for part, n in (("train", 3), ("val", 2))
        for name in COLOURS
        for i in range(n)
    ]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepare(root: Path) -> dict[str, tuple[str, str]]:
    """Stop the clock and make what the commands read; the commands, see `lines_of`."""
    os.environ |= {"MMPROMPT_CACHE_LIMIT": "0", "HF_HUB_OFFLINE": "1"}
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)  # threads that have started do not survive a fork
    make_own(root / "own")
    time.monotonic = time.process_time = lambda: 0.0
    compute.peak_bytes = lambda device: 0
    return lines_of(root)


def work(root: Path, kills: dict[str, int]) -> None:
    """All trials, by verb how many kills."""
    lines = prepare(root)
    watch_studies()
    trials = []
    for name, n_kills in (kills or dict.fromkeys(lines, 0)).items():
        warm(root, name, lines[name][0])
        trials += trials_of(root, name, *lines[name], n_kills)
    sys.stdout.write(json.dumps(trials))


def warm(root: Path, name: str, line: str) -> None:
    """Run a command in this process once, so that every fork has all modules."""
    call(root / f"warm-{name.replace(' ', '-')}", line)


def watch_studies() -> None:
    """Make every statement that changes a study a point to be killed at."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    @event.listens_for(Engine, "before_cursor_execute")
    def change(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        if not statement.lstrip().startswith(("SELECT", "PRAGMA")):
            sys.audit(POINT, str(Path("run").absolute()))


if __name__ == "__main__":
    if BLANK in sys.argv:
        sys.argv.remove(BLANK)
        Figure.savefig = paint_nothing
    given = [argument.split("=") for argument in sys.argv[2:]]
    work(Path(sys.argv[1]), {name: int(n_kills) for name, n_kills in given})
