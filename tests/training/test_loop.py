from __future__ import annotations

import logging
import math
import os
import random
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmprompt.errors import UserError
from mmprompt.training.callbacks import Callback
from mmprompt.training.checkpoint import checkpoint_folders
from mmprompt.training.loop import train
from mmprompt.training.problem import Run, RunFailed, StepResult
from mmprompt.training.recipe import Recipe
from mmprompt.training.run_files import read_log
from mmprompt.training.seeds import batches, epoch_order
from tests.training.toy import Toy, same, weights

RECIPE = Recipe(lr=0.05, batch_size=4, checkpoint_seconds=0)
ADAMW = Recipe(lr=0.05, batch_size=4, checkpoint_seconds=0, optimizer="adamw")
STEPS = replace(ADAMW, n_steps=11, schedule="step", min_lr=1e-3)


class StopAt(Callback):
    """Fails at the end of one epoch, as a broken callback would."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        if epoch == self.epoch:
            raise LookupError("a mistake in the callback")


class SignalAt(Toy):
    """Sends its own process a signal in the first step of one epoch."""

    def __init__(self, epoch: int, number: int) -> None:
        super().__init__()
        self.epoch, self.number = epoch, number

    def step(self, indices: list[int], epoch: int) -> StepResult:
        if epoch == self.epoch and self.visits[-1][0] != epoch:
            os.kill(os.getpid(), self.number)
        return super().step(indices, epoch)


class NanAt(Toy):
    """Gives a NaN loss in the second step of the third epoch."""

    def step(self, indices: list[int], epoch: int) -> StepResult:
        result = super().step(indices, epoch)
        is_place = [visit for visit, _ in self.visits].count(2) == 2
        return StepResult({"cross_entropy": result.losses["cross_entropy"] * (math.nan if is_place else 1)}, 0)


def without_seconds(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def test_the_weights_are_those_of_ten_lines_of_plain_pytorch_bit_for_bit() -> None:
    ours, plain = Toy(), Toy()
    train(ours, RECIPE, seed=3, n_epochs=5)
    optimizer = torch.optim.SGD(plain.module.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in range(5):
        rate = 1e-5 if epoch == 0 else 0.05 * (1 + math.cos(math.pi * (epoch - 1) / 5)) / 2
        optimizer.param_groups[0]["lr"] = rate
        for indices in batches(epoch_order(3, epoch, 10), 4):
            loss = plain.step(indices, epoch).losses["cross_entropy"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert same(weights(ours), weights(plain))


def test_by_the_step_the_weights_are_those_of_plain_pytorch_too() -> None:
    ours, plain = Toy(), Toy()
    recipe = replace(RECIPE, schedule="step", n_steps=9, min_lr=0.01, warmup_epochs=0)
    train(ours, recipe, seed=3, n_epochs=99)
    optimizer = torch.optim.SGD(plain.module.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for step in range(9):  # two batches an epoch, the last epoch cut short
        optimizer.param_groups[0]["lr"] = 0.01 + 0.04 * (1 + math.cos(math.pi * (step // 2 + step % 2 / 2) / 4.5)) / 2
        indices = batches(epoch_order(3, step // 2, 10), 4)[step % 2]
        loss = plain.step(indices, step // 2).losses["cross_entropy"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert ours.visits == plain.visits
    assert same(weights(ours), weights(plain))


@pytest.mark.parametrize(("n_steps", "visits"), [(1, [1]), (2, [2]), (3, [2, 1]), (6, [2, 2, 2])])
def test_so_many_steps_are_made_and_the_last_epoch_is_cut_short(n_steps: int, visits: list[int]) -> None:
    problem = Toy()
    history = train(problem, replace(RECIPE, n_steps=n_steps), 1, 99)
    assert [sum(at == epoch for at, _ in problem.visits) for epoch in range(len(history))] == visits


def test_every_epoch_visits_each_item_at_most_once_in_a_new_order() -> None:
    problem = Toy()
    train(problem, RECIPE, 1, 3)
    visits = [[index for at, indices in problem.visits if at == epoch for index in indices] for epoch in range(3)]
    assert all(len(set(visit)) == 8 for visit in visits)
    assert len({tuple(visit) for visit in visits}) == 3


def test_fewer_items_than_a_batch_are_one_batch() -> None:
    problem = Toy(n_items=3)
    train(problem, RECIPE, 1, 2)
    assert [len(indices) for _, indices in problem.visits] == [3, 3]


def test_a_record_holds_means_over_the_items() -> None:
    problem = Toy()
    recipe = Recipe(lr=0.05, batch_size=4, warmup_lr=0)
    (record,) = train(problem, recipe, 1, 1)
    results = [problem.step(indices, epoch) for epoch, indices in list(problem.visits)]
    assert list(record) == ["epoch", "lr", "loss", "cross_entropy", "accuracy", "seconds"]
    assert record["loss"] == pytest.approx(
        sum(float(result.losses["cross_entropy"].detach()) for result in results) / 2
    )
    assert record["accuracy"] == pytest.approx(sum(result.n_correct or 0 for result in results) / 8)
    assert (record["epoch"], record["lr"]) == (1, 0)


def test_a_problem_that_counts_nothing_right_has_no_accuracy() -> None:
    class Uncounted(Toy):
        def step(self, indices: list[int], epoch: int) -> StepResult:
            return StepResult(super().step(indices, epoch).losses)

    assert "accuracy" not in train(Uncounted(), RECIPE, 1, 1)[0]


def test_the_log_on_disk_is_the_history_that_is_returned(tmp_path: Path) -> None:
    history = train(Toy(), RECIPE, 1, 3, tmp_path / "run")
    assert read_log(tmp_path / "run" / "log.jsonl") == history


class Adds(Callback):
    """Adds one value to the record of an epoch."""

    def __init__(self, value: Any, epoch: int = 0) -> None:
        self.value, self.epoch = value, epoch

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        if epoch == self.epoch:
            logs["own"] = self.value


@pytest.mark.parametrize("value", [np.float32(0.5), torch.tensor(0.5), torch.tensor([0.5]), 0.5, "0.5"])
def test_what_a_callback_adds_is_a_number_or_a_text_with_and_without_a_folder(value: Any, tmp_path: Path) -> None:
    for folder in (None, tmp_path / "run"):
        (record,) = train(Toy(), RECIPE, 1, 1, folder, callbacks=[Adds(value)])
        assert record["own"] == (value if isinstance(value, str) else 0.5)
        assert type(record["own"]) in (float, str)
    assert read_log(tmp_path / "run" / "log.jsonl") == [record]


@pytest.mark.parametrize("value", [math.nan, torch.zeros(2), None])
def test_what_a_callback_adds_and_is_no_finite_number_ends_the_run_with_its_checkpoints(
    value: Any, tmp_path: Path
) -> None:
    for folder in (None, tmp_path / "run"):
        with pytest.raises(RunFailed, match=r"^own in the record of epoch 2 is .*, but a finite number was expected"):
            train(Toy(), RECIPE, 1, 3, folder, "id", [Adds(value, epoch=1)])
    resumed, whole = Toy(), Toy()
    assert len(train(resumed, RECIPE, 1, 3, tmp_path / "run", "id", resume=True)) == 3
    train(whole, RECIPE, 1, 3)
    assert same(weights(resumed), weights(whole))


def test_writing_checkpoints_does_not_change_what_is_learned(tmp_path: Path) -> None:
    with_folder, without = Toy(dropout=0.5), Toy(dropout=0.5)
    train(with_folder, RECIPE, 1, 4, tmp_path / "run")
    train(without, RECIPE, 1, 4)
    assert same(weights(with_folder), weights(without))


def test_the_global_generator_is_left_as_it_was() -> None:
    problem = Toy(dropout=0.5)
    before = torch.random.get_rng_state()
    train(problem, RECIPE, 1, 1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_global_generator_has_no_say_in_what_is_learned() -> None:
    problems = [Toy(dropout=0.5), Toy(dropout=0.5)]
    for seed, problem in enumerate(problems):
        torch.manual_seed(seed)
        train(problem, RECIPE, 1, 2)
    assert same(weights(problems[0]), weights(problems[1]))


@pytest.mark.parametrize("recipe", [RECIPE, ADAMW, STEPS], ids=["sgd", "adamw", "steps"])
@pytest.mark.parametrize("stop", [1, 4, 5])
def test_a_resumed_run_ends_in_the_same_bytes(tmp_path: Path, recipe: Recipe, stop: int) -> None:
    whole, first, second = (Toy(dropout=0.3) for _ in range(3))
    expected = train(whole, recipe, 1, 6)
    with pytest.raises(LookupError):
        train(first, recipe, 1, 6, tmp_path, "id", [StopAt(stop)])
    history = train(second, recipe, 1, 6, tmp_path, "id", resume=True)
    assert same(weights(second), weights(whole))
    assert without_seconds(history) == without_seconds(expected)
    assert {epoch for epoch, _ in second.visits} == set(range(stop, 6))


def test_a_resumed_log_holds_no_epoch_twice(tmp_path: Path) -> None:
    with pytest.raises(LookupError):
        train(Toy(), RECIPE, 1, 6, tmp_path, "id", [StopAt(3)])
    with (tmp_path / "log.jsonl").open("a") as handle:
        handle.write('{"epoch": 4}\n{"epoch": 5, "lo')
    train(Toy(), RECIPE, 1, 6, tmp_path, "id", resume=True)
    assert [record["epoch"] for record in read_log(tmp_path / "log.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_damaged_newest_checkpoint_costs_one_epoch_and_no_bit(tmp_path: Path) -> None:
    whole, second = Toy(), Toy()
    train(whole, RECIPE, 1, 6)
    with pytest.raises(LookupError):
        train(Toy(), RECIPE, 1, 6, tmp_path, "id", [StopAt(4)])
    (tmp_path / "checkpoint" / "epoch-000004" / "manifest.json").unlink()
    train(second, RECIPE, 1, 6, tmp_path, "id", resume=True)
    assert {epoch for epoch, _ in second.visits} == {3, 4, 5}
    assert same(weights(second), weights(whole))


def test_resuming_a_finished_run_trains_nothing_and_gives_its_weights(tmp_path: Path) -> None:
    first, second = Toy(), Toy()
    history = train(first, RECIPE, 1, 3, tmp_path, "id")
    assert train(second, RECIPE, 1, 3, tmp_path, "id", resume=True) == history
    assert same(weights(second), weights(first))
    assert second.visits == []


def test_resuming_without_a_checkpoint_starts_anew_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(train(Toy(), RECIPE, 1, 2, tmp_path / "new", "id", resume=True)) == 2
    assert "holds no usable checkpoint; training starts from the beginning" in caplog.text


def test_an_unfinished_run_is_not_overwritten(tmp_path: Path) -> None:
    train(Toy(), RECIPE, 1, 2, tmp_path, "id")
    before = (tmp_path / "log.jsonl").read_bytes()
    with pytest.raises(UserError, match="holds the checkpoints of an earlier run"):
        train(Toy(), RECIPE, 1, 2, tmp_path, "id")
    assert (tmp_path / "log.jsonl").read_bytes() == before


def test_a_checkpoint_of_another_run_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    train(Toy(), RECIPE, 1, 2, tmp_path, "id")
    before, problem = (tmp_path / "log.jsonl").read_bytes(), Toy()
    with pytest.raises(UserError, match="is a checkpoint of another run"):
        train(problem, RECIPE, 1, 2, tmp_path, "another", resume=True)
    assert (tmp_path / "log.jsonl").read_bytes() == before
    assert same(weights(problem), weights(Toy()))


def test_a_checkpoint_that_does_not_fit_the_module_is_refused_in_one_line(tmp_path: Path) -> None:
    train(Toy(), RECIPE, 1, 2, tmp_path, "id")
    problem = Toy()
    problem.module = torch.nn.Linear(5, 4)
    with pytest.raises(UserError, match="does not fit this prompt"):
        train(problem, RECIPE, 1, 2, tmp_path, "id", resume=True)


@pytest.mark.parametrize(("every", "kept"), [(1, [7, 6, 5]), (3, [7, 6, 3]), (10, [7])])
def test_checkpoints_come_every_so_many_epochs_and_at_the_end(tmp_path: Path, every: int, kept: list[int]) -> None:
    recipe = Recipe(batch_size=4, checkpoint_every=every, checkpoint_seconds=0)
    train(Toy(), recipe, 1, 7, tmp_path, "id")
    folders = checkpoint_folders(tmp_path / "checkpoint")
    assert [path.name for path in folders] == [f"epoch-{epoch:06d}" for epoch in kept]


def test_quick_epochs_are_saved_at_the_end_alone(tmp_path: Path) -> None:
    train(Toy(), Recipe(batch_size=4, checkpoint_seconds=3600), 1, 7, tmp_path, "id")
    assert [path.name for path in checkpoint_folders(tmp_path / "checkpoint")] == ["epoch-000007"]


def test_a_nan_loss_ends_the_run_and_names_the_place(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"became nan in epoch 3, step 2 of 2\. Try a lower `lr`") as caught:
        train(NanAt(), RECIPE, 1, 5, tmp_path, "id")
    assert "\n" not in str(caught.value)
    assert f"The checkpoints in {tmp_path / 'checkpoint'} are from before." in str(caught.value)
    assert checkpoint_folders(tmp_path / "checkpoint")[0].name == "epoch-000002"
    assert len(read_log(tmp_path / "log.jsonl")) == 2


def test_weights_that_overflow_in_the_last_step_are_never_saved(tmp_path: Path) -> None:
    class Overflowing(Toy):
        def step(self, indices: list[int], epoch: int) -> StepResult:
            return StepResult({"steep": sum(value.sum() for value in self.module.parameters()) * 1e37}, 0)

    with pytest.raises(RunFailed, match="module/weight became nan or infinite in epoch 1") as caught:
        train(Overflowing(n_items=3), Recipe(lr=100, warmup_epochs=0), 1, 1, tmp_path, "id")
    assert "The checkpoints" not in str(caught.value)
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_saves_the_last_whole_epoch_whatever_the_checkpoint_settings(
    tmp_path: Path, number: int, error: type[BaseException]
) -> None:
    recipe = Recipe(lr=0.05, batch_size=4, checkpoint_every=100, checkpoint_seconds=3600)
    whole, second = Toy(), Toy()
    train(whole, recipe, 1, 6)
    with pytest.raises(error) as caught:
        train(SignalAt(3, number), recipe, 1, 6, tmp_path, "id")
    assert getattr(caught.value, "code", 130) == 128 + number
    assert [path.name for path in checkpoint_folders(tmp_path / "checkpoint")] == ["epoch-000003"]
    train(second, recipe, 1, 6, tmp_path, "id", resume=True)
    assert same(weights(second), weights(whole))


def test_a_signal_ends_the_training_after_the_step_under_way() -> None:
    problem = SignalAt(3, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(problem, RECIPE, 1, 6)
    assert [epoch for epoch, _ in problem.visits] == [0, 0, 1, 1, 2, 2, 3]


def test_a_signal_during_the_last_step_still_ends_the_process(tmp_path: Path) -> None:
    problem = SignalAt(5, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(problem, Recipe(batch_size=10), 1, 6, tmp_path, "id")
    assert checkpoint_folders(tmp_path / "checkpoint")[0].name == "epoch-000006"


def test_an_interrupted_training_says_what_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(SignalAt(2, signal.SIGINT), RECIPE, 1, 5, tmp_path / "run", "run")
    assert f"interrupted: 2 of 5 epochs are kept in {tmp_path / 'run'}" in caplog.text


def test_an_interrupted_training_without_a_folder_says_that_nothing_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(SignalAt(2, signal.SIGINT), RECIPE, 1, 5)
    assert "interrupted: nothing is kept" in caplog.text


def test_the_signal_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        train(SignalAt(1, signal.SIGINT), RECIPE, 1, 3)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert len(train(SignalAt(1, signal.SIGTERM), RECIPE, 1, 3)) == 3
    finally:
        signal.signal(signal.SIGTERM, before)


def test_training_works_outside_the_main_thread() -> None:
    problem, expected = Toy(), Toy()
    thread = threading.Thread(target=train, args=(problem, RECIPE, 1, 3))
    thread.start()
    thread.join()
    train(expected, RECIPE, 1, 3)
    assert same(weights(problem), weights(expected))


def test_a_training_of_warm_up_alone_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train(Toy(), RECIPE, 1, 1)
    assert "all 1 epochs are warm-up" in caplog.text


def test_no_items_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no training items"):
        train(Toy(n_items=0), RECIPE, 1, 1, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        train(Toy(), RECIPE, 1, 1, tmp_path / "file" / "run")


def test_pythons_own_random_numbers_play_no_part() -> None:
    state = random.getstate()
    train(Toy(), RECIPE, 1, 1)
    assert random.getstate() == state
