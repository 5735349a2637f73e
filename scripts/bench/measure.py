"""What the benchmarks share: one thread, CPU seconds, peak memory, a table on the screen and a JSON file."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mmprompt.files import make_folder, write_json

Row = dict[str, Any]


def use_one_thread() -> None:
    """All products on one core, so that a ratio compares work and not scheduling."""
    torch.set_num_threads(1)


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process and its finished workers, which do not grow when other programs share the core."""
    started = used_seconds()
    work()
    return used_seconds() - started


def used_seconds() -> float:
    """CPU seconds so far."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def side_by_side(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The least CPU seconds of each, taken in turn so that a slow minute falls on all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            seconds[name].append(cpu_seconds(work))
    return {name: min(found) for name, found in seconds.items()}


def in_a_process(script: str, *arguments: object) -> Any:
    """What a script prints as JSON in its last line, in a fresh process."""
    command = [sys.executable, script, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", type=Path, help="write the figures to this file; rows it holds of other names stay")
    made.add_argument("--rows", nargs="+", help="measure these rows alone")
    return made


def machine() -> dict[str, Any]:
    """The machine in neutral words."""
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.is_available(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def report(rows: Sequence[Row], path: Path | None) -> None:
    """Print a table, and write the rows to a file beside those of other names that it has."""
    for row in rows:
        print("  ".join(f"{key} {text(value)}" for key, value in row.items()), flush=True)
    if path is None:
        return
    kept = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    names = {row["name"] for row in rows}
    document = {"machine": machine(), "rows": [row for row in kept if row["name"] not in names] + list(rows)}
    write_json(make_folder(path.parent) / path.name, document)


def text(value: object) -> str:
    """A figure as people read it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference, by the norm of what was expected."""
    return ((found - expected).norm() / expected.norm()).item()
