"""Commands killed by SIGKILL at random moments and run again: every file is compared with that of a run left alone.

The verbs take turns, so that the figures are even whenever it is ended; they are written as they come.

    CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 python scripts/soak/kills.py --kills 200 --json docs/results/kills.json

Needs Linux. `tests/cli/kill_verbs.py` kills the same commands before each change that they make to their files.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.cli.kill_verbs import call, content, prepare, warm
from tests.kills import fork, wait

VERBS = ("train", "train a head", "caption train", "llm train", "compare", "tune", "caption write")


class Command(NamedTuple):
    """A command, what is added when it is run again, and its files and CPU seconds when it is left alone."""

    line: str
    more: str
    files: dict[str, str]
    seconds: float


def left_alone(root: Path, name: str, line: str, more: str) -> Command:
    """Run a command to its end twice, and see that it ends in the same files."""
    warm(root, name, line)
    found = []
    for index in range(2):
        folder = root / f"whole-{name.replace(' ', '-')}-{index}"
        _, status, used = os.wait4(fork(partial(call, folder, line)), 0)
        assert status == 0, f"{name} failed when it was left alone"
        found.append(content(folder))
        seconds = used.ru_utime + used.ru_stime
    assert found[0] == found[1], f"{name} does not repeat itself"
    return Command(line, more, found[0], seconds)


def used_by(pid: int) -> float:
    """The CPU seconds of a process so far; endless once it has ended."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    state, ticks = after_name[0], int(after_name[11]) + int(after_name[12])
    return float("inf") if state == "Z" else ticks / os.sysconf("SC_CLK_TCK")


def kill_once(folder: Path, command: Command, moments: random.Random) -> tuple[str, list[str]]:
    """Kill a command and run it again: how far it had come, and the files that differ then."""
    while True:
        pid, moment = fork(partial(call, folder, command.line)), moments.uniform(0, command.seconds)
        while used_by(pid) < moment:  # not by the clock, which a busy machine outruns
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        if wait(pid) == -signal.SIGKILL:
            break
        shutil.rmtree(folder)  # it had ended by then
    found = content(folder) if (folder / "run").exists() else {}
    is_whole = all(found.get(path) == own for path, own in command.files.items())
    stage = "all there" if is_whole else "begun" if found else "nothing yet"
    if wait(fork(partial(call, folder, f"{command.line} {command.more}"))) != 0:
        return stage, [(folder / "said").read_text()[-400:]]
    now = content(folder)
    return stage, sorted(path for path in command.files.keys() | now.keys() if command.files.get(path) != now.get(path))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=200, help="of each verb")
    options.add_argument("--verbs", nargs="+", default=VERBS, choices=VERBS)
    options.add_argument("--seed", type=int, default=1, help="of the moments")
    options.add_argument("--json", type=Path, help="write the figures to this file")
    args = options.parse_args()
    place = None if args.json is None else args.json.resolve()
    root = Path(tempfile.mkdtemp(prefix="kills-"))
    lines = prepare(root)
    commands = {name: left_alone(root, name, *lines[name]) for name in args.verbs}
    moments, stages, others = random.Random(args.seed), Counter[tuple[str, str]](), dict[str, list[Any]]()
    for number in range(args.kills):
        for name, command in commands.items():
            folder = root / f"{name.replace(' ', '-')}-{number}"
            stage, differ = kill_once(folder, command, moments)
            stages[name, stage] += 1
            if differ:
                others.setdefault(name, []).append({"number": number, "stage": stage, "differ": differ})
                print(f"{name}, kill {number} ({stage}): {differ}", flush=True)
            else:
                shutil.rmtree(folder)
        rows = [row(name, command, stages, others.get(name, [])) for name, command in commands.items()]
        if place is not None:
            place.write_text(json.dumps({"seed": args.seed, "rows": rows}, indent=1) + "\n")
    for line in rows:
        print("  ".join(f"{key} {value}" for key, value in line.items()))
    if not others:
        shutil.rmtree(root)
    sys.exit(bool(others))


def row(name: str, command: Command, stages: Counter[tuple[str, str]], others: list[Any]) -> dict[str, Any]:
    """The figures of a verb."""
    found = {stage: stages[name, stage] for stage in ("nothing yet", "begun", "all there")}
    kills = sum(found.values())
    figures = {"verb": name, "kills": kills, "same": kills - len(others), **found}
    return {**figures, "files": len(command.files), "seconds": round(command.seconds, 2), "others": others}


if __name__ == "__main__":
    main()
