"""A finished run as its folder tells it: what `run.json`, `metrics.json` and `log.jsonl` say, checked and named.

The one place that knows the layout of those files on the reading side; it draws and computes nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmprompt.core.confidence import Reliability, reliability
from mmprompt.errors import bad_file
from mmprompt.files import read_json
from mmprompt.training.run_files import read_log

BASELINES = ("zero_shot_name", "zero_shot_template")
RUN, METRICS, LOG, WORDS = "run.json", "metrics.json", "log.jsonl", "nearest_words.json"
ADVICE = "Give the folder of a finished run, as `mmprompt train` writes it."


@dataclass(frozen=True)
class Measured:
    """One classifier on the test images.

    Args:
        accuracy: share right, 0..1.
        interval: its 95 % interval.
        gain: what the learned prompt gains over it, 0 for the learned prompt itself.
        gain_interval: the paired 95 % interval of the gain.
        novel: share right among the images of concepts that pretraining never saw, None where there are none.
    """

    accuracy: float
    interval: tuple[float, float]
    gain: float
    gain_interval: tuple[float, float]
    novel: float | None


@dataclass(frozen=True)
class Shown:
    """One test image and what the learned prompt made of it."""

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
        return self.run["data"]["template"]

    @cached_property
    def measured(self) -> dict[str, Measured]:
        """What was measured, by key, zero-shot first."""
        measured = {}
        for key in (*BASELINES, "learned"):
            content = self.metrics[key]
            compared = self.metrics["learned"].get(f"gain_over_{key}", {"gain": 0.0, "interval": (0.0, 0.0)})
            (low, high), (gain_low, gain_high) = content["interval"], compared["interval"]
            novel = content["novel"]["accuracy"] if "novel" in content else None
            measured[key] = Measured(content["accuracy"], (low, high), compared["gain"], (gain_low, gain_high), novel)
        return measured

    @cached_property
    def shown(self) -> tuple[Shown, ...]:
        """The test images in order."""
        return tuple(
            Shown(Path(entry["path"]), entry["label"], entry["predicted"], entry["probability"])
            for entry in self.metrics["predictions"]
        )

    @cached_property
    def confusion(self) -> np.ndarray:
        """[C, C] counts of the learned prompt, true class by predicted class."""
        return self._confusion("learned")

    def class_accuracies(self, key: str) -> dict[str, float]:
        """Return the share right of each class that has test images, by name; `key` as in `measured`."""
        counts = self._confusion(key)
        totals = counts.sum(axis=1)
        return {name: float(counts[c, c] / totals[c]) for c, name in enumerate(self.class_names) if totals[c]}

    def _confusion(self, key: str) -> np.ndarray:
        n_classes = len(self.class_names)
        return np.asarray(self.metrics[key]["confusion"], dtype=int).reshape(n_classes, n_classes)

    @cached_property
    def reliability(self) -> Reliability:
        """What the probabilities of the learned prompt's answers are worth."""
        right = [shown.label == shown.predicted for shown in self.shown]
        return reliability([shown.probability for shown in self.shown], right)

    @property
    def command(self) -> str:
        """The command line of the run; of a run made in Python, the one that comes to the same."""
        called = self.run.get("call", {}).get("command")
        if called:
            return called
        data, method = self.run["data"], self.run["method"]
        words = ["mmprompt", "train", "--data", data["name"], "--backbone", self.run["backbone"]["name"]]
        words += ["--method", method["name"], *options(method["settings"]), "--shots", str(data["shots"])]
        return shlex.join([*words, "--seed", str(self.run["seed"]), *options(self.run["recipe"])])

    def log_values(self, name: str) -> list[float]:
        """One number of every epoch; epochs whose line does not hold it are left out."""
        return [float(entry[name]) for entry in self.log if entry.get(name) is not None]

    @property
    def words(self) -> list[Any]:
        """The nearest words that were looked up for this run: a mapping per vector."""
        path = self.folder / WORDS
        return read_json(path) if path.is_file() else []


def options(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as the options of a command line; those that are unset or off are left out."""
    words: list[str] = []
    for name, value in settings.items():
        if value is not None and value is not False:
            words += ["--" + name.replace("_", "-"), *([] if value is True else [str(value)])]
    return words


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
        _ = record.class_names, record.template, record.measured, record.shown, record.confusion
    except (KeyError, TypeError, ValueError, AttributeError):
        raise bad_file(folder, f"{RUN} or {METRICS} does not hold what a run writes", ADVICE) from None
    return record
