"""Grids filled on a small model and plain pictures: computed once, resumed, shared, and shown."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmprompt.errors import UserError
from mmprompt.experiments.cells import Origin, cell_from_json, cell_to_json
from mmprompt.experiments.compare import compare
from mmprompt.experiments.comparison_report import write_comparison
from mmprompt.experiments.grid import Contender, Grid, plan, without_broken
from mmprompt.experiments.layouts import few_shot_table
from mmprompt.experiments.results import Results
from mmprompt.training.problem import RunFailed
from tests.fixtures.cli_run import write_pictures

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 200), "grey": (120, 120, 120)}
FAST = {"epochs": 2, "augment": "none"}


@pytest.fixture(scope="session")
def parted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with train, val and test parts."""
    root = tmp_path_factory.mktemp("parted") / "colours"
    for part, n in (("train", 4), ("val", 2), ("test", 5)):
        write_pictures(root / part, COLOURS, n)
    return root


def grid_of(parted: Path, model: Path, methods: Sequence[str] = ("coop", "zero-shot"), **changes: object) -> Grid:
    settings = {"coop": {"n_ctx": 2}}
    contenders = tuple(Contender(str(model), name, settings.get(name, {})) for name in methods)
    grid = Grid((Origin("colours", str(parted)),), contenders, (1, 2), (1, 2), FAST)
    return replace(grid, **changes)  # type: ignore[arg-type]


@pytest.fixture
def grid(parted: Path, tiny_open_clip_folder: Path) -> Grid:
    return grid_of(parted, tiny_open_clip_folder)


def test_what_learns_nothing_is_one_cell_for_all_shots_and_seeds(grid: Grid) -> None:
    methods = [cell.method for cell in grid.cells()]
    assert methods == ["coop"] * 4 + ["zero-shot"]


def test_a_cell_survives_as_text(grid: Grid) -> None:
    assert [cell_from_json(cell_to_json(cell)) for cell in grid.cells()] == list(grid.cells())


def test_the_key_does_not_depend_on_where_the_pictures_lie(grid: Grid, parted: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "colours"
    moved.parent.mkdir()
    moved.symlink_to(parted)
    other = replace(grid, sources=(Origin("colours", str(moved)),))
    assert [one.key for one in plan(grid.cells())] == [one.key for one in plan(other.cells())]


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": {**FAST, "lr": 0.1}},
        {"seeds": (3,)},
        {"shots": (3,)},
        {"is_divided": True},
    ],
    ids=str,
)
def test_the_key_depends_on_what_is_computed(grid: Grid, change: dict[str, object]) -> None:
    one = replace(grid, shots=(1,), seeds=(1,), contenders=grid.contenders[:1])
    other = replace(one, **change)  # type: ignore[arg-type]
    assert plan(one.cells())[0].key != plan(other.cells())[0].key


def test_how_often_checkpoints_are_written_is_no_part_of_the_key(grid: Grid) -> None:
    other = replace(grid, recipe={**FAST, "checkpoint_every": 5})
    assert plan(grid.cells())[0].key == plan(other.cells())[0].key


def test_a_finished_comparison_computes_nothing_again(grid: Grid, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    first = compare(grid, tmp_path / "r.sqlite", device="cpu", progress=lambda *count: seen.append(count))
    assert seen[-1] == ("cells", 5, 5)
    before = sqlite3.connect(tmp_path / "r.sqlite").execute("SELECT key, facts FROM cells ORDER BY key").fetchall()
    again = compare(grid, tmp_path / "r.sqlite", device="cpu")
    after = sqlite3.connect(tmp_path / "r.sqlite").execute("SELECT key, facts FROM cells ORDER BY key").fetchall()
    assert before == after
    assert [line.values for line in first.lines] == [line.values for line in again.lines]


def cells_in(path: Path) -> list[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(path)) as file:
        return file.execute("SELECT key, state FROM cells ORDER BY key").fetchall()


def test_a_refused_comparison_leaves_the_results_as_they_were(grid: Grid, parted: Path, tmp_path: Path) -> None:
    copy = tmp_path / "colours"
    shutil.copytree(parted, copy)
    sound = replace(grid, sources=(Origin("colours", str(copy)),), shots=(1,), seeds=(1,))
    path = tmp_path / "r.sqlite"
    picture = next(copy.glob("test/red/*.png"))
    content = picture.read_bytes()
    picture.write_bytes(content[:-40])
    with pytest.raises(UserError, match=picture.name):
        compare(sound, path, device="cpu")
    assert not list(tmp_path.glob("r.sqlite*"))
    picture.write_bytes(content)
    compare(sound, path, device="cpu")
    before = cells_in(path)
    picture.write_bytes(content[:-40])
    with pytest.raises(UserError, match=picture.name):
        compare(sound, path, device="cpu")
    assert cells_in(path) == before


@pytest.mark.slow
def test_two_workers_find_the_same_as_one(grid: Grid, tmp_path: Path) -> None:
    alone = compare(grid, tmp_path / "one.sqlite", workers=1, device="cpu")
    together = compare(grid, tmp_path / "two.sqlite", workers=2, device="cpu")
    assert [line.values for line in alone.lines] == [line.values for line in together.lines]


RUN = """
import sys
from pathlib import Path
from mmprompt.experiments.workers import fill
if __name__ == "__main__":
    fill(Path(sys.argv[1]), sys.argv[2:], 1, "cpu", lambda n, n_all: print(n, flush=True))
"""


@pytest.mark.slow
def test_a_killed_comparison_goes_on_where_it_stopped(grid: Grid, tmp_path: Path) -> None:
    path, planned = tmp_path / "r.sqlite", plan(grid.cells(), "cpu")
    keys = [one.key for one in planned]
    results = Results(path)
    results.add({one.key: cell_to_json(one.cell) for one in planned})
    worker = subprocess.Popen([sys.executable, "-c", RUN, str(path), *keys], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    while worker.stdout.readline().strip() != "2":
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    worker.stdout.close()
    kept = results.finished(keys)
    assert 2 <= len(kept) < len(keys)
    comparison = compare(grid, path, device="cpu")
    assert set(results.states(keys).values()) == {"done"}
    assert results.finished(list(kept)).keys() == kept.keys()
    assert [line.values for line in comparison.lines] == [
        line.values for line in compare(grid, tmp_path / "whole.sqlite", device="cpu").lines
    ]


def test_a_cell_that_breaks_down_is_told_and_the_others_go_on(grid: Grid, tmp_path: Path) -> None:
    broken = replace(grid, recipe={**FAST, "lr": 90.0, "epochs": 30, "weight_decay": 90.0}, shots=(1,), seeds=(1,))
    comparison = compare(broken, tmp_path / "r.sqlite", device="cpu")
    assert [line.label for line in comparison.lines] == ["zero-shot"]
    assert "lower `lr`" in next(iter(comparison.failures.values()))


def test_a_broken_picture_is_met_before_anything_is_computed(
    tmp_path: Path, tiny_open_clip_folder: Path, parted: Path
) -> None:
    root = write_pictures(tmp_path / "own", COLOURS, 4)
    (root / "red" / "3.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"3\.png"):
        compare(grid_of(root, tiny_open_clip_folder), tmp_path / "r.sqlite", device="cpu")
    assert not Results(tmp_path / "r.sqlite").finished(
        [one.key for one in plan(grid_of(root, tiny_open_clip_folder).cells())]
    )


def test_broken_pictures_are_left_out_where_that_is_asked_for(
    tmp_path: Path, tiny_open_clip_folder: Path, parted: Path
) -> None:
    root = tmp_path / "own"
    shutil.copytree(parted, root)
    (root / "test" / "red" / "3.png").write_bytes(b"no picture")
    grid = without_broken(grid_of(root, tiny_open_clip_folder, shots=(2,), seeds=(1,)))
    assert grid.sources[0].broken == ("test/red/3.png",)
    assert cell_from_json(cell_to_json(grid.cells()[0])) == grid.cells()[0]
    comparison = compare(grid, tmp_path / "r.sqlite", device="cpu")
    assert {line.correct.shape[1] for line in comparison.lines} == {19}
    assert "colours: Broken pictures left out, 1: test/red/3.png." in few_shot_table(comparison).notes


def test_what_learns_nothing_reads_no_training_picture(
    tmp_path: Path, tiny_open_clip_folder: Path, parted: Path
) -> None:
    root = tmp_path / "own"
    shutil.copytree(parted, root)
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"no picture")
    grid = grid_of(root, tiny_open_clip_folder, ["zero-shot"])
    assert compare(grid, tmp_path / "r.sqlite", device="cpu").lines


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"shots": ()}, "shots is empty"),
        ({"seeds": (1, 1)}, "may be named once"),
        ({"contenders": ()}, "contenders is empty"),
    ],
)
def test_grids_that_cannot_be_are_refused(grid: Grid, change: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text):
        replace(grid, **change)  # type: ignore[arg-type]


def test_a_method_that_the_backbone_cannot_carry_is_refused_at_the_start(
    parted: Path, tiny_resnet_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="image tokens"):
        compare(grid_of(parted, tiny_resnet_folder, ["zero-shot", "vpt"]), tmp_path / "r.sqlite", device="cpu")


def test_base_to_new_learns_half_the_classes_and_tests_both(grid: Grid, tmp_path: Path) -> None:
    divided = replace(grid, is_divided=True, shots=(2,), seeds=(1,))
    comparison = compare(divided, tmp_path / "r.sqlite", device="cpu")
    base, new = (comparison.find("coop", "colours", part, 2) for part in ("base", "new"))
    assert base is not None
    assert new is not None
    assert (list(base.per_class), list(new.per_class)) == (["blue", "green"], ["grey", "red"])
    assert 0 <= base.numbers["auroc_of_new_classes"] <= 1


def test_a_head_has_no_accuracy_on_new_classes(parted: Path, tiny_open_clip_folder: Path, tmp_path: Path) -> None:
    grid = grid_of(parted, tiny_open_clip_folder, ["linear-probe"], is_divided=True, shots=(2,), seeds=(1,))
    comparison = compare(grid, tmp_path / "r.sqlite", device="cpu")
    assert [line.target for line in comparison.lines] == ["base"]


def test_the_gain_is_paired_with_zero_shot(grid: Grid, tmp_path: Path) -> None:
    comparison = compare(grid, tmp_path / "r.sqlite", device="cpu")
    learned, zero = comparison.find("coop", "colours", "colours", 2), comparison.lines[-1]
    assert learned is not None
    gains = dict(
        zip((line.label for line in comparison.lines if line.shots in (2, 0)), comparison.gains[1:], strict=True)
    )
    gain = gains["coop"]
    assert gain is not None
    assert gain.value == pytest.approx(np.mean(learned.values) - zero.mean)
    assert gain.interval[0] <= gain.value <= gain.interval[1]
    assert gains["zero-shot"] is None


def test_the_report_is_one_page_with_tables_and_figures_beside(grid: Grid, tmp_path: Path) -> None:
    comparison = compare(grid, tmp_path / "r.sqlite", device="cpu")
    page = write_comparison(comparison, tmp_path / "out", "few-shot", "mmprompt compare --methods coop")
    html = page.read_text()
    assert 'src="http' not in html
    assert "mmprompt compare --methods coop" in html
    assert "is right most often on colours:" in " ".join(html.split())
    names = {path.name for path in page.parent.iterdir()}
    assert {"report.html", "table.txt", "table.md", "table.csv", "table.tex", "comparison.json"} <= names
    assert {"curve_colours.png", "confusion.png", "calibration.png", "classes.png"} <= names
    content = json.loads((page.parent / "comparison.json").read_text())
    assert [line["shots"] for line in content["lines"]] == [1, 2, 0]


def test_workers_that_all_die_are_told(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmprompt.experiments import workers

    monkeypatch.setattr(workers, "_child", os.abort)
    with pytest.raises(RunFailed, match="fewer `workers`"):
        compare(grid, tmp_path / "r.sqlite", workers=2, device="cpu")
