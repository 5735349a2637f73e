"""A finished run as its folder tells it: what `run.json`, `metrics.json` and `log.jsonl` say, checked and named.

The one place that knows the layout of those files on the reading side; it draws and computes nothing
beyond differences of what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmprompt.errors import bad_file
from mmprompt.evaluation.metrics import paired_bootstrap
from mmprompt.files import read_json
from mmprompt.training.log import read_log

RUN, METRICS, LOG, WORDS = "run.json", "metrics.json", "log.jsonl", "nearest_words.json"
ADVICE = "Give the folder of a finished run, as `mmprompt train` writes it."


@dataclass(frozen=True)
class Measured:
    """One classifier on the test pictures.

    Args:
        key: `zero_shot_name`, `zero_shot_template` or `learned`.
        accuracy: share right, 0..1.
        interval: its 95 % interval.
        correct: [N] booleans in the order of the test pictures, None where only sums were kept.
    """

    key: str
    accuracy: float
    interval: tuple[float, float]
    correct: np.ndarray | None


@dataclass(frozen=True)
class Shown:
    """One test picture and what the learned prompt made of it."""

    path: Path
    label: int
    predicted: int
    probability: float


@dataclass(frozen=True)
class Record:
    """A run folder, read.

    Args:
        folder: where it lies.
        run, metrics: the two JSON files.
        log: a mapping per epoch, in order.
    """

    folder: Path
    run: Mapping[str, Any]
    metrics: Mapping[str, Any]
    log: tuple[Mapping[str, Any], ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names, the order of labels."""
        return tuple(self.run["class_names"])

    @property
    def template(self) -> str:
        """The hand-written template that zero-shot was measured with."""
        return self.run["template"]

    @cached_property
    def measured(self) -> dict[str, Measured]:
        """What was measured, by key, zero-shot first."""
        return {
            key: _measured(key, self.metrics[key])
            for key in ("zero_shot_name", "zero_shot_template", "learned")
            if self.metrics.get(key)
        }

    @cached_property
    def shown(self) -> tuple[Shown, ...]:
        """The test pictures in order."""
        return tuple(
            Shown(Path(path), label, predicted, probability)
            for path, label, predicted, probability in self.metrics["test"]
        )

    @cached_property
    def confusion(self) -> np.ndarray:
        """[C, C] counts of the learned prompt, true class by predicted class."""
        counts = np.zeros((len(self.class_names),) * 2, dtype=int)
        for picture in self.shown:
            counts[picture.label, picture.predicted] += 1
        return counts

    def gain(self, key: str) -> tuple[float, tuple[float, float] | None]:
        """What the learned prompt gains over a baseline, with its paired 95 % interval over pictures."""
        ours, theirs = self.measured["learned"], self.measured[key]
        interval = None
        if ours.correct is not None and theirs.correct is not None:
            interval = paired_bootstrap(ours.correct[None], theirs.correct[None])
        return ours.accuracy - theirs.accuracy, interval

    def log_values(self, name: str) -> list[float]:
        """One number of every epoch; empty where the log does not hold it. `loss` is the sum that was minimised."""
        return [float(entry[name]) for entry in self.log if entry.get(name) is not None]

    @property
    def words(self) -> list[Any] | None:
        """The nearest words that were looked up for this run, None where they were not."""
        path = self.folder / WORDS
        return read_json(path) if path.is_file() else None


def _measured(key: str, content: Mapping[str, Any]) -> Measured:
    correct = None
    if "predictions" in content and "labels" in content:
        correct = np.asarray(content["predictions"]) == np.asarray(content["labels"])
    low, high = content["interval"]
    return Measured(key, content["accuracy"], (low, high), correct)


def read_record(folder: Path | str) -> Record:
    """Read a finished run.

    Raises:
        UserError: the folder is missing, holds no finished run, or a file in it is damaged.
    """
    folder = Path(folder)
    if not (folder / METRICS).is_file() or not (folder / RUN).is_file():
        raise bad_file(folder, "holds no finished run", ADVICE)
    log = tuple(read_log(folder / LOG)) if (folder / LOG).is_file() else ()
    record = Record(folder, read_json(folder / RUN), read_json(folder / METRICS), log)
    try:
        _ = record.class_names, record.template, record.measured["learned"], record.shown, record.confusion
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise bad_file(folder, f"{RUN} or {METRICS} does not hold what a run writes", ADVICE) from None
    return record
