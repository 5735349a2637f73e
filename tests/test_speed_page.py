"""The figures of docs/speed.md: every row of the benchmarks is there, and the tables are those of docs/results."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = {
    "text_step": {
        *("text-100-m16", "text-100-m4", "text-1000-m16", "class-specific-100"),
        *("middle-100", "cocoop-100-b8", "deep-100"),
    },
    "methods": {
        *("coop", "cocoop", "kgcoop", "prograd", "ivlp", "maple", "promptsrc", "clip-lora", "tpt", "tip-adapter-f"),
        *("clip-adapter", "taskres", "clap", "gda", "lp-plus-plus", "linear-probe"),
    },
    "end_to_end": {
        *("end-to-end", "photo-small", "photo-small, one view", "photo-small, stored"),
        *("vit-b-16", "vit-b-16, one view", "vit-b-16, stored"),
    },
    "memory": {"memory-100", "memory-1000", "memory-21000"},
}


@pytest.mark.parametrize("name", ROWS)
def test_the_tables_on_the_page_are_the_figures_of_the_benchmarks(name):
    path = ROOT / "docs" / "results" / f"{name}.json"
    rows = json.loads(path.read_text())["rows"]
    assert {row["name"] for row in rows} == ROWS[name]
    assert all("ratio" in row and row["equal"] is True for row in rows)
    command = [sys.executable, str(ROOT / "scripts" / "bench" / "table.py"), str(path)]
    table = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert table in (ROOT / "docs" / "speed.md").read_text()
