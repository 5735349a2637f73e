"""The one training loop of the package: batches, steps, records, checkpoints, resume.

It does not know what is trained: a `Problem` gives the losses of a batch, and images, texts, classes and
backbones stay on its side. The order of the items is a pure function of the seed and the epoch, so a run
that was killed and resumed ends in the same bytes as one that was not.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from mmprompt.errors import UserError, bad_file
from mmprompt.files import make_folder
from mmprompt.models.ranks import PeerLostError, Ranks
from mmprompt.settings import validate
from mmprompt.training.callbacks import Callback, EarlyStopping, WeightAverage
from mmprompt.training.checkpoint import Checkpoint, checkpoint_folders, clean, read_newest, write_checkpoint
from mmprompt.training.problem import Problem, Run, RunFailed
from mmprompt.training.recipe import Recipe, learning_rate
from mmprompt.training.run_files import append_log, write_log
from mmprompt.training.seeds import batches, epoch_order, seed_step
from mmprompt.training.update import NotFiniteError, WeightUpdate

_log = logging.getLogger(__name__)


def train(
    problem: Problem,
    recipe: Recipe,
    seed: int,
    n_epochs: int,
    folder: Path | None = None,
    run_id: str = "",
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
) -> list[dict[str, Any]]:
    """Train `problem.module` in place.

    With a folder, `log.jsonl` gets a line per epoch and `checkpoint/` the three newest checkpoints. They
    are written every `recipe.checkpoint_every` epochs, if `recipe.checkpoint_seconds` have passed since the last,
    and after the last epoch. A kill costs at most the work since the last checkpoint; SIGINT and SIGTERM
    save the last whole epoch first and cost the one under way. What is learned does not depend on any of it.
    To `resume` is to go on from the newest checkpoint of the same `run_id`; from the start, with a warning, if there is
    none. `recipe.n_steps` wins over `n_epochs`, and `recipe.patience` puts an `EarlyStopping` before the callbacks.

    Returns:
        A record per epoch: `epoch` (finished ones, from 1), `lr`, `loss`, each loss by name (means over
        items), `accuracy` (0..1, if the problem counts it), `seconds`, and what callbacks added.
    Raises:
        UserError: there is nothing to train on, or the best weights and an average are both to be kept.
        RunFailed: a loss, gradient or weight became NaN or infinite, a callback added what is no finite number, or the
            disk is full.
    """
    if problem.n_items < 1:
        raise UserError("there are no training items. Give data with a train split of one item or more.")
    if recipe.patience is not None:
        callbacks = (EarlyStopping(recipe.patience), *callbacks)
    if all(any(isinstance(one, kind) for one in callbacks) for kind in (EarlyStopping, WeightAverage)):
        raise UserError(
            "the weights of the best epoch and an average over all epochs cannot both be kept. Leave out `patience`, "
            "or the average."
        )
    n_epochs = count_epochs(recipe, problem.n_items, n_epochs)
    run = Run(problem, recipe, n_epochs, count_steps(recipe, problem.n_items))
    session = _Session(run, seed, callbacks, run_id, folder)
    if n_epochs <= recipe.warmup_epochs:
        _log.warning("all %d epochs are warm-up at lr %g: next to nothing is learned.", n_epochs, recipe.warmup_lr)
    with ExitStack() as stack:
        for callback in callbacks:
            stack.callback(callback.close)
        session.open(resume)
        device = session.update.device
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))  # left as it was found
        session.interrupts = stack.enter_context(Interrupts())
        session.work()
    return session.run.history


def count_steps(recipe: Recipe, n_items: int) -> int:
    """Count the steps of an epoch."""
    return len(batches(list(range(n_items)), recipe.batch_size))


def count_epochs(recipe: Recipe, n_items: int, n_epochs: int) -> int:
    """Count the epochs of a training: those that `recipe.n_steps` begins, or `n_epochs` where it is not given."""
    return n_epochs if recipe.n_steps is None else -(-recipe.n_steps // max(1, count_steps(recipe, n_items)))


@dataclass(frozen=True)
class _Progress:
    """What a checkpoint keeps beside tensors."""

    history: list[dict[str, Any]]
    is_stopped: bool
    scaler: dict[str, float]


class _Session:
    """The state of one call of `train`."""

    def __init__(self, run: Run, seed: int, callbacks: Sequence[Callback], run_id: str, folder: Path | None) -> None:
        self.run = run
        self.seed = seed
        self.callbacks = callbacks
        self.run_id = run_id
        self.folder = folder
        self.ranks = Ranks()
        self.update = WeightUpdate(run.problem.module, run.recipe, self.ranks)
        self.interrupts = Interrupts()
        self.unsaved: Checkpoint | None = None
        self.saved_at = time.monotonic()

    def open(self, resume: bool) -> None:
        """Take back the state of an earlier call, tell the callbacks, and bring the folder in order."""
        if self.folder is not None and (self.folder / "checkpoint").is_symlink():
            advice = "Put the folder itself there."
            raise bad_file(self.folder / "checkpoint", "is a link, and what it leads to is never touched", advice)
        checkpoint = None if self.folder is None else self._find_checkpoint(self.folder, resume)
        callback_states = {} if checkpoint is None else self._restore(checkpoint)
        for callback in self.callbacks:
            callback.on_train_begin(self.run)
        for name, callback in self._named_callbacks().items():
            if name in callback_states:
                callback.restore(callback_states[name])
        self.ranks.sum([0.0], self.update.device)  # all have read before one writes
        if self.folder is not None and self.ranks.is_first:
            make_folder(self.folder)
            clean(self.folder / "checkpoint", len(self.run.history))
            write_log(self.folder / "log.jsonl", self.run.history)

    def _find_checkpoint(self, folder: Path, resume: bool) -> Checkpoint | None:
        if not resume:
            if checkpoint_folders(folder / "checkpoint"):
                advice = "Resume it with `resume=True`, or give another output folder."
                raise bad_file(folder, "holds the checkpoints of an earlier run", advice)
            return None
        checkpoint = read_newest(folder / "checkpoint", self.run_id)
        if checkpoint is None:
            _log.warning("%s holds no usable checkpoint; training starts from the beginning.", folder)
        else:
            _log.info("%s: training goes on after epoch %d.", folder, checkpoint.epoch)
        return checkpoint

    def work(self) -> None:
        """Train epoch by epoch to the end."""
        for epoch in range(len(self.run.history), self.run.n_epochs):
            if self.run.is_stopped:
                break
            self._finish_epoch(epoch, self._run_epoch(epoch))
        self._save()
        if self.interrupts.received is not None:
            self._interrupt()
        for callback in self.callbacks:
            callback.on_train_end(self.run)

    def _run_epoch(self, epoch: int) -> dict[str, Any]:
        """Take all steps of one epoch and return its record."""
        started = time.monotonic()
        recipe, problem = self.run.recipe, self.run.problem
        n_steps, lr = self.run.n_steps, 0.0
        n_left = n_steps if recipe.n_steps is None else recipe.n_steps - epoch * n_steps
        length = self.run.n_epochs if recipe.n_steps is None else recipe.n_steps / n_steps
        for callback in self.callbacks:
            callback.on_epoch_begin(self.run, epoch)
        order = epoch_order(self.seed, epoch, problem.n_items)
        means = _Means()
        for step, indices in enumerate(batches(order, recipe.batch_size)[:n_left]):
            lr = learning_rate(recipe, epoch, length, step, n_steps)
            if self.interrupts.received is not None and self.ranks.size == 1:
                self._interrupt()
            try:
                values, n_correct = self._step(indices, epoch, step, lr)
            except NotFiniteError as error:
                raise self._failure(f"{error} in epoch {epoch + 1}, step {step + 1} of {self.run.n_steps}") from None
            except PeerLostError:
                self._save()
                raise RunFailed(
                    "another process of this job has ended, so this one did. Go on with `resume`."
                ) from None
            logs = means.add(values, n_correct, len(indices)) | {"lr": lr}
            for callback in self.callbacks:
                callback.on_step_end(self.run, step, logs)
        return {"epoch": epoch + 1, "lr": lr} | means.values() | {"seconds": round(time.monotonic() - started, 3)}

    def _step(self, indices: list[int], epoch: int, step: int, lr: float) -> tuple[dict[str, float], float | None]:
        """Take one step, with the other processes where there are some; return the losses and how many were right."""
        seed_step(self.update.device, self.seed, "step", epoch, step)
        mine, counts = self.ranks.share(indices)
        with self.update.autocast(), self.ranks.together():
            result = self.run.problem.step(mine, epoch)
        if self.ranks.size == 1:
            return self.update.apply(result.losses, lr, result.gradient_rule), result.n_correct
        n_own = (len(mine) if result.n_counted is None else result.n_counted) if counts else 0
        told = [n_own, result.n_correct or 0 if counts else 0, self.interrupts.received or 0]
        n_counted, n_correct, signals = self.ranks.sum(told, self.update.device)
        if signals:
            self.interrupts.received = self.interrupts.received or signal.SIGTERM
            self._interrupt()
        with self.ranks.together():
            values = self.update.apply(result.losses, lr, result.gradient_rule, n_own / n_counted)
        return values, None if result.n_correct is None else n_correct

    def _finish_epoch(self, epoch: int, record: dict[str, Any]) -> None:
        """Tell the callbacks, log the record, and write a checkpoint if it is time for one."""
        for callback in self.callbacks:
            callback.on_epoch_end(self.run, epoch, record)
        record = {name: self._entry(name, value, epoch) for name, value in record.items()}
        self.run.history.append(record)
        checkpoint = self._checkpoint()
        for name, value in checkpoint.tensors.items():
            if not bool(value.isfinite().all()):
                raise self._failure(f"{name} became nan or infinite in epoch {epoch + 1}")
        if self.folder is None or not self.ranks.is_first:
            return
        append_log(self.folder / "log.jsonl", record)
        self.unsaved = checkpoint
        is_due = time.monotonic() - self.saved_at >= self.run.recipe.checkpoint_seconds
        if is_due and (epoch + 1) % self.run.recipe.checkpoint_every == 0:
            self._save()

    def _entry(self, name: str, value: Any, epoch: int) -> float | str:
        """Take what a record holds as a number of Python's, or a text; refuse what is neither, or not finite."""
        if isinstance(value, str):
            return value
        with contextlib.suppress(TypeError, ValueError, RuntimeError, OverflowError):  # none, too many, or too large
            number = value if isinstance(value, int) else float(value)
            if math.isfinite(number):
                return number
        what = f"{name} in the record of epoch {epoch + 1} is {str(value)[:60]}, but a finite number was expected"
        raise self._failure(what, "Let the callback that adds it give one, or leave it out.")

    def _interrupt(self) -> None:
        self._save()
        n_done = len(self.run.history)
        kept = f"{n_done} of {self.run.n_epochs} epochs are kept in {self.folder}"
        _log.warning("interrupted: %s.", kept if self.folder and n_done else "nothing is kept")
        raise self.interrupts.stop()

    def _failure(self, what: str, advice: str = "") -> RunFailed:
        advice = advice or f"Try a lower `lr` (it is {self.run.recipe.lr:g}) or `precision='fp32'`."
        place = self.folder / "checkpoint" if self.folder else None
        kept = f" The checkpoints in {place} are from before." if place and checkpoint_folders(place) else ""
        return RunFailed(f"{what}. {advice}{kept}")

    def _save(self) -> None:
        if self.folder is None or self.unsaved is None:
            return
        write_checkpoint(self.folder / "checkpoint", self.unsaved)
        self.unsaved = None
        self.saved_at = time.monotonic()

    def _checkpoint(self) -> Checkpoint:
        """Copy all that the next epoch depends on."""
        parts = {
            "module": self.run.problem.module.state_dict(),
            "optimizer": self.update.tensors(),
            **{name: callback.state() for name, callback in self._named_callbacks().items()},
        }
        tensors = {
            f"{part}/{name}": value.detach().clone() for part, values in parts.items() for name, value in values.items()
        }
        progress = {
            "history": list(self.run.history),
            "is_stopped": self.run.is_stopped,
            "scaler": self.update.scaler_state(),
        }
        return Checkpoint(self.run_id, len(self.run.history), tensors, progress)

    def _restore(self, checkpoint: Checkpoint) -> dict[str, dict[str, Tensor]]:
        """Take back what `_checkpoint` gave, but for the states of the callbacks, which are returned."""
        parts: dict[str, dict[str, Tensor]] = {"module": {}, "optimizer": {}}
        for key, value in checkpoint.tensors.items():
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = value
        try:
            progress = validate(_Progress, checkpoint.progress, "progress", is_whole=False)
            self.run.problem.module.load_state_dict(parts.pop("module"))
            self.update.restore(parts.pop("optimizer"), progress.scaler)
        except (RuntimeError, ValueError, KeyError):  # of the right hash, and of another version or a stranger
            raise UserError(
                f"the checkpoint in {self.folder} does not fit this prompt. "
                "Resume with the settings and the version the run was started with."
            ) from None
        self.run.history[:] = progress.history
        self.run.is_stopped = progress.is_stopped
        for name in parts.keys() - self._named_callbacks().keys():
            raise UserError(
                f"the checkpoint in {self.folder} holds the state of a callback {name!r} that was not given. "
                "Resume with the callbacks the run was started with."
            )
        return parts

    def _named_callbacks(self) -> dict[str, Callback]:
        """Name the callbacks by class and their count within the class, which stateless others cannot change."""
        named: dict[str, Callback] = {}
        for callback in self.callbacks:
            kind = type(callback).__name__
            n_before = sum(name.startswith(f"{kind}-") for name in named)
            named[f"{kind}-{n_before}"] = callback
        return named


class Interrupts(AbstractContextManager["Interrupts"]):
    """Within the block a first SIGINT or SIGTERM only sets `received`; a second one acts at once.

    Handlers are installed in the main thread alone (Python allows it nowhere else) and put back at
    the end; a signal that the process was started to ignore, as under nohup, stays ignored.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    # None stands for a handler that was not installed from Python and cannot be put back.
                    self._before[number] = signal.signal(number, self._receive) or signal.SIG_DFL
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop(self) -> BaseException:
        """Return the exception that ends the process as its signal would: exit 130 or 143."""
        assert self.received is not None, "no signal was received"
        return KeyboardInterrupt() if self.received == signal.SIGINT else SystemExit(128 + self.received)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            raise self.stop()
        self.received = number


class _Means:
    """Running means over the items of an epoch."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._n_items = 0

    def add(self, losses: Mapping[str, float], n_correct: float | None, n_items: int) -> dict[str, float]:
        """Add a step and return the means so far."""
        sums = {name: value * n_items for name, value in losses.items()}
        if n_correct is not None:
            sums["accuracy"] = float(n_correct)
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._n_items += n_items
        return self.values()

    def values(self) -> dict[str, float]:
        """Return the means so far, `loss` first."""
        means = {name: value / self._n_items for name, value in self._sums.items()}
        return {"loss": means.pop("loss")} | means
