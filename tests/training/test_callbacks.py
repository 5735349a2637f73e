from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mmprompt.errors import UserError
from mmprompt.training.callbacks import Callback, CSVLogger, EarlyStopping, ProgressBar, WeightAverage
from mmprompt.training.loop import train
from mmprompt.training.problem import Run
from mmprompt.training.recipe import Recipe
from tests.training.toy import Toy, same, weights

RECIPE = Recipe(lr=0.05, batch_size=5, checkpoint_seconds=0)


class Diary(Callback):
    """Writes down every call, and the weights at each epoch's end."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls: list[str] = []
        self.weights: list[Any] = []
        self.fail_at = fail_at

    def on_train_begin(self, run: Run) -> None:
        self.calls.append("train begin")

    def on_epoch_begin(self, run: Run, epoch: int) -> None:
        self.calls.append(f"epoch {epoch} begin")

    def on_step_end(self, run: Run, step: int, logs: Mapping[str, float]) -> None:
        self.calls.append(f"step {step} end")

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        self.calls.append(f"epoch {epoch} end")
        self.weights.append(weights(run.problem))  # type: ignore[arg-type]
        if epoch == self.fail_at:
            raise LookupError("a mistake in the callback")

    def on_train_end(self, run: Run) -> None:
        self.calls.append("train end")

    def close(self) -> None:
        self.calls.append("close")


def test_the_hooks_are_called_in_order() -> None:
    diary = Diary()
    train(Toy(), RECIPE, 1, 1, callbacks=[diary])
    assert diary.calls == [
        *("train begin", "epoch 0 begin", "step 0 end", "step 1 end", "epoch 0 end", "train end", "close")
    ]


def test_an_exception_of_a_callback_is_not_swallowed_and_callbacks_are_closed() -> None:
    diary = Diary(fail_at=0)
    with pytest.raises(LookupError, match="a mistake in the callback"):
        train(Toy(), RECIPE, 1, 2, callbacks=[diary])
    assert diary.calls[-2:] == ["epoch 0 end", "close"]


def test_what_a_callback_adds_to_a_record_is_logged() -> None:
    class Adds(Callback):
        def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
            logs["norm"] = 2.0

    assert train(Toy(), RECIPE, 1, 1, callbacks=[Adds()])[0]["norm"] == 2.0


def test_early_stopping_waits_for_its_patience_and_goes_back_to_the_best() -> None:
    problem, diary = Toy(validation=[0.2, 0.6, 0.5, 0.6, 0.9, 0.9]), Diary()
    history = train(problem, RECIPE, 1, 6, callbacks=[diary, EarlyStopping(2)])
    assert [record["val_accuracy"] for record in history] == [0.2, 0.6, 0.5, 0.6]
    assert same(weights(problem), diary.weights[1])


def test_a_better_epoch_starts_the_patience_again() -> None:
    problem = Toy(validation=[0.5, 0.4, 0.6, 0.5, 0.7, 0.6])
    assert len(train(problem, RECIPE, 1, 6, callbacks=[EarlyStopping(2)])) == 6


def test_growth_of_no_more_than_min_delta_does_not_count() -> None:
    problem, diary = Toy(validation=[0.5, 0.52, 0.54, 0.9]), Diary()
    assert len(train(problem, RECIPE, 1, 4, callbacks=[diary, EarlyStopping(2, min_delta=0.05)])) == 3
    assert same(weights(problem), diary.weights[0])


def test_the_best_weights_come_back_when_the_epochs_run_out_too() -> None:
    problem, diary = Toy(validation=[0.2, 0.6, 0.5]), Diary()
    train(problem, RECIPE, 1, 3, callbacks=[diary, EarlyStopping(5)])
    assert same(weights(problem), diary.weights[1])


def test_the_recipes_patience_is_early_stopping() -> None:
    problem = Toy(validation=[0.5, 0.4, 0.9])
    assert len(train(problem, Recipe(batch_size=5, patience=1), 1, 3)) == 2


def test_the_best_epoch_and_an_average_of_all_are_not_both_kept() -> None:
    with pytest.raises(UserError, match="cannot both be kept"):
        train(Toy(), Recipe(batch_size=5, patience=1), 1, 3, callbacks=[WeightAverage(1.0, 1.0)])


def test_without_patience_the_validation_part_is_never_looked_at() -> None:
    class Untouchable(Toy):
        def validate(self) -> float | None:
            raise LookupError("validated without being asked")

    assert len(train(Untouchable(), RECIPE, 1, 2)) == 2


def test_early_stopping_without_a_validation_part_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this data has no validation part"):
        train(Toy(), Recipe(patience=1), 1, 2, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [(0,), (1, -0.1), (1, 1.0)])
def test_early_stopping_refuses_values_out_of_range(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(UserError, match=r"patience is 0|min_delta is"):
        EarlyStopping(*arguments)


@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_early_stopping_resumes_as_if_nothing_had_happened(tmp_path: Path, fail_at: int) -> None:
    script = [0.2, 0.6, 0.5, 0.4, 0.3, 0.9]
    recipe = Recipe(lr=0.05, batch_size=5, checkpoint_seconds=0, patience=3)
    whole, second = Toy(validation=script), Toy(validation=script[fail_at:])
    expected = train(whole, recipe, 1, 6)
    with pytest.raises(LookupError):
        train(Toy(validation=script), recipe, 1, 6, tmp_path, "id", [Diary(fail_at)])
    history = train(second, recipe, 1, 6, tmp_path, "id", resume=True)
    assert [record["val_accuracy"] for record in history] == [record["val_accuracy"] for record in expected]
    assert same(weights(second), weights(whole))


def test_a_run_that_stopped_early_is_not_trained_further_by_a_resume(tmp_path: Path) -> None:
    recipe = Recipe(batch_size=5, patience=1)
    first, second = Toy(validation=[0.5, 0.4, 0.9]), Toy(validation=[0.9])
    train(first, recipe, 1, 3, tmp_path, "id")
    assert len(train(second, recipe, 1, 3, tmp_path, "id", resume=True)) == 2
    assert same(weights(second), weights(first))


def test_one_early_stopping_serves_two_trainings() -> None:
    stopping = EarlyStopping(1)
    train(Toy(validation=[0.9, 0.8]), RECIPE, 1, 2, callbacks=[stopping])
    assert len(train(Toy(validation=[0.1, 0.2, 0.3]), RECIPE, 1, 3, callbacks=[stopping])) == 3


def test_a_resume_without_the_callback_whose_state_was_saved_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LookupError):
        train(Toy(validation=[]), RECIPE, 1, 3, tmp_path, "id", [EarlyStopping(3), Diary(2)])
    with pytest.raises(UserError, match=r"state of a callback 'EarlyStopping-0' that was not given"):
        train(Toy(validation=[]), RECIPE, 1, 3, tmp_path, "id", resume=True)


def test_a_csv_has_a_row_per_epoch_also_after_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "epochs.csv"
    with pytest.raises(LookupError):
        train(Toy(), RECIPE, 1, 4, tmp_path / "run", "id", [CSVLogger(path), Diary(2)])
    history = train(Toy(), RECIPE, 1, 4, tmp_path / "run", "id", [CSVLogger(path)], resume=True)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert [float(row["loss"]) for row in rows] == [record["loss"] for record in history]


def test_a_csv_has_what_later_callbacks_added_to_the_last_epoch_too(tmp_path: Path) -> None:
    history = train(Toy(validation=[]), RECIPE, 1, 2, callbacks=[CSVLogger(tmp_path / "a.csv"), EarlyStopping(5)])
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [float(row["val_accuracy"]) for row in rows] == [record["val_accuracy"] for record in history]


def test_a_csv_may_lie_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    train(Toy(), RECIPE, 1, 1, callbacks=[CSVLogger("~/epochs.csv")])
    assert (tmp_path / "epochs.csv").is_file()


def test_a_csv_path_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder, not a CSV file"):
        train(Toy(), RECIPE, 1, 1, callbacks=[CSVLogger(tmp_path)])


def test_off_a_terminal_progress_is_plain_lines() -> None:
    output = io.StringIO()
    bar = ProgressBar(Console(file=output), seconds_between_lines=0)
    train(Toy(validation=[]), Recipe(batch_size=5, patience=9), 1, 3, callbacks=[bar])
    lines = output.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert all(word in lines[0] for word in ("loss ", "accuracy ", "val ", "lr 1e-05", "left"))
    assert "\x1b" not in output.getvalue()


def test_quick_epochs_do_not_flood_a_log_with_lines() -> None:
    output = io.StringIO()
    train(Toy(), RECIPE, 1, 30, callbacks=[ProgressBar(Console(file=output), seconds_between_lines=3600)])
    assert [line.split("  ")[0] for line in output.getvalue().splitlines()] == ["epoch 1/30", "epoch 30/30"]


def test_on_a_terminal_progress_is_one_bar_that_is_taken_down_after_an_error() -> None:
    output = io.StringIO()
    bar = ProgressBar(Console(file=output, force_terminal=True, width=120))
    with pytest.raises(LookupError):
        train(Toy(), RECIPE, 1, 3, callbacks=[bar, Diary(fail_at=1)])
    text = output.getvalue()
    assert "epoch 2/3" in text
    assert "4/6" in text
    assert text.rstrip().endswith("\x1b[?25h"), "the cursor must be shown again"
