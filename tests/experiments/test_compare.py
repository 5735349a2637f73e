"""Grids filled on a small model and plain pictures: computed once, resumed, shared, and shown."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmprompt as mp
from mmprompt.classification.methods import make_method
from mmprompt.errors import UserError
from mmprompt.experiments import compute as computing
from mmprompt.experiments.compare import compare_grid
from mmprompt.experiments.comparison_report import write_comparison
from mmprompt.experiments.compute import Bench, plan
from mmprompt.experiments.grid import Contender, Grid, Origin, without_broken
from mmprompt.experiments.paper_tables import few_shot_table
from mmprompt.experiments.summary import Comparison, compare_cells
from mmprompt.experiments.workers import Workers
from mmprompt.training.problem import RunFailed
from tests.fixtures.cli_run import write_pictures
from tests.processes import context

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
    contenders = tuple(Contender(name, make_method(name, settings.get(name)), str(model)) for name in methods)
    recipe = FAST if any(one.method.is_trained for one in contenders) else {}
    grid = Grid((Origin("colours", str(parted)),), contenders, (1, 2), (1, 2), recipe)
    return replace(grid, **changes)  # type: ignore[arg-type]


@pytest.fixture
def grid(parted: Path, tiny_open_clip_folder: Path) -> Grid:
    return grid_of(parted, tiny_open_clip_folder)


def keys_of(grid: Grid) -> list[str]:
    return [one.key for one in plan(grid, Bench("cpu"))]


def values_of(comparison: Comparison) -> list[tuple[float, ...]]:
    return [line.values for line in comparison.lines]


def finished_in(folder: Path) -> dict[str, int]:
    """The finished cells, and when each was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/scores.json")}


def test_what_learns_nothing_is_one_cell_for_all_shots_and_seeds(grid: Grid) -> None:
    methods = [cell.name for cell in grid.cells()]
    assert methods == ["coop"] * 4 + ["zero-shot"]


def test_the_key_does_not_depend_on_where_the_pictures_lie(grid: Grid, parted: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "colours"
    moved.parent.mkdir()
    moved.symlink_to(parted)
    other = replace(grid, sources=(Origin("colours", str(moved)),))
    assert keys_of(grid) == keys_of(other)


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
    assert keys_of(one)[0] != keys_of(other)[0]


def test_how_often_checkpoints_are_written_is_no_part_of_the_key(grid: Grid) -> None:
    other = replace(grid, recipe={**FAST, "checkpoint_every": 5})
    assert keys_of(grid)[0] == keys_of(other)[0]


def test_a_finished_comparison_reads_no_image_and_computes_nothing(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []

    def show(what: str, n_done: int, n_all: int) -> None:
        counted.append(what)

    monkeypatch.setenv("MMPROMPT_CACHE", str(tmp_path / "cache"))
    first = compare_grid(grid, tmp_path / "cells", device="cpu", progress=show)
    assert set(counted) == {"images", "cells"}
    before = finished_in(tmp_path / "cells")
    assert sorted(before) == sorted(keys_of(grid))
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    counted.clear()
    assert values_of(compare_grid(grid, tmp_path / "cells", device="cpu", progress=show)) == values_of(first)
    assert finished_in(tmp_path / "cells") == before
    assert counted == []


def test_a_larger_comparison_computes_only_what_is_new(grid: Grid, tmp_path: Path) -> None:
    compare_grid(replace(grid, shots=(1,)), tmp_path / "cells", device="cpu")
    before = finished_in(tmp_path / "cells")
    compare_grid(grid, tmp_path / "cells", device="cpu")
    after = finished_in(tmp_path / "cells")
    assert before.items() < after.items()


def test_a_finished_cell_is_a_run_folder(grid: Grid, tmp_path: Path) -> None:
    line, *_ = compare_grid(grid, tmp_path / "cells", device="cpu").lines
    for cell, value in zip(line.cells, line.values, strict=True):
        data = grid.sources[0].load(1, 1)
        assert mp.evaluate(mp.load(cell.folder), data.test).accuracy == pytest.approx(value)


def test_a_refused_comparison_leaves_the_results_as_they_were(grid: Grid, parted: Path, tmp_path: Path) -> None:
    copy = tmp_path / "colours"
    shutil.copytree(parted, copy)
    sound = replace(grid, sources=(Origin("colours", str(copy)),), shots=(1,), seeds=(1,))
    results = tmp_path / "cells"
    picture = next(copy.glob("test/red/*.png"))
    content = picture.read_bytes()
    picture.write_bytes(content[:-40])
    with pytest.raises(UserError, match=picture.name):
        compare_grid(sound, results, device="cpu")
    assert not results.exists()
    picture.write_bytes(content)
    compare_grid(sound, results, device="cpu")
    before = finished_in(results)
    picture.write_bytes(content[:-40])
    with pytest.raises(UserError, match=picture.name):
        compare_grid(sound, results, device="cpu")
    assert finished_in(results) == before


@pytest.mark.slow
def test_two_workers_find_the_same_as_one(grid: Grid, tmp_path: Path) -> None:
    alone = compare_grid(grid, tmp_path / "one", workers=Workers(1), device="cpu")
    assert values_of(compare_grid(grid, tmp_path / "two", workers=Workers(2), device="cpu")) == values_of(alone)


Started = tuple[BaseProcess, Connection]


def fill(parted: Path, model: Path, results: Path, said: Connection) -> None:
    """Fill a grid and tell the keys of the cells that are computed here, and the end."""
    compute = computing.compute

    def told(cell: Any, folder: Path, bench: Any) -> Any:
        said.send(folder.name)
        return compute(cell, folder, bench)

    computing.compute = told
    compare_grid(grid_of(parted, model), results, device="cpu")
    said.send("finished")


def words_of(started: Started) -> list[str]:
    """What a process says until it ends."""
    words: list[str] = []
    with contextlib.suppress(EOFError):
        while True:
            words.append(started[1].recv())
    return words


@pytest.fixture
def start(parted: Path, tiny_open_clip_folder: Path, tmp_path: Path) -> Iterator[list[Started]]:
    """Two processes that fill the same grid."""
    started = []
    for _ in range(2):
        receiver, sender = context().Pipe(duplex=False)
        arguments = (parted, tiny_open_clip_folder, tmp_path / "cells", sender)
        started.append((context().Process(target=fill, args=arguments, daemon=True), receiver))
        started[-1][0].start()
        sender.close()
    yield started
    for process, receiver in started:
        process.kill()
        process.join()
        receiver.close()


@pytest.mark.slow
def test_two_processes_never_compute_a_cell_twice(start: list[Started], grid: Grid) -> None:
    said = [words_of(one) for one in start]
    assert [words.pop() for words in said] == ["finished", "finished"]
    assert sorted([*said[0], *said[1]]) == sorted(keys_of(grid))


@pytest.mark.slow
def test_the_cell_of_a_killed_process_is_finished_by_another(start: list[Started], grid: Grid, tmp_path: Path) -> None:
    (first, said_first), second = start
    left = said_first.recv()
    first.kill()
    said = words_of(second)
    assert said[-1] == "finished"
    assert left in said or left in finished_in(tmp_path / "cells")
    assert sorted(finished_in(tmp_path / "cells")) == sorted(keys_of(grid))


LONG = {"epochs": 6, "augment": "none", "checkpoint_seconds": 0.0}


@pytest.fixture
def one_cell(grid: Grid) -> Grid:
    return replace(grid, contenders=grid.contenders[:1], shots=(2,), seeds=(1,), recipe=LONG)


def interrupt_at(epoch: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Interrupt a training once when an epoch begins; the epochs that began."""
    begun: list[int] = []
    left = [epoch]

    def note(clock: object, run: object, number: int) -> None:
        begun.append(number)
        clock._started = time.process_time()  # type: ignore[attr-defined]
        if number in left:
            left.clear()
            raise KeyboardInterrupt

    monkeypatch.setattr("mmprompt.experiments.compute._Clock.on_epoch_begin", note)
    return begun


def test_an_interrupted_cell_goes_on_from_its_checkpoint(
    one_cell: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compare_grid(one_cell, tmp_path / "whole", device="cpu")
    begun = interrupt_at(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        compare_grid(one_cell, tmp_path / "cells", device="cpu")
    assert values_of(compare_grid(one_cell, tmp_path / "cells", device="cpu")) == values_of(whole)
    assert begun == [0, 1, 2, 3, 3, 4, 5]


def test_a_cell_that_was_trained_and_not_tested_is_not_trained_again(
    one_cell: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = interrupt_at(99, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(computing, "facts_of", lambda *_: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            compare_grid(one_cell, tmp_path / "cells", device="cpu")
    assert not finished_in(tmp_path / "cells")
    assert compare_grid(one_cell, tmp_path / "cells", device="cpu").lines
    assert begun == list(range(6))


def test_a_checkpoint_that_cannot_be_gone_on_with_is_left_and_the_cell_begins_anew(
    one_cell: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = interrupt_at(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        compare_grid(one_cell, tmp_path / "cells", device="cpu")
    [checkpoints] = (tmp_path / "cells").glob("*/checkpoint")
    other = replace(one_cell, seeds=(2,))
    place = tmp_path / "other" / keys_of(other)[0]
    place.mkdir(parents=True)
    checkpoints.rename(place / "checkpoint")
    begun.clear()
    found = compare_grid(other, tmp_path / "other", device="cpu")
    assert values_of(found) == values_of(compare_grid(other, tmp_path / "whole", device="cpu"))
    assert begun == [*range(6), *range(6)]


def test_a_damaged_cell_is_computed_again_with_a_warning(
    grid: Grid, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = compare_grid(grid, tmp_path / "cells", device="cpu")
    before = finished_in(tmp_path / "cells")
    damaged = tmp_path / "cells" / keys_of(grid)[1]
    (damaged / "scores.json").write_text((damaged / "scores.json").read_text().replace("1.0", "0.0"))
    with caplog.at_level(logging.WARNING, "mmprompt"):
        again = compare_grid(grid, tmp_path / "cells", device="cpu")
    assert f"{damaged.name}/scores.json is damaged" in caplog.text
    assert values_of(again) == values_of(first)
    changed = finished_in(tmp_path / "cells").items() - before.items()
    assert [key for key, _ in changed] == [damaged.name]


def test_a_cell_that_breaks_down_is_told_and_the_others_go_on(grid: Grid, tmp_path: Path) -> None:
    broken = replace(grid, recipe={**FAST, "lr": 90.0, "epochs": 30, "weight_decay": 90.0}, shots=(1,), seeds=(1,))
    comparison = compare_grid(broken, tmp_path / "cells", device="cpu")
    assert [line.label for line in comparison.lines] == ["zero-shot"]
    assert "Try a lower `lr`" in next(iter(comparison.failures.values()))


def test_a_broken_picture_is_met_before_anything_is_computed(
    tmp_path: Path, tiny_open_clip_folder: Path, parted: Path
) -> None:
    root = write_pictures(tmp_path / "own", COLOURS, 4)
    (root / "red" / "3.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"3\.png"):
        compare_grid(grid_of(root, tiny_open_clip_folder), tmp_path / "cells", device="cpu")
    assert not (tmp_path / "cells").exists()


def test_broken_pictures_are_left_out_where_that_is_asked_for(
    tmp_path: Path, tiny_open_clip_folder: Path, parted: Path
) -> None:
    root = tmp_path / "own"
    shutil.copytree(parted, root)
    (root / "test" / "red" / "3.png").write_bytes(b"no picture")
    grid = without_broken(grid_of(root, tiny_open_clip_folder, shots=(2,), seeds=(1,)))
    assert grid.sources[0].broken == ("test/red/3.png",)
    comparison = compare_grid(grid, tmp_path / "cells", device="cpu")
    assert {line.correct.shape[1] for line in comparison.lines} == {19}
    assert "colours: Broken images left out, 1: test/red/3.png." in few_shot_table(comparison).notes


def test_what_learns_nothing_reads_no_training_picture(
    tmp_path: Path, tiny_open_clip_folder: Path, parted: Path
) -> None:
    root = tmp_path / "own"
    shutil.copytree(parted, root)
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"no picture")
    grid = grid_of(root, tiny_open_clip_folder, ["zero-shot"])
    assert compare_grid(grid, tmp_path / "cells", device="cpu").lines


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"shots": ()}, "shots is empty"),
        ({"seeds": (1, 1)}, "may be named once"),
        ({"contenders": ()}, "methods is empty"),
    ],
)
def test_grids_that_cannot_be_are_refused(grid: Grid, change: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text):
        replace(grid, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("targets", [("colours",), ("left", "left")], ids=["the source's", "two targets"])
def test_tests_of_one_name_are_refused(grid: Grid, targets: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="is the name of two data sets"):
        replace(grid, targets=tuple(map(Origin, targets)))


def test_data_that_are_learned_from_may_be_targets_of_one_another(grid: Grid) -> None:
    both = (*grid.sources, Origin("other", "other"))
    assert replace(grid, sources=both, targets=both).targets == both


def test_shots_stand_in_order_however_they_were_named(grid: Grid) -> None:
    assert replace(grid, shots=(None, 4, 1)).shots == (1, 4, None)


def test_a_method_that_the_backbone_cannot_carry_is_refused_at_the_start(
    parted: Path, tiny_resnet_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="image tokens"):
        compare_grid(grid_of(parted, tiny_resnet_folder, ["zero-shot", "vpt"]), tmp_path / "cells", device="cpu")


def test_base_to_new_learns_half_the_classes_and_tests_both(grid: Grid, tmp_path: Path) -> None:
    divided = replace(grid, is_divided=True, shots=(2,), seeds=(1,))
    comparison = compare_grid(divided, tmp_path / "cells", device="cpu")
    base, new = (comparison.find("coop", "colours", part, 2) for part in ("base", "new"))
    assert base is not None
    assert new is not None
    assert (list(base.per_class), list(new.per_class)) == (["blue", "green"], ["grey", "red"])
    assert 0 <= base.numbers["auroc_of_new_classes"] <= 1


def test_a_head_has_no_accuracy_on_new_classes(parted: Path, tiny_open_clip_folder: Path, tmp_path: Path) -> None:
    grid = grid_of(parted, tiny_open_clip_folder, ["linear-probe"], is_divided=True, shots=(2,), seeds=(1,))
    comparison = compare_grid(grid, tmp_path / "cells", device="cpu")
    assert [line.target for line in comparison.lines] == ["base"]


def test_the_gain_is_paired_with_zero_shot(grid: Grid, tmp_path: Path) -> None:
    comparison = compare_grid(grid, tmp_path / "cells", device="cpu")
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
    comparison = compare_grid(grid, tmp_path / "cells", device="cpu")
    page = write_comparison(comparison, tmp_path / "out", "few-shot", "mmprompt compare --methods coop")
    html = page.read_text()
    assert 'src="http' not in html
    assert "mmprompt compare --methods coop" in html
    assert "is right most often on colours:" in " ".join(html.split())
    means = {label: comparison.average(label, comparison.tests, grid.shots[-1]) for label in comparison.labels}
    first, second, *_ = sorted(means, key=lambda label: -(means[label] or 0))
    lead = comparison.lead(first, second, grid.shots[-1])
    assert lead is not None
    assert lead[0] <= (means[first] or 0) - (means[second] or 0) <= lead[1]
    assert ("That is no clear lead over" in html) == (lead[0] <= 0)
    names = {path.name for path in page.parent.iterdir()}
    assert {"report.html", "table.txt", "table.md", "table.csv", "table.tex", "comparison.json"} <= names
    assert {"curve_colours.png", "confusion.png", "calibration.png", "classes.png"} <= names
    content = json.loads((page.parent / "comparison.json").read_text())
    assert [line["shots"] for line in content["lines"]] == [1, 2, 0]


def test_the_page_names_the_seed_whose_mistakes_it_shows(grid: Grid, tmp_path: Path) -> None:
    learned = replace(grid, contenders=grid.contenders[:1], shots=(1,))
    [line] = compare_grid(learned, tmp_path / "cells", device="cpu").lines
    rest = compare_cells(learned, [None, line.cells[1]], ["no memory", None])
    html = write_comparison(rest, tmp_path / "out", "few-shot", "command").read_text()
    assert "coop, 1 shot, seed 2, on colours." in html
    assert "seed 1, on" not in html


def test_workers_that_all_die_are_told(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmprompt.experiments import workers

    monkeypatch.setattr(workers, "_child", os.abort)
    with pytest.raises(RunFailed, match="fewer `workers`"):
        compare_grid(grid, tmp_path / "cells", workers=Workers(2), device="cpu")
