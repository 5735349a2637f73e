"""The search: it varies what it is told, chooses on validation alone, and goes on where it was."""

from __future__ import annotations

import os
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from mmprompt.core.fit import fit
from mmprompt.errors import UserError
from mmprompt.experiments.grid import Origin
from mmprompt.experiments.study import KNOWN, Range, open_study, read_space, take_trial
from mmprompt.experiments.tune import (
    ReportValidation,
    Search,
    SearchResult,
    check_ends,
    recipe_yaml,
    tune,
    without_broken,
    write_search,
)
from mmprompt.experiments.workers import Workers
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.reports.figures import Trial
from mmprompt.terminal.parser import read_settings
from mmprompt.training.problem import RunFailed
from tests.fixtures.cli_run import write_pictures

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60)}


@pytest.fixture(scope="session")
def split_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tuned") / "colours"
    for part, n in (("train", 3), ("val", 2), ("test", 2)):
        write_pictures(root / part, COLOURS, n)
    return root


@pytest.fixture
def search(split_folder: Path, tiny_open_clip_folder: Path) -> Search:
    space = {"lr": Range(1e-3, 0.5, False), "n_ctx": Range(1, 3, True)}
    origin = Origin("colours", str(split_folder))
    return Search(origin, str(tiny_open_clip_folder), "coop", {}, {"epochs": 2, "augment": "none"}, space, 2)


def test_the_search_holds_no_test_pictures(search: Search) -> None:
    data = search.load(1)
    assert data.test == ()
    assert data.val


def test_a_range_that_the_backbone_cannot_hold_is_refused_with_the_way_to_narrow_it(
    search: Search, tmp_path: Path
) -> None:
    wide = replace(search, space={"n_ctx": Range(1, 99, True)})
    with pytest.raises(UserError, match=r"99.* The search would try n_ctx 99: narrow a range, as in n_ctx=1:8\."):
        tune(wide, f"sqlite:///{tmp_path}/s.db", 1, device="cpu")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["openart-category", "openart-large"])
def test_the_usual_ranges_fit_the_usual_backbone(name: str) -> None:
    space = {setting: KNOWN[setting] for setting in ("lr", "epochs", "weight_decay", "batch_size", "n_ctx")}
    search = Search(Origin(name), "tiny", "coop", {}, {}, space, 1)
    check_ends(search, load_backbone("tiny", "cpu"), search.load(1))


def test_test_pictures_need_not_even_be_readable(
    tmp_path: Path, split_folder: Path, tiny_open_clip_folder: Path, search: Search
) -> None:
    root = tmp_path / "colours"
    for part in ("train", "val"):
        write_pictures(root / part, COLOURS, 2)
    for name in COLOURS:
        (root / "test" / name).mkdir(parents=True)
        (root / "test" / name / "0.png").write_bytes(b"no picture")
    found = tune(replace(search, origin=Origin("own", str(root))), f"sqlite:///{tmp_path}/s.db", 1, device="cpu")
    assert len(found.trials) == 1


def test_data_without_validation_is_refused(tmp_path: Path, search: Search) -> None:
    write_pictures(tmp_path / "own", COLOURS, 4)
    own = replace(search, origin=Origin("own", str(tmp_path / "own")))
    with pytest.raises(UserError, match="no validation images"):
        tune(own, f"sqlite:///{tmp_path}/s.db", 1, device="cpu")


def test_a_study_goes_on_to_the_number_that_is_asked_for(tmp_path: Path, search: Search) -> None:
    storage = f"sqlite:///{tmp_path}/s.db"
    seen: list[tuple[str, int, int]] = []
    first = tune(search, storage, 2, device="cpu", progress=lambda *count: seen.append(count))
    assert seen[-1] == ("trials", 2, 2)
    again = tune(search, storage, 3, device="cpu")
    assert (len(first.trials), len(again.trials)) == (2, 3)
    assert list(again.trials[:2]) == list(first.trials)


def test_another_search_does_not_mix_with_it(tmp_path: Path, search: Search) -> None:
    storage = f"sqlite:///{tmp_path}/s.db"
    tune(search, storage, 1, device="cpu")
    other = tune(replace(search, recipe={"epochs": 1, "augment": "none"}), storage, 1, device="cpu")
    assert len(other.trials) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "linear-probe", "recipe": {}, "space": {"inverse_strength": Range(0.1, 10.0, False)}},
        {"method": "coop+gda", "settings": {"n_ctx": 1}, "space": {"lr": Range(1e-3, 0.5, False)}},
    ],
    ids=["linear-probe", "coop+gda"],
)
def test_a_trial_counts_with_the_accuracy_of_what_is_kept(
    changes: dict[str, Any], tmp_path: Path, search: Search
) -> None:
    own = replace(search, **changes)
    best, data = tune(own, f"sqlite:///{tmp_path}/s.db", 1, device="cpu").best, own.load(1)
    made, recipe = own.parts(best.settings, data)
    steps = recipe if made.is_trained else None
    kept = fit(made, load_backbone(own.backbone, "cpu"), data, recipe=steps, progress=False)
    assert best.accuracy == kept.evaluate(data.val).accuracy > 0


def test_settings_of_steps_are_neither_searched_nor_fixed_where_none_are_taken(tmp_path: Path, search: Search) -> None:
    probe = replace(search, method="linear-probe", space={"lr": Range(1e-3, 0.5, False)})
    with pytest.raises(UserError, match=r"^lr is a setting of steps, but linear-probe takes none\. Search"):
        tune(probe, f"sqlite:///{tmp_path}/s.db", 1, device="cpu")
    fixed = replace(probe, space={"inverse_strength": Range(0.1, 10.0, False)})
    with pytest.raises(UserError, match=r"^epochs is 2, but linear-probe is not trained by steps\. Leave `epochs` out"):
        tune(fixed, f"sqlite:///{tmp_path}/s.db", 1, device="cpu")
    assert not (tmp_path / "s.db").exists()


def test_values_stay_within_their_range(tmp_path: Path, search: Search) -> None:
    found = tune(search, f"sqlite:///{tmp_path}/s.db", 3, device="cpu")
    for trial in found.trials:
        assert all(limits.holds(trial.settings[name]) for name, limits in search.space.items())
    assert found.best.accuracy == max(trial.accuracy for trial in found.trials if not trial.is_pruned)


def test_the_search_starts_from_the_published_settings_where_they_are_in_its_range(
    tmp_path: Path, search: Search
) -> None:
    wide = replace(search, space={"lr": KNOWN["lr"]}, settings={"n_ctx": 2})
    found = tune(wide, f"sqlite:///{tmp_path}/s.db", 1, device="cpu")
    assert found.default == found.trials[0]
    assert found.trials[0].settings == {"lr": 0.002}


def test_a_storage_that_cannot_be_used_is_one_line() -> None:
    with pytest.raises(UserError, match="`storage='sqlite") as refusal:
        open_study("nonsense", "name")
    assert "\n" not in str(refusal.value)


def test_the_recipe_is_one_that_train_reads(tmp_path: Path, search: Search) -> None:
    found = tune(search, f"sqlite:///{tmp_path}/s.db", 1, device="cpu")
    page = write_search(search, found, tmp_path / "out", "mmprompt tune")
    settings = read_settings(tmp_path / "out" / "recipe.yaml")
    assert settings["lr"] == found.best.settings["lr"]
    assert settings["epochs"] == 2
    assert settings["method"] == "coop"
    assert page is not None
    assert {"recipe.yaml", "trials.csv", "sensitivity.png", "report.html"} <= {p.name for p in page.parent.iterdir()}


def test_the_recipe_keeps_the_one_seed_and_that_broken_pictures_are_left_out(search: Search) -> None:
    def recipe(**changes: object) -> dict[str, object]:
        return yaml.safe_load(recipe_yaml(replace(search, **changes), found))

    best = Trial({"lr": 0.01}, 0.5, False)
    found = SearchResult((best,), best, None, 0)
    broken = replace(search.origin, broken=("val/red/0.png",))
    assert {"seed": 3, "skip_broken": True}.items() <= recipe(seeds=(3,), origin=broken).items()
    assert not {"seed", "skip_broken"} & recipe(seeds=(1, 2)).keys()


def test_the_page_names_the_range_that_comes_within_a_point_and_the_gain_over_the_start(
    tmp_path: Path, search: Search
) -> None:
    trials = [Trial({"lr": lr}, accuracy, False) for lr, accuracy in ((0.001, 0.5), (0.01, 0.805), (0.1, 0.81))]
    found = SearchResult((*trials, Trial({"lr": 1.0}, 0.99, True)), trials[2], trials[0], 0)
    page = write_search(replace(search, space={"lr": KNOWN["lr"]}), found, tmp_path, "mmprompt tune")
    assert page is not None
    text = " ".join(page.read_text().split())
    assert "lr: tried from 0.001 to 1; within a point of the best from 0.01 to 0.1 (2 trials)." in text
    assert "a gain of +31.0 points" in text


@pytest.mark.parametrize("space", [{"n_ctx": Range(1, 500, True)}, {"lr": Range(-1.0, 1.0, False)}])
def test_a_range_with_an_end_that_cannot_be_is_refused_at_the_start(
    tmp_path: Path, search: Search, space: dict[str, Range]
) -> None:
    with pytest.raises(UserError):
        tune(replace(search, space=space), f"sqlite:///{tmp_path}/s.db", 1, device="cpu")
    assert not (tmp_path / "s.db").exists()


def test_a_broken_validation_picture_is_met_before_any_trial(
    tmp_path: Path, split_folder: Path, search: Search
) -> None:
    root = tmp_path / "own"
    shutil.copytree(split_folder, root)
    (root / "val" / "red" / "0.png").write_bytes(b"no picture")
    own, storage = replace(search, origin=Origin("own", str(root))), f"sqlite:///{tmp_path}/s.db"
    with pytest.raises(UserError, match=r"0\.png"):
        tune(own, storage, 1, device="cpu")
    assert not (tmp_path / "s.db").exists()
    assert len(tune(without_broken(own), storage, 1, device="cpu").trials) == 1


def test_going_on_draws_other_values_than_before(tmp_path: Path) -> None:
    storage, drawn = f"sqlite:///{tmp_path}/s.db", []
    for _ in range(2):
        study = open_study(storage, "name")
        trial = study.ask()
        take_trial(study, trial)
        drawn.append(trial.suggest_float("lr", 0, 1))
        study.tell(trial, 0.5)
    assert drawn[0] != drawn[1]


def test_trials_of_any_length_are_compared_at_the_same_share_of_their_training() -> None:
    def reports(n_epochs: int) -> list[int]:
        seen: list[int] = []
        trial = SimpleNamespace(report=lambda accuracy, step: seen.append(step), should_prune=lambda: False)
        run = SimpleNamespace(n_epochs=n_epochs, problem=SimpleNamespace(validate=lambda: 0.5))
        listener = ReportValidation(trial)
        for epoch in range(n_epochs):
            listener.on_epoch_end(run, epoch, {})
        return seen

    assert reports(200) == reports(20) == list(range(1, 21))
    assert reports(4) == [5, 10, 15, 20]


@pytest.mark.slow
def test_workers_that_die_are_told(tmp_path: Path, search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmprompt.experiments.workers._child", os.abort)
    with pytest.raises(RunFailed, match="2 of 2 trials not done"):
        tune(search, f"sqlite:///{tmp_path}/s.db", 2, workers=Workers(2), device="cpu")


def test_a_study_whose_tables_were_made_when_a_kill_came_is_opened_again(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    open_study(storage, "other")
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("DROP INDEX ix_studies_study_name")
    assert open_study(storage, "own").study_name == open_study(storage, "own").study_name


def test_a_space_is_read_from_names_and_ranges() -> None:
    space = read_space(["lr=1e-3:0.5", "n-ctx=2:8", "epochs"], ["n_ctx"])
    assert space == {"lr": Range(1e-3, 0.5, False), "n_ctx": Range(2, 8, True), "epochs": KNOWN["epochs"]}


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["lrr"], "Did you mean 'lr'"),
        (["n_visual"], "n_ctx"),
        (["lr", "lr"], "named once"),
        (["lr=1"], "low:high"),
        (["lr=1:0.1"], "low:high"),
        (["lr=0:1"], "above 0"),
        (["n_ctx=1.5:3"], "whole numbers"),
        ([], "nothing was named"),
    ],
)
def test_a_space_that_cannot_be_is_refused(texts: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_space(texts, ["n_ctx"])
