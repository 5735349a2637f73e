"""Kill a toy training with SIGKILL at many points, resume it, and print what came of each as JSON.

Run as `python kill_driver.py FOLDER` with CUDA hidden, since its threads do not survive a fork. All imports
happen once, in a first training; every other training is a fork of this process. Two kinds of points: the
k-th change to the files of the run, and a moment drawn at random.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

import safetensors.torch
from toy import Toy

from mmprompt.training.loop import train
from mmprompt.training.recipe import Recipe
from mmprompt.training.run_files import read_log

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.kills import count_changes, fork, killed_at, wait

N_EPOCHS = 6
N_EVENT_KILLS = 32
N_MOMENT_KILLS = 6
STEPS = {"n_steps": 17, "schedule": "step", "min_lr": 1e-4}  # three steps an epoch, two in the last
RECIPE = Recipe(lr=0.05, batch_size=3, optimizer="adamw", patience=N_EPOCHS, checkpoint_seconds=0, **STEPS)


def run(folder: Path, resume: bool) -> None:
    """One training to its end, and the bytes of its weights beside it."""
    problem = Toy(validation=[])
    history = train(problem, RECIPE, 1, N_EPOCHS, folder, "id", resume=resume)
    assert len(history) == N_EPOCHS, history
    (folder / "final").write_bytes(safetensors.torch.save(problem.module.state_dict()))


def outcome(folder: Path) -> str:
    """One hash over the final weights, the last checkpoint's tensors and the log without its clock."""
    log = [
        {name: value for name, value in line.items() if name != "seconds"} for line in read_log(folder / "log.jsonl")
    ]
    state = folder / "checkpoint" / f"epoch-{N_EPOCHS:06d}" / "state.safetensors"
    parts = [(folder / "final").read_bytes(), state.read_bytes(), json.dumps(log).encode()]
    return hashlib.sha256(b"|".join(parts)).hexdigest()


def killed_at_a_moment(folder: Path, delay: float) -> int:
    pid = fork(lambda: run(folder, resume=False))
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    return wait(pid)


def is_whole(checkpoint: Path) -> bool:
    """Whether both files of a checkpoint are there and hold something."""
    return len([path for path in checkpoint.iterdir() if path.stat().st_size]) == 2


def finish(folder: Path, place: str, status: int) -> dict[str, object]:
    """Resume what a kill left; what was there, and what it came to."""
    found = sorted(path.name for path in folder.glob("checkpoint/*"))
    torn = [path.name for path in folder.glob("checkpoint/epoch-*") if not is_whole(path)]
    resumed = wait(fork(lambda: run(folder, resume=True)))
    left = [path.name for path in folder.glob("checkpoint/.*")]
    result = outcome(folder) if resumed == 0 else "failed"
    return {"place": place, "killed": status == -9, "found": found, "torn": torn, "left": left, "outcome": result}


def main(root: Path) -> None:
    """All trials, against an uninterrupted run."""
    logging.disable(logging.WARNING)
    run(root / "imports", resume=False)
    whole = root / "whole"
    n_events = count_changes(partial(run, whole, False), whole, root / "count")
    started = time.monotonic()
    assert wait(fork(lambda: run(root / "timed", resume=False))) == 0, "the timed run failed"
    duration = time.monotonic() - started
    trials = []
    for trial in range(N_EVENT_KILLS):
        at = 1 + trial * (n_events - 1) // (N_EVENT_KILLS - 1)
        folder = root / f"event-{at}"
        status = killed_at(partial(run, folder, False), folder, at)
        trials.append(finish(folder, folder.name, status))
    moments = random.Random(1)
    for trial in range(N_MOMENT_KILLS):
        folder = root / f"moment-{trial}"
        status = killed_at_a_moment(folder, duration * moments.uniform(0.1, 0.9))
        trials.append(finish(folder, folder.name, status))
    sys.stdout.write(json.dumps({"expected": outcome(whole), "n_events": n_events, "trials": trials}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
