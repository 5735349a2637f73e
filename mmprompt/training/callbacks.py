"""What may listen to a training: the hooks, and the listeners most people want.

A callback hears of a run and may add to an epoch's record or ask it to stop. It does not know
what is trained, and an exception it raises ends the training.
"""

from __future__ import annotations

import csv
import importlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Lt
from rich.console import Console
from torch import Tensor

from mmprompt.errors import UserError, bad_file
from mmprompt.files import make_folder, write_bytes, write_json
from mmprompt.progress import SECONDS_BETWEEN_LINES, ProgressDisplay
from mmprompt.settings import Count, checked
from mmprompt.training.problem import Run
from mmprompt.training.run_files import RUN

SHOWN = {
    "loss": "loss {:.4f}",
    "accuracy": "accuracy {:.3f}",
    "val_accuracy": "val {:.3f}",
    "cider_d": "CIDEr-D {:.3f}",
    "lr": "lr {:.2g}",
}
"""What a progress bar shows of a record, and how."""


class Callback:
    """The hooks, with Keras's names; inherit and override those you need.

    `logs` is the record under way: on a step `loss`, each loss by name, `accuracy` and `lr`; at an
    epoch's end what goes into the log. A callback may add finite numbers to an epoch's record.
    Epochs and steps count from 0.

    Attributes:
        is_shown: it writes or shows something and changes nothing of the run, so that of several processes only the
            first calls it.
    """

    is_shown: ClassVar[bool] = False

    def on_train_begin(self, run: Run) -> None:
        """Before the first step: forget earlier trainings. Weights and history of a resumed run are back, and
        `restore` follows if there is a state; the run has not written anything yet.
        """

    def on_epoch_begin(self, run: Run, epoch: int) -> None:
        """Before the first step of an epoch."""

    def on_step_end(self, run: Run, step: int, logs: Mapping[str, float]) -> None:
        """After the weights changed."""

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        """After the last step of an epoch, before its record is logged and its checkpoint written."""

    def on_train_end(self, run: Run) -> None:
        """After the last epoch; not called when the training failed or was interrupted."""

    def close(self) -> None:
        """Last of all, however the training ended."""

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must keep for this callback to go on as if nothing had happened."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave; called after `on_train_begin`, on a resumed run only."""


class EarlyStopping(Callback):
    """Stop when the validation accuracy no longer grows, and go back to the best weights.

    Adds it to every epoch's record.

    Args:
        patience: epochs without a better accuracy after which to stop, at least 1.
        min_delta: by how much an accuracy (0..1) must exceed the best so far to count as better.
        name: of what the problem's `validate` gives, in the records.
    Raises:
        UserError: a value is out of range; at the start of training, if nothing is kept for validation.
    """

    @checked
    def __init__(
        self, patience: Count, min_delta: Annotated[float, Ge(0), Lt(1)] = 0.0, name: str = "val_accuracy"
    ) -> None:
        self.patience = patience
        self.min_delta = min_delta
        self.name = name
        self._best: dict[str, Tensor] = {}
        self._best_accuracy = 0.0
        self._waited = 0

    def on_train_begin(self, run: Run) -> None:
        """Refuse a run that keeps nothing for validation: the choice must never fall to the test split."""
        if run.problem.validate() is None:
            raise UserError(
                "early stopping was asked for, but this data has no validation part. "
                "Leave `patience` out, or give data with a val split."
            )
        self._best, self._best_accuracy, self._waited = {}, 0.0, 0

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        """Measure, remember the best, and ask for the end once patience is used up."""
        accuracy = run.problem.validate()
        assert accuracy is not None, "the validation part vanished during training"
        logs[self.name] = accuracy
        if not self._best or accuracy > self._best_accuracy + self.min_delta:
            weights = run.problem.module.state_dict()
            self._best = {name: value.detach().clone() for name, value in weights.items()}
            self._best_accuracy = accuracy
            self._waited = 0
            return
        self._waited += 1
        if self._waited >= self.patience:
            run.is_stopped = True

    def on_train_end(self, run: Run) -> None:
        """Go back to the best weights."""
        run.problem.module.load_state_dict(self._best)

    def state(self) -> dict[str, Tensor]:
        """Return the best weights, their accuracy, and the epochs waited since."""
        counters = {
            "accuracy": torch.tensor(self._best_accuracy, dtype=torch.float64),
            "waited": torch.tensor(self._waited),
        }
        return counters | {f"best.{name}": value for name, value in self._best.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self._best_accuracy = float(state["accuracy"])
        self._waited = int(state["waited"])
        self._best = {name.removeprefix("best."): value for name, value in state.items() if name.startswith("best.")}


class WeightAverage(Callback):
    """Puts at the end of training the weighted mean over epochs in place of the last weights.

    Args:
        mean, std: of the normal density whose values at epochs 1, 2, ... are the weights.
    """

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std
        self._sums: dict[str, Tensor] = {}
        self._peak = -math.inf

    def on_train_begin(self, run: Run) -> None:
        """Forget earlier trainings."""
        self._sums, self._peak = {}, -math.inf

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        """Add the weights of this epoch."""
        log_weight = -0.5 * ((epoch + 1 - self.mean) / self.std) ** 2
        # Sums are kept relative to the largest weight so far: a mean far from all epochs must not make them all zero.
        kept, added = (math.exp(each - max(self._peak, log_weight)) for each in (self._peak, log_weight))
        self._peak = max(self._peak, log_weight)
        learned = run.problem.module.named_parameters()
        values = {name: value.detach().cpu().double() for name, value in learned if value.requires_grad}
        values["total weight"] = torch.ones((), dtype=torch.float64)
        self._sums = {name: self._sums.get(name, 0) * kept + value * added for name, value in values.items()}

    def on_train_end(self, run: Run) -> None:
        """Put the mean in place."""
        total = self._sums["total weight"].item()
        with torch.no_grad():
            for name, parameter in run.problem.module.named_parameters():
                if name in self._sums:
                    parameter.copy_(self._sums[name] / total)

    def state(self) -> dict[str, Tensor]:
        """Give the sums so far."""
        return self._sums | {"peak": torch.tensor(self._peak, dtype=torch.float64)} if self._sums else {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self._sums = {name: value for name, value in state.items() if name != "peak"}
        self._peak = float(state["peak"])


class CSVLogger(Callback):
    """Write one row per epoch into a CSV file; after a resume no row is there twice.

    The columns are those of the first record.

    Args:
        path: the file; its folder is made if need be, and an older file is replaced.
    """

    is_shown = True

    @checked
    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_train_begin(self, run: Run) -> None:
        """Check that the file can be written."""
        make_folder(self.path.parent)
        if self.path.is_dir():
            raise bad_file(self.path, "is a folder, not a CSV file", "Give the path of a file.")

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        """Replace the file by all epochs so far."""
        self._write([*run.history, logs])

    def on_train_end(self, run: Run) -> None:
        """Write the last epoch again, with what later callbacks added."""
        if run.history:
            self._write(run.history)

    def _write(self, records: Sequence[Mapping[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(records[0]), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(records)
        write_bytes(self.path, text.getvalue().encode())


class TensorBoardLogger(Callback):
    """Write every epoch's numbers for TensorBoard; a resumed run goes on behind its last epoch.

    Args:
        folder: for the event files; `tensorboard --logdir` takes it.
    Raises:
        UserError: at the start of training, if tensorboard is not installed.
    """

    is_shown = True

    @checked
    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._writer: Any = None

    def on_train_begin(self, run: Run) -> None:
        """Open the event file."""
        _library("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(make_folder(self.folder)), purge_step=len(run.history))

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        """Add the numbers of the epoch."""
        for name, value in _numbers(logs).items():
            self._writer.add_scalar(name, value, epoch)

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


class WandbLogger(Callback):
    """Log the recipe and every epoch's numbers to Weights & Biases, through its own library.

    Args:
        settings: of `wandb.init`, such as project="flowers", mode="offline" or, to go on, id="..." with resume="allow".
    Raises:
        UserError: at the start of training, if wandb is not installed.
    """

    is_shown = True

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self._run: Any = None

    def on_train_begin(self, run: Run) -> None:
        """Begin a run there."""
        self._is_whole = False
        self._run = _library("wandb").init(**{"config": asdict(run.recipe), **self.settings})

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        """Log the numbers of the epoch."""
        self._run.log(_numbers(logs), step=epoch)

    def on_train_end(self, run: Run) -> None:
        """Remember that all went well."""
        self._is_whole = True

    def close(self) -> None:
        """End the run there, as failed where an error ended the training."""
        if self._run is not None:
            self._run.finish(exit_code=0 if self._is_whole else 1)
        self._run = None


class MLflowLogger(Callback):
    """Log the recipe and every epoch's numbers to MLflow, through its own library.

    Args:
        tracking_uri: of the server or file store; None for what MLflow is set to.
        experiment: its name; None for what MLflow is set to.
        settings: of `mlflow.start_run`, such as run_name or, to go on, run_id.
    Raises:
        UserError: at the start of training, if mlflow is not installed.
    """

    is_shown = True

    def __init__(self, tracking_uri: str | None = None, experiment: str | None = None, **settings: Any) -> None:
        self.tracking_uri, self.experiment, self.settings = tracking_uri, experiment, settings
        self._mlflow: Any = None

    def on_train_begin(self, run: Run) -> None:
        """Begin a run there."""
        self._is_whole = False
        mlflow = _library("mlflow")
        if self.tracking_uri is not None:
            mlflow.set_tracking_uri(self.tracking_uri)
        if self.experiment is not None:
            mlflow.set_experiment(self.experiment)
        mlflow.start_run(**self.settings)
        self._mlflow = mlflow
        mlflow.log_params(asdict(run.recipe))

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        """Log the numbers of the epoch."""
        self._mlflow.log_metrics(_numbers(logs), step=epoch)

    def on_train_end(self, run: Run) -> None:
        """Remember that all went well."""
        self._is_whole = True

    def close(self) -> None:
        """End the run there, as failed where an error ended the training."""
        if self._mlflow is not None:
            self._mlflow.end_run("FINISHED" if self._is_whole else "FAILED")
        self._mlflow = None


def _library(name: str) -> Any:
    """Import what a logger logs with, or say how it is installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f'{name} is not installed, but is to log. Use pip install "mmprompt[loggers]".') from None


def _numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in logs.items() if isinstance(value, int | float) and name != "epoch"}


class ProgressBar(Callback):
    """Show the loss, accuracy, learning rate and the time left.

    On a terminal one bar over all steps; elsewhere plain lines, one an epoch but not too often, more in long epochs.

    Args:
        console: where to show it; by default the error stream, which leaves the output to results.
        seconds_between_lines: how often a plain line may come; the first and last epoch always get one.
    """

    is_shown = True

    @checked
    def __init__(self, console: Console | None = None, seconds_between_lines: float = SECONDS_BETWEEN_LINES) -> None:
        self.console = console or Console(stderr=True)
        self.seconds_between_lines = seconds_between_lines
        self._display = ProgressDisplay(self.console, seconds_between_lines, is_kept=True)

    def on_train_begin(self, run: Run) -> None:
        """Start the clock and, on a terminal, the bar."""
        self._display = ProgressDisplay(self.console, self.seconds_between_lines, is_kept=True)
        self._n_resumed = len(run.history)
        self._n_done = self._n_resumed * run.n_steps
        self._update(run, self._n_resumed, {})

    def on_step_end(self, run: Run, step: int, logs: Mapping[str, float]) -> None:
        """Move the bar by one step."""
        self._n_done += 1
        self._update(run, len(run.history), logs)

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        """Show the record of the epoch; off a terminal, a plain line if it is time for one."""
        is_last = epoch + 1 == run.n_epochs or run.is_stopped
        self._update(run, epoch, logs, is_last)
        self._display.write_line(at_once=is_last or epoch == self._n_resumed)

    def _update(self, run: Run, epoch: int, logs: Mapping[str, float], is_last: bool = False) -> None:
        numbers = "  ".join(form.format(logs[name]) for name, form in SHOWN.items() if name in logs)
        title = f"epoch {epoch + 1}/{run.n_epochs}"
        n_all = self._n_done if is_last else run.n_epochs * run.n_steps
        self._display.update("training", self._n_done, n_all, f"{title}  {numbers}", title, numbers)

    def close(self) -> None:
        """Take the bar down, so that a terminal is usable after an error too."""
        self._display.close()


class WriteConfig(Callback):
    """Writes `run.json` once the loop has accepted the run folder, so that a refused run leaves no file."""

    is_shown = True

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        self.config = config

    def on_train_begin(self, run: Run) -> None:
        """Write the resolved configuration."""
        write_json(make_folder(self.folder) / RUN, self.config)
