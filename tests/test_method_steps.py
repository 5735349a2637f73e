"""Our step of every method has the loss and gradient of the published one, written plainly in scripts/bench."""

import json
from pathlib import Path

from tests.processes import run_program

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench" / "methods.py"
ROWS = {
    *("coop", "cocoop", "kgcoop", "prograd", "ivlp", "maple", "promptsrc", "clip-lora", "tpt"),
    *("tip-adapter-f", "clip-adapter", "taskres", "clap", "gda", "lp-plus-plus", "linear-probe"),
}


def test_our_steps_are_those_of_the_papers(tmp_path):
    path = tmp_path / "methods.json"
    done = run_program(SCRIPT, "--quick", "--repeats", "1", "--json", str(path), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    assert set(rows) == ROWS
    assert all(row["equal"] for row in rows.values()), rows
