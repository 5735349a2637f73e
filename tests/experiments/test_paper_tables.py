"""The papers' tables on accuracies that were made up here, held to numbers worked out by hand."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmprompt.classification.methods import CoOp, ZeroShot
from mmprompt.experiments.grid import ELEVEN, Contender, Grid, Origin
from mmprompt.experiments.paper_tables import LAYOUTS, base_to_new_table, cost_table, few_shot_table, transfer_table
from mmprompt.experiments.results import Outcome, Score
from mmprompt.experiments.summary import Comparison, compare_cells
from mmprompt.reports.tables import SUFFIXES, Table, render, write_tables

FACTS = {
    "seconds": 2.0,
    "cpu_seconds": 3.0,
    "n_parameters": 512,
    "template": "learned",
    "dtype": "float32",
    "backbone_fingerprint": "ab" * 32,
    "settings": {"n_ctx": 4},
    "selection": "last epoch",
}
CARD = """
name: {name}
title: A set
layout: folder
template: a photo of a {{}}.
licence: none
source: nowhere
reference:
  - {{method: CoOp, backbone: ViT-B/16, protocol: few-shot, shots: 1, values: {{accuracy: {one}}}, source: paper}}
  - {{method: CLIP, backbone: ViT-B/16, protocol: zero-shot, shots: null, values: {{accuracy: 50.0}}, source: a log}}
  - {{method: CLIP, backbone: ViT-B/16, protocol: base-to-new, shots: null,
     values: {{base: 60, new: {one}}}, source: paper}}
  - {{method: CoOp, backbone: ViT-B/16, protocol: cross-dataset, shots: 16, values: {{accuracy: {one}}}, source: paper}}
"""


@pytest.fixture
def cards(tmp_path: Path) -> str:
    folder = tmp_path / "cards"
    folder.mkdir()
    for name, one in (("left", 70.0), ("right", 80.0)):
        (folder / f"{name}.yaml").write_text(CARD.format(name=name, one=one))
    return str(folder)


def score(accuracy: float) -> Score:
    right = (np.arange(100) < round(100 * accuracy)).astype(float)
    numbers = {"top5": 1.0, "macro_f1": accuracy, "calibration_error": 0.1}
    return Score(right, [0] * 100, np.full(100, 0.5), numbers, {"cat": accuracy})


def filled(grid: Grid, accuracies: list[dict[str, float]]) -> Comparison:
    """A grid whose cells came to these accuracies by target, in the order of its cells."""
    return compare_cells(
        grid,
        [Outcome(FACTS, {target: score(value) for target, value in scores.items()}) for scores in accuracies],
    )


def grid_of(cards: str, **changes: object) -> Grid:
    origins = tuple(Origin(name, datasets_dir=cards) for name in ("left", "right"))
    contenders = (Contender("coop", CoOp(4), "tiny"), Contender("zero-shot", ZeroShot(), "tiny"))
    base: dict[str, object] = {"sources": origins, "contenders": contenders, "shots": (1,), "seeds": (1, 2)}
    return Grid(**base | changes)  # type: ignore[arg-type]


@pytest.fixture
def few_shot(cards: str) -> Comparison:
    values = [("left", 0.6), ("left", 0.7), ("right", 0.8), ("right", 0.9), ("left", 0.5), ("right", 0.4)]
    return filled(grid_of(cards), [{name: value} for name, value in values])


def rows_of(table: Table, *names: str) -> list[tuple[str, ...]]:
    return [row[table.n_names :] for row in table.rows if row[: len(names)] == names]


def test_seeds_are_shown_as_mean_and_deviation(few_shot: Comparison) -> None:
    assert rows_of(few_shot_table(few_shot), "left", "coop") == [("–", "65.00 ± 5.00")]  # noqa: RUF001


def test_a_single_run_is_shown_with_its_interval(few_shot: Comparison) -> None:
    [(zero, one)] = rows_of(few_shot_table(few_shot), "left", "zero-shot")
    assert zero.startswith("50.00 [4")
    assert one == "–"  # noqa: RUF001


def test_the_average_is_the_mean_over_sets_and_its_deviation_that_of_the_seeds_averages(few_shot: Comparison) -> None:
    table = few_shot_table(few_shot)
    assert rows_of(table, "average", "coop")[0][1] == "75.00 ± 5.00"
    assert rows_of(table, "average", "zero-shot")[0][0] == "45.00"


def test_published_rows_stand_beside_with_their_average_computed_here(few_shot: Comparison) -> None:
    table = few_shot_table(few_shot)
    assert rows_of(table, "left", "CoOp (published)") == [("–", "70.00")]  # noqa: RUF001
    assert rows_of(table, "average", "CoOp (published)") == [("–", "75.00")]  # noqa: RUF001
    assert rows_of(table, "right", "CLIP (published)")[0][0] == "50.00"
    assert any("CoOp on ViT-B/16 from paper" in note for note in table.notes)


def test_published_rows_without_a_shown_value_are_left_out(few_shot: Comparison) -> None:
    trained = replace(few_shot, lines=tuple(line for line in few_shot.lines if line.shots != 0))
    shown = few_shot_table(trained)
    assert not any(row[1] == "CLIP (published)" for row in shown.rows)
    assert any(row[1] == "CLIP (published)" for row in few_shot_table(few_shot).rows)


def test_notes_say_what_makes_rows_comparable(few_shot: Comparison) -> None:
    notes = "\n".join(few_shot_table(few_shot).notes)
    for said in ("seeds 1, 2", "backbone tiny (abababababab)", "float32", "template learned", "last epoch", "n_ctx 4"):
        assert said in notes


def test_the_harmonic_mean_of_the_average_is_that_of_the_averages(cards: str) -> None:
    coop = [{"base": 0.8, "new": 0.2}, {"base": 0.8, "new": 0.2}, {"base": 0.6, "new": 0.8}, {"base": 0.6, "new": 0.8}]
    zero = [{"base": 0.5, "new": 0.5}] * 2
    table = base_to_new_table(filled(grid_of(cards, is_divided=True), coop + zero))
    assert rows_of(table, "left", "coop")[0][2] == "32.00"
    assert rows_of(table, "average", "coop") == [("70.00 ± 0.00", "50.00 ± 0.00", "58.33")]  # not (32.00 + 68.57) / 2
    assert rows_of(table, "left", "CLIP (published)") == [("60.00", "70.00", "64.62")]
    assert rows_of(table, "average", "CLIP (published)") == [("60.00", "75.00", "66.67")]


def transfer(cards: str, source: Origin, target: Origin) -> Comparison:
    grid = grid_of(cards, sources=(source,), targets=(target,), shots=(16,), seeds=(1,))
    return filled(grid, [{source.name: 0.9, target.name: 0.4}, {source.name: 0.5, target.name: 0.3}])


def test_transfer_averages_the_targets_and_leaves_the_source_out(cards: str) -> None:
    comparison = transfer(cards, Origin("imagenet"), Origin("right", datasets_dir=cards))
    table = transfer_table(comparison, "cross-dataset")
    assert table.headers == ("method", "backbone", "source: imagenet", "right", "average")
    assert rows_of(table, "coop")[0][-1] == "40.00"
    assert rows_of(table, "CoOp (published)") == [("71.51", "80.00", "80.00")]


def test_published_transfer_from_imagenet_never_stands_beside_that_from_another_set(cards: str) -> None:
    left, right = (Origin(name, datasets_dir=cards) for name in ("left", "right"))
    for source in (left, Origin("imagenet", data=cards)):
        table = transfer_table(transfer(cards, source, right), "cross-dataset")
        assert {row[0] for row in table.rows} == {"coop", "zero-shot"}


def test_a_missing_cell_leaves_a_blank_and_no_average(cards: str) -> None:
    grid = grid_of(cards)
    nothing = [None] * (len(grid.cells()) - 2)
    comparison = compare_cells(
        grid, [Outcome(FACTS, {"left": score(0.6)}), None, *nothing], [None, "no memory", *nothing]
    )
    table = few_shot_table(comparison)
    assert rows_of(table, "right", "coop") == [("–",)]  # noqa: RUF001
    assert rows_of(table, "average", "coop") == [("–",)]  # noqa: RUF001
    assert any("Not computed: coop on left, 1 shots, seed 2: no memory" in note for note in table.notes)


def test_failures_on_several_backbones_are_told_apart(cards: str) -> None:
    contenders = tuple(Contender("coop", CoOp(4), backbone) for backbone in ("tiny", "photo"))
    grid = grid_of(cards, sources=(Origin("left", datasets_dir=cards),), contenders=contenders, seeds=(1,))
    comparison = compare_cells(grid, [None, None], ["no memory", "no disk"])
    assert comparison.failures == {
        "coop (tiny) on left, 1 shots, seed 1": "no memory",
        "coop (photo) on left, 1 shots, seed 1": "no disk",
    }


def test_gains_are_over_zero_shot_and_not_over_a_method_whose_name_begins_so(cards: str) -> None:
    methods = {"zero-shot": ZeroShot(), "zero-shot tuned words": CoOp(2), "coop": CoOp(4)}
    contenders = tuple(Contender(name, method, "tiny") for name, method in methods.items())
    grid = grid_of(cards, sources=(Origin("left", datasets_dir=cards),), contenders=contenders, seeds=(1,))
    zero, *gains = filled(grid, [{"left": value} for value in (0.25, 0.75, 0.75)]).gains
    assert zero is None
    assert [gain and (gain.value, gain.over) for gain in gains] == [(0.5, "zero-shot")] * 2


def test_a_baseline_that_learns_is_stood_beside_shot_for_shot_and_seed_for_seed(cards: str) -> None:
    contenders = tuple(Contender(name, CoOp(2), "tiny") for name in ("zero-shot", "coop"))
    grid = grid_of(cards, sources=(Origin("left", datasets_dir=cards),), contenders=contenders, shots=(1, 2))
    scores = (0.25, 0.5, 0.5, 0.75)  # of each at 1 and 2 shots, two seeds
    gains = filled(grid, [{"left": value} for value in (*scores, *scores)]).gains
    assert [gain and (gain.value, gain.interval) for gain in gains] == [
        None,
        None,
        (0.0, (0.0, 0.0)),
        (0.0, (0.0, 0.0)),
    ]


def test_what_methods_cost_is_said_at_the_most_shots_however_they_were_named(cards: str) -> None:
    source, costs = Origin("left", datasets_dir=cards), {"file_bytes": 1000, "peak_bytes": 0}
    grid = grid_of(cards, sources=(source,), contenders=(Contender("coop", CoOp(4), "tiny"),), shots=(4, 1), seeds=(1,))
    n_shots = [cell.shots or 0 for cell in grid.cells()]
    outcomes = [Outcome({**FACTS, **costs, "n_parameters": n}, {"left": score(0.5)}) for n in n_shots]
    table = cost_table(compare_cells(grid, outcomes))
    assert rows_of(table, "coop")[0][0] == "4"
    assert "4 shots" in table.notes[0]


def test_published_rows_never_stand_beside_results_on_another_split(few_shot: Comparison) -> None:
    table = few_shot_table(replace(few_shot, official=frozenset({"left"})))
    assert not rows_of(table, "left", "CoOp (published)")
    assert rows_of(table, "right", "CoOp (published)")
    assert not rows_of(table, "average", "CoOp (published)")
    [note] = [note for note in table.notes if "No published rows" in note]
    assert note == ("No published rows on left: they were measured on CoOp's split, these results on the official one.")


def test_base_to_new_and_transfer_hold_published_rows_back_too(cards: str) -> None:
    coop = [{"base": 0.8, "new": 0.2}] * 4
    divided = filled(grid_of(cards, is_divided=True), coop + [{"base": 0.5, "new": 0.5}] * 2)
    table = base_to_new_table(replace(divided, official=frozenset({"left", "right"})))
    assert not any("(published)" in row[1] for row in table.rows)
    comparison = transfer(cards, Origin("imagenet"), Origin("right", datasets_dir=cards))
    table = transfer_table(replace(comparison, official=frozenset({"right"})), "cross-dataset")
    assert rows_of(table, "CoOp (published)") == [("71.51", "–", "–")]  # noqa: RUF001
    assert any("No published rows on right" in note for note in table.notes)


def test_a_set_without_published_rows_needs_no_word_on_them(few_shot: Comparison, cards: str) -> None:
    for name in ("left", "right"):
        card = Path(cards) / f"{name}.yaml"
        card.write_text(card.read_text().split("reference:")[0])
    table = few_shot_table(replace(few_shot, official=frozenset({"left"})))
    assert not any("published" in note for note in table.notes)


def eleven(is_divided: bool, shots: tuple[int, ...]) -> Comparison:
    """The eleven sets, one method, everything half right."""
    contenders = (Contender("coop", CoOp(), "tiny"),)
    grid = Grid(tuple(Origin(name) for name in ELEVEN), contenders, shots, (1,), is_divided=is_divided)
    targets = ("base", "new") if is_divided else ()
    return filled(grid, [dict.fromkeys(targets or (cell.source.name,), 0.5) for cell in grid.cells()])


def test_printed_averages_fill_what_the_rows_of_eleven_sets_cannot_give() -> None:
    table = base_to_new_table(eleven(is_divided=True, shots=(16,)))
    assert rows_of(table, "average", "CoOp (published)") == [("82.69", "63.22", "71.66")]
    assert rows_of(table, "average", "CoCoOp (published)") == [("80.47", "71.69", "75.83")]
    assert rows_of(table, "average", "MaPLe (published)") == [("82.28", "75.14", "78.55")]
    assert rows_of(table, "average", "PromptSRC (published)") == [("84.26", "76.10", "79.97")]
    assert any("PromptSRC on ViT-B/16" in note and "README of PromptSRC" in note for note in table.notes)
    [readme] = [note for note in table.notes if "README of MaPLe" in note]
    assert "CoCoOp on" in readme
    assert " CoOp on" not in readme  # computed from its rows


def test_a_printed_average_fills_the_gaps_of_a_computed_one() -> None:
    table = few_shot_table(eleven(is_divided=False, shots=(8, 16)))
    assert rows_of(table, "average", "MaPLe (published)") == [("78.89", "81.79")]
    assert rows_of(table, "average", "CoCoOp (published)") == [("72.96", "74.90")]


def test_base_to_new_has_the_published_rows_of_its_own_number_of_shots() -> None:
    methods = {row[1] for row in base_to_new_table(eleven(is_divided=True, shots=(4,))).rows}
    assert methods == {"coop", "CLIP (published)"}


def test_printed_averages_stand_beside_the_same_sets_and_the_same_split_alone() -> None:
    whole = eleven(is_divided=True, shots=(16,))
    official = base_to_new_table(replace(whole, official=frozenset({"dtd"})))
    fewer = base_to_new_table(replace(whole, grid=replace(whole.grid, sources=whole.grid.sources[:-1])))
    for table in (official, fewer):
        assert not rows_of(table, "average", "PromptSRC (published)")


def test_the_four_forms_hold_the_same_cells(few_shot: Comparison, tmp_path: Path) -> None:
    table = LAYOUTS["few-shot"](few_shot)
    rows = list(csv.reader(io.StringIO(render(table, "csv"))))
    assert [tuple(row) for row in rows] == [table.headers, *table.rows]
    for form in ("text", "markdown", "latex"):
        shown = render(table, form)
        assert all(cell in shown for row in table.rows for cell in row)
    write_tables(table, tmp_path, "table")
    assert {path.suffix for path in tmp_path.glob("table.*")} == set(SUFFIXES.values())


def test_signs_of_each_form_are_escaped() -> None:
    table = Table(("name",), (("a|b_c & 5 %",),), 1)
    assert r"a\|b_c" in render(table, "markdown")
    assert r"b\_c \& 5 \%" in render(table, "latex")
