"""Every program in examples/ runs as a user would run it, is short, and is on the page."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
PROGRAMS = sorted(FOLDER.glob("*.py"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_the_program_runs_and_says_what_came_out(program: Path, cache: Path, tmp_path: Path) -> None:
    environment = os.environ | {"MMPROMPT_CACHE": str(cache), "PYTHONPATH": str(FOLDER.parent), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(program)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_the_program_is_short(program: Path) -> None:
    assert len(program.read_text(encoding="utf-8").splitlines()) < 40


def test_every_program_is_on_the_page() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in PROGRAMS if f"[{path.name}]({path.name}): " not in page] == []
