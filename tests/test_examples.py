"""Every program in examples/ runs as a user would run it, is short, and is on the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes import run_fresh, run_program

FOLDER = Path(__file__).parents[1] / "examples"
PROGRAMS = sorted(FOLDER.glob("*.py"))


@pytest.mark.usefixtures("kept_features")
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_the_program_runs_and_says_what_came_out(program: Path, tmp_path: Path) -> None:
    done = (run_fresh if program.stem == "few_shot" else run_program)(program, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_the_program_is_short(program: Path) -> None:
    assert len(program.read_text(encoding="utf-8").splitlines()) < 40


def test_every_program_is_on_the_page() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in PROGRAMS if f"[{path.name}]({path.name}): " not in page] == []
