"""What the loggers write is what happened, read back with the loggers' own libraries."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from mmprompt.errors import UserError
from mmprompt.training import callbacks
from mmprompt.training.callbacks import Callback, MLflowLogger, TensorBoardLogger, WandbLogger
from mmprompt.training.loop import train
from mmprompt.training.problem import Run
from mmprompt.training.recipe import Recipe
from tests.training.toy import Toy

RECIPE = Recipe(lr=0.05, batch_size=5, checkpoint_seconds=0)


class Fails(Callback):
    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        if epoch == 1:
            raise LookupError("a mistake")


def test_tensorboard_gets_every_epoch_once_and_goes_on_after_a_stop(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with pytest.raises(LookupError):
        train(Toy(), RECIPE, 1, 4, tmp_path / "run", "id", [Fails(), TensorBoardLogger(tmp_path / "board")])
    history = train(Toy(), RECIPE, 1, 4, tmp_path / "run", "id", [TensorBoardLogger(tmp_path / "board")], resume=True)
    read = event_accumulator.EventAccumulator(str(tmp_path / "board")).Reload()
    assert "loss" in read.Tags()["scalars"]
    events = read.Scalars("loss")
    assert [event.step for event in events] == [0, 1, 2, 3]
    assert [event.value for event in events] == pytest.approx([record["loss"] for record in history], rel=1e-5)


def test_mlflow_gets_recipe_epochs_and_the_end(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    history = train(Toy(), RECIPE, 1, 3, callbacks=[MLflowLogger(store, "toys", run_name="whole")])
    with pytest.raises(LookupError):
        train(Toy(), RECIPE, 1, 3, callbacks=[MLflowLogger(store, "toys", run_name="broken"), Fails()])
    client = mlflow.MlflowClient(store)
    (experiment,) = (one for one in client.search_experiments() if one.name == "toys")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert (runs["whole"].info.status, runs["broken"].info.status) == ("FINISHED", "FAILED")
    assert runs["whole"].data.params["lr"] == "0.05"
    losses = client.get_metric_history(runs["whole"].info.run_id, "loss")
    assert [metric.value for metric in losses] == pytest.approx([record["loss"] for record in history])


def test_wandb_writes_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="toys", mode="offline", dir=str(tmp_path))
    history = train(Toy(), RECIPE, 1, 3, callbacks=[logger])
    (path,) = tmp_path.rglob("*.wandb")
    losses, config, deadline = list[float](), dict[str, str](), time.monotonic() + 60
    while True:  # W&B's own process writes on after the run has ended here
        records = [Record.FromString(data) for data in records_in(path.read_bytes())]
        kinds = [record.WhichOneof("record_type") for record in records]
        if "exit" in kinds or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    for record, kind in zip(records, kinds, strict=True):
        if kind == "history":
            items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            losses.append(json.loads(items["loss"]))
        if kind == "run":
            config |= {item.key: item.value_json for item in record.run.config.update}
    assert losses == pytest.approx([record["loss"] for record in history])
    assert json.loads(config["lr"]) == 0.05


class Refuses(Callback):
    def on_train_begin(self, run: Run) -> None:
        raise UserError("not today")


@pytest.mark.parametrize("logger", [WandbLogger(), MLflowLogger()])
def test_a_logger_ends_no_run_that_it_did_not_begin(logger: Callback, monkeypatch: pytest.MonkeyPatch) -> None:
    library = MagicMock()
    monkeypatch.setattr(callbacks.importlib, "import_module", lambda name: library)
    train(Toy(), RECIPE, 1, 1, callbacks=[logger])
    library.reset_mock()
    with pytest.raises(UserError, match="not today"):
        train(Toy(), RECIPE, 1, 1, callbacks=[Refuses(), logger])
    assert library.mock_calls == []


def records_in(log: bytes) -> Iterator[bytes]:
    """The whole records of a LevelDB log with W&B's seven bytes before it."""
    place, record = 7, b""
    while place < len(log):
        if 32768 - place % 32768 < 7:  # too little for a header: the next block
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(log[place + 4 : place + 6], "little"), log[place + 6]
        if place + 7 + length > len(log):
            return
        record += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


@pytest.mark.parametrize("logger", [WandbLogger(), MLflowLogger(), TensorBoardLogger("board")])
def test_a_logger_without_its_library_says_what_to_install(logger: Callback, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(callbacks.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"pip install \"mmprompt\[loggers\]\""):
        train(Toy(), RECIPE, 1, 1, callbacks=[logger])
