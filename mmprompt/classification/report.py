"""The report of a run: one HTML file that opens anywhere, and its figures as PNG files beside it.

It reads the run folder alone, and is the one place that knows the layout of `run.json`, `metrics.json` and `log.jsonl`
on the reading side. Its sentences are in `report.html.jinja`, every claim after an interval. It never trains, evaluates
or reaches for the network.
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmprompt.classification.methods import METHODS
from mmprompt.core.confidence import Reliability, reliability
from mmprompt.core.metrics import most_confused, one_a_class
from mmprompt.data.images import read_image
from mmprompt.errors import UserError, bad_file
from mmprompt.files import read_json
from mmprompt.progress import doing
from mmprompt.reports import figures
from mmprompt.reports.figures import LIGHT
from mmprompt.reports.pages import Draw, require_extra, write_page
from mmprompt.reports.tables import percent
from mmprompt.settings import checked
from mmprompt.training.recipe import LENGTHS
from mmprompt.training.run_files import RUN, read_log, read_run

BASELINES = ("zero_shot_name", "zero_shot_template")
FURTHER = {"top5": "right among the five most probable", "macro_f1": "macro F1"}
"""Measures that not every run kept."""
METRICS, LOG, WORDS = "metrics.json", "log.jsonl", "nearest_words.json"
ADVICE = "Give the folder of a finished run, as `mmprompt train` writes it."
N_EXAMPLES = 8
THUMBNAIL = 240
N_CONFUSED = 10


@dataclass(frozen=True)
class Measured:
    """One classifier on the test images: shares in 0..1, and intervals of 95 %.

    `gain` is what the learned prompt gains over it, with a paired interval; `novel` the share right among the images of
    concepts that pretraining never saw, None where there are none.
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
class Example:
    """A test image to show: its middle square, already shrunk."""

    image: Image.Image
    label: str
    predicted: str
    probability: str


@dataclass(frozen=True)
class Record:
    """A run folder, read: `run.json`, `metrics.json`, and a mapping per epoch of `log.jsonl`."""

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
        """What was measured, by key, zero-shot first where there is one."""
        measured = {}
        for key in (*(key for key in BASELINES if key in self.metrics), "learned"):
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

    def confusion(self, key: str = "learned") -> np.ndarray:
        """Return [C, C] counts, true class by predicted class; `key` as in `measured`."""
        n_classes = len(self.class_names)
        return np.asarray(self.metrics[key]["confusion"], dtype=int).reshape(n_classes, n_classes)

    def class_accuracies(self, key: str) -> dict[str, float]:
        """Return the share right of each class that has test images, by name; `key` as in `measured`."""
        counts = self.confusion(key)
        totals = counts.sum(axis=1)
        return {name: float(counts[c, c] / totals[c]) for c, name in enumerate(self.class_names) if totals[c]}

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
        kinds = [METHODS[name] for name in method["name"].split("+") if name in METHODS]
        usual = {one.name: one.default for kind in kinds for one in fields(kind)}
        leading: dict[str, Any] = next((kind.recipe.given for kind in kinds if kind.learns), {})
        usual_recipe = {name: value for name, value in leading.items() if name not in LENGTHS}
        words = ["mmprompt", "train", "--data", data["name"], "--backbone", self.run["backbone"]["name"]]
        words += ["--method", method["name"], *_options(method["settings"], usual), "--shots", str(data["shots"])]
        takes_steps = any(kind.learns and kind.is_trained for kind in kinds)  # else settings of steps are refused
        recipe = _options(self.run["recipe"], usual_recipe) if takes_steps else []
        return shlex.join([*words, "--seed", str(self.run["seed"]), *recipe])

    @property
    def words(self) -> list[Any]:
        """The nearest words that were looked up for this run: a mapping per vector."""
        path = self.folder / WORDS
        return read_json(path) if path.is_file() else []


def _options(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    """Return settings as the options of a command line; what is unset, on or off as usual is left out."""
    words: list[str] = []
    for name, value in settings.items():
        option, default = name.replace("_", "-"), usual.get(name)
        if isinstance(value, bool):
            words += [] if value is bool(default) else [f"--{option}" if value else f"--no-{option}"]
        elif value is not None or default is not None:
            words += [f"--{option}", str(value)]
    return words


def read_record(folder: Path | str) -> Record:
    """Read a finished run; refuse a folder that holds none, or a damaged file in it."""
    folder = Path(folder)
    if not (folder / METRICS).is_file() or not (folder / RUN).is_file():
        raise bad_file(folder, "holds no finished run", ADVICE)
    log = tuple(read_log(folder / LOG)) if (folder / LOG).is_file() else ()
    record = Record(folder, read_run(folder), read_json(folder / METRICS), log)
    try:
        _ = record.class_names, record.template, record.measured, record.shown, record.confusion(), record.command
        _ = record.reliability
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise bad_file(folder, f"{RUN} or {METRICS} does not hold what a run writes", ADVICE) from None
    return record


@checked
@doing("drawing the report")
def write_report(folder: Path | str) -> Path:
    """Write `report.html` and the figures of a finished run into its folder.

    Args:
        folder: a run folder.
    Returns:
        The path of the HTML file.
    Raises:
        UserError: the folder holds no finished run, cannot be written, or the report extra is not installed.
    """
    require_extra()
    record = read_record(folder)
    labels = dict.fromkeys(record.measured, f"template “{record.template}”")
    labels |= {"zero_shot_name": "bare class name", "learned": "learned prompt"}
    after = record.class_accuracies("learned")  # of the classes with test images
    before = record.class_accuracies("zero_shot_template") if "zero_shot_template" in record.measured else {}
    changes = {name: after[name] - before[name] for name in before}
    measures, bins = record.metrics["learned"], record.reliability
    right, wrong, n_missing = choose_examples(record.shown, record.class_names)
    return write_page(
        record.folder,
        "report",
        _charts_of(record, labels, before, after),
        draw_sheets(right, wrong),
        record=record,
        labels=labels,
        further=[
            f"{text} {percent(measures[name])}" for name, text in FURTHER.items() if measures.get(name) is not None
        ],
        changes=list(changes.values()),
        most_gained=max(changes.items(), key=lambda change: change[1], default=None),
        most_lost=min(changes.items(), key=lambda change: change[1], default=None),
        confused=most_confused(record.confusion(), record.class_names)[:N_CONFUSED],
        is_surer=sum(n * (c - a) for n, c, a in zip(bins.counts, bins.confidence, bins.accuracy, strict=True)) > 0,
        seconds=sum(float(entry.get("seconds") or 0) for entry in record.log),
        right=right,
        wrong=wrong,
        n_missing=n_missing,
    )


def _charts_of(
    record: Record, labels: dict[str, str], before: dict[str, float], after: dict[str, float]
) -> dict[str, Draw]:
    """Return how each chart of a run is drawn, by file name; those without data are left out.

    `labels` name what was measured; `before` and `after` are accuracies by class, of the template, if there was
    zero-shot, and learned.
    """
    rows = [
        figures.Row(labels[key], measured.accuracy, measured.interval, key == "learned")
        for key, measured in record.measured.items()
    ]
    charts: dict[str, Draw] = {
        "accuracy": partial(figures.draw_accuracy, rows, 1 / len(record.class_names)),
        "calibration": partial(figures.draw_reliability, record.reliability),
        "confusion": partial(figures.draw_confusion, record.confusion().tolist(), record.class_names),
    }
    if before:
        rows_before = [before[name] for name in after]
        charts["classes"] = partial(figures.draw_classes, list(after), rows_before, list(after.values()))
    if record.log:
        charts["learning_curve"] = partial(figures.draw_learning_curve, record.log)
    return charts


def choose_examples(shown: Sequence[Shown], class_names: Sequence[str]) -> tuple[list[Example], list[Example], int]:
    """Return images it got right (random, class after class) and wrong (surest first), and how many files were gone."""
    shuffled = random.Random(0).sample(shown, len(shown))
    hits = [s for s in shuffled if s.label == s.predicted]
    right = [hits[place] for place in one_a_class(range(len(hits)), [s.label for s in hits])]
    surest = sorted((s for s in shown if s.label != s.predicted), key=lambda s: -s.probability)
    wrong = [s for i, s in enumerate(surest) if sum(o.label == s.label for o in surest[:i]) < 2]
    chosen_right, gone_right = _load_examples(right, class_names)
    chosen_wrong, gone_wrong = _load_examples(wrong, class_names)
    return chosen_right, chosen_wrong, gone_right + gone_wrong


def _load_examples(shown: Sequence[Shown], class_names: Sequence[str]) -> tuple[list[Example], int]:
    """Return the first images that can still be read, and how many could not."""
    examples: list[Example] = []
    n_missing = 0
    for answer in shown:
        if len(examples) == N_EXAMPLES or n_missing == N_EXAMPLES:
            break
        try:
            image = read_image(answer.path)
        except UserError:
            n_missing += 1
            continue
        small = middle_square(image)
        names = (class_names[answer.label], class_names[answer.predicted])
        examples.append(Example(small, *names, f"{100 * answer.probability:.0f} %"))
    return examples, n_missing


def middle_square(image: Image.Image) -> Image.Image:
    """Return the middle square of an image, shrunk."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)


def draw_sheets(right: Sequence[Example], wrong: Sequence[Example]) -> dict[str, bytes]:
    """Return the examples as sheets, PNG bytes by file name."""
    sheets = {}
    for name, examples in (("examples_right", right), ("examples_wrong", wrong)):
        captions = [
            f"{e.predicted}, {e.probability}" + (f"\nreally {e.label}" if e.predicted != e.label else "")
            for e in examples
        ]
        if examples:
            sheets[name] = figures.draw_examples([e.image for e in examples], captions, LIGHT)
    return sheets
