"""The notebooks in examples/ run from top to bottom, and are kept without outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import processes

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


def run_cells(sources: list[str], shown: Path) -> None:
    """Run cells one after another, and write what each shows: texts and, by their kind, values."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell, found = InteractiveShell.instance(), []
    for source in sources:
        with capture_output() as captured:
            ran = shell.run_cell(source)
        ran.raise_error()
        values = [] if ran.result is None else [shell.display_formatter.format(ran.result)[0]]
        found.append([*filter(None, [captured.stdout]), *(output.data for output in captured.outputs), *values])
    shown.write_text(json.dumps(found))


@pytest.mark.usefixtures("kept_features")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_and_shows_something(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("IPython")
    code = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    done = processes.run(run_cells, ["".join(cell["source"]) for cell in code], tmp_path / "shown", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    shown: list[list[Any]] = json.loads((tmp_path / "shown").read_text())
    assert all(shown)
    pages = [one["text/html"] for some in shown for one in some if isinstance(one, dict) and "text/html" in one]
    assert pages
    assert not any("object at 0x" in page for page in pages)


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["captions", "few_shot"]
