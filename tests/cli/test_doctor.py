"""`mmprompt doctor` and `mmprompt completion`."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from mmprompt.cli import doctor
from mmprompt.cli.main import VERBS, main

Capture = pytest.CaptureFixture[str]


def test_doctor_tells_versions_devices_caches_and_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "features" / "a").mkdir(parents=True)
    (tmp_path / "features" / "a" / "rows").write_bytes(bytes(3 * 2**20))
    monkeypatch.setenv("MMPROMPT_CACHE", str(tmp_path))
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    versions = {row["what"]: row["version"] for row in found["versions"]}
    assert versions["torch"] == torch.__version__.partition("+")[0]
    assert found["devices"][0]["device"] == "cpu"
    sizes = {row["cache"]: row["size"] for row in found["caches"]}
    assert sizes["mmprompt features"] == "3.0 MB"
    assert {row["model"] for row in found["fetch"]} == {"photo", "photo-small", "smollm2"}
    assert all("mmprompt backbones get" in row["weights"] for row in found["fetch"])
    assert {"variable": "MMPROMPT_CACHE", "value": str(tmp_path)} in found["variables"]


def test_doctor_names_what_an_extra_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["torch>=2", 'matplotlib>=3; extra == "report"', 'no-such-library>=1; extra == "report"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: needed)
    assert doctor.extras() == [{"extra": "report", "state": 'lacks no-such-library: pip install "mmprompt[report]"'}]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import contextlib
    import io

    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert main(["completion", "bash"]) == 0
    path = tmp_path_factory.mktemp("completion") / "mmprompt.bash"
    path.write_text(text.getvalue())
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("mmprompt predi", ["predict"]),
        ("mmprompt caption wr", ["write"]),
        ("mmprompt train --n-c", ["--n-ctx"]),
        ("mmprompt llm eval --calib", ["--calibrate"]),
        ("mmprompt completion z", ["zsh"]),
    ],
)
def test_bash_completes_verbs_and_options(line: str, completed: list[str], script: Path) -> None:
    words = line.split()
    program = (
        f'source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _shtab_mmprompt; echo "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == completed


def test_the_help_has_every_verb_once_and_a_group_its_own(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert sorted(name for name in VERBS if any(line[2:].startswith(name) for line in shown)) == sorted(VERBS)
    assert len(shown) == len(VERBS)
    assert main(["data", "--help"]) == 0
    assert "caption" not in capsys.readouterr().out
