"""Processes of their own that begin with the large libraries imported: forks of one that has done nothing else.

Such a process differs from a fresh interpreter in the seconds that it saves. Whether a door of the package opens in a
fresh one, and what that imports, is the matter of the tests that start one.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from multiprocessing.context import BaseContext
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

ROOT = Path(__file__).parents[1]
LIBRARIES = [
    *("torch", "torch._dynamo", "torch.distributed", "torchvision", "open_clip", "timm", "transformers"),
    *("safetensors.torch", "sklearn.model_selection", "scipy.stats", "pandas", "pydantic", "jinja2"),
    *("mmprompt.cli.main", "mmprompt.core.fit", "mmprompt.models.dual_encoder.load"),
    *(f"mmprompt.{room}.{name}" for room in ("classification", "captioning", "language") for name in ("task", "cli")),
]


@dataclass(frozen=True)
class Ended:
    """The exit status of a process, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


@cache
def context() -> BaseContext:
    """The form of `multiprocessing` that begins processes so; fresh ones where there is no fork."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing.forkserver import ensure_running

    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(LIBRARIES)
    with mock.patch.dict(os.environ, {"PYTHONPATH": str(ROOT)}):
        ensure_running()
    return found


def run(work: Callable[..., object], *arguments: object, folder: Path, **environment: str) -> Ended:
    """Do some work in a folder, in a process with the environment of this one and more."""
    with TemporaryDirectory() as place:
        said = Path(place, "stdout"), Path(place, "stderr")
        process = context().Process(  # type: ignore[attr-defined]
            target=begin, args=(work, arguments, folder, os.environ | environment, said)
        )
        process.start()
        process.join()
        return Ended(process.exitcode, *(path.read_text() for path in said))


def run_program(path: Path, *words: str, folder: Path, **environment: str) -> Ended:
    """Run a file of Python in a folder, as `python PATH WORDS...` does."""
    return run(_as_main, path, words, folder=folder, **environment)


def run_fresh(path: Path, *words: str, folder: Path, **environment: str) -> Ended:
    """Run a file of Python in a folder, in a fresh interpreter."""
    command, more = [sys.executable, str(path), *words], {"PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(command, cwd=folder, env=os.environ | more, capture_output=True, text=True, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


def begin(
    work: Callable[..., object],
    arguments: tuple[object, ...],
    folder: Path,
    environment: dict[str, str],
    said: tuple[Path, Path],
) -> None:
    """Do some work here, in a folder and an environment, and write what is printed into two files."""
    multiprocessing.set_start_method(None, force=True)  # that of a program, not of this context
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for stream, path in zip((sys.stdout, sys.stderr), said, strict=True):
        with path.open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    work(*arguments)


def _as_main(path: Path, words: tuple[str, ...]) -> None:
    sys.argv = [str(path), *words]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")
