"""Our step of every method has the loss and gradient of the published one, written plainly in scripts/bench."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench" / "methods.py"
ROWS = {
    *("coop", "cocoop", "kgcoop", "prograd", "ivlp", "maple", "promptsrc", "clip-lora", "tpt"),
    *("tip-adapter-f", "clip-adapter", "taskres", "clap", "gda", "lp-plus-plus", "linear-probe"),
}


def test_our_steps_are_those_of_the_papers(tmp_path):
    path = tmp_path / "methods.json"
    subprocess.run([sys.executable, str(SCRIPT), "--quick", "--repeats", "1", "--json", str(path)], check=True)
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    assert set(rows) == ROWS
    assert all(row["equal"] for row in rows.values()), rows
