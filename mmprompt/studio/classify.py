"""One person's classifier: what it is learned from, what came out, what it says of an image, and its words edited.

Everything is asked of the package's public calls; what is kept lies in the person's folder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmprompt.classification.measure import measure
from mmprompt.classification.predictor import Classifier, Prediction
from mmprompt.classification.task import ClassificationTask, evaluate, zero_shot
from mmprompt.core.file import load
from mmprompt.core.fit import fit
from mmprompt.core.header import HEADER, read_header
from mmprompt.core.metrics import Evaluation, paired_bootstrap
from mmprompt.core.template import Soft, parse_line
from mmprompt.data.catalog import load_dataset
from mmprompt.data.splits import Dataset, Item
from mmprompt.errors import UserError, bad_value, unknown_name
from mmprompt.files import read_json, write_json
from mmprompt.models.image_features import ImageFeatures
from mmprompt.studio.images import TABLE, OwnImages
from mmprompt.studio.jobs import Job, Stopped
from mmprompt.studio.models import Models
from mmprompt.training.run_files import read_log

OWN = "my own images"
SETS = ("openart-left", "openart-large", "openart-right", "openart-small", "openart-action", "openart-emotion")
METHODS = ("coop", "cocoop", "kgcoop", "prograd", "vpt", "maple", "promptsrc", "text-probe", "linear-probe", "auto")
"""Those that leave the shared model's weights where they are."""
MOST_TESTED = 300
"""Test images of a bundled set that are looked at, evenly taken, so that the first training takes seconds."""
SETTINGS = "studio.json"


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """What a training is asked for.

    Args:
        data: the name of a bundled set, or `OWN`.
        backbone: the name of a frozen model.
        method: one of `METHODS`.
        shots: training images a class.
        epochs: at most.
    """

    data: str = SETS[0]
    backbone: str = "tiny"
    method: str = "coop"
    shots: int = 8
    epochs: int = 40


@dataclass(frozen=True, repr=False)
class Trained:
    """A classifier with what is known of it.

    Args:
        folder: its run folder.
        classifier: with the words that it was learned in.
        data: what it was learned from; None for a prompt from a file.
        metrics: of `classification.measure.measure`; empty for a prompt from a file.
        history: a record an epoch.
    """

    folder: Path
    classifier: Classifier
    data: Dataset | None = None
    metrics: dict[str, Any] | None = None
    history: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Changed:
    """A test image that edited words make the classifier name otherwise."""

    path: Path
    label: str
    before: str
    after: str


@dataclass(frozen=True)
class Reworded:
    """What edited words come to.

    Args:
        classifier: the learned vectors among the edited words.
        before, after: on the test images; None where there are none.
        words_alone: the edited words without the vectors; None where there is nothing to compare.
        gain: 95 % interval of the difference of after and before, paired over images.
        changed: images that are named otherwise.
    """

    classifier: Classifier
    before: Evaluation | None = None
    after: Evaluation | None = None
    words_alone: Evaluation | None = None
    gain: tuple[float, float] | None = None
    changed: tuple[Changed, ...] = ()


class ImageWork:
    """One person's images and classifier.

    Args:
        folder: of this person; what is found there is taken up again.
        models: the studio's.
    """

    def __init__(self, folder: Path, models: Models) -> None:
        self.folder, self.models = folder, models
        images = folder / "images"
        self.own = OwnImages(images, read_json(images / "classes.json") if (images / "classes.json").is_file() else {})
        self.trained: Trained | None = None
        self.edited: Classifier | None = None
        self.tried: Path | None = None
        self.setting = Setting()
        self._features: ImageFeatures | None = None
        self._before: Evaluation | None = None
        self._take_up()

    def train(self, setting: Setting) -> Callable[[Job], None]:
        """Look a training over and return the work to be queued.

        Raises:
            UserError: something in it cannot be.
        """
        if setting.method not in METHODS:
            raise unknown_name("method", setting.method, METHODS)
        folder = self.folder / "runs" / str(len(list((self.folder / "runs").glob("*"))) + 1)
        table = self.folder / "tables" / f"{folder.name}-{TABLE}"
        table.parent.mkdir(parents=True, exist_ok=True)
        data = self._data(setting, table)

        def work(job: Job) -> None:
            job.doing = f"loading {setting.backbone}"
            backbone = self.models.dual_encoder(setting.backbone)
            features = ImageFeatures(backbone, progress=job.count("looking at images"))
            features.of([item.path for item in (*data.train, *data.test)])
            task = ClassificationTask.of(data, features)
            result = fit(setting.method, backbone, task, folder, callbacks=[job], progress=False, epochs=setting.epochs)
            if job.is_asked_to_stop and not job.history:
                raise Stopped
            job.doing = "testing"
            metrics = measure(result.predictor, data, folder, features)
            write_json(folder / SETTINGS, {**vars(setting), "table": table.name})
            trained = Trained(folder, result.predictor, data, metrics, tuple(result.history))
            self.trained, self.edited, self._before = trained, None, None
            self.setting, self._features = setting, features

        return work

    def open_prompt(self, folder: Path) -> None:
        """Take up a classifier from a prompt file.

        Raises:
            UserError: it is edited, damaged, of another kind, or of a model that is not offered.
        """
        header = read_header(folder, "classification")
        self.trained = Trained(folder, load(folder, self.models.of_prompt(header)))
        self.edited = self._before = None

    def classifier(self) -> Classifier:
        """Return the classifier with the words as they were last edited.

        Raises:
            UserError: there is none.
        """
        if self.trained is None:
            raise UserError("there is no prompt yet. Train one, or load one from a file.")
        return self.edited or self.trained.classifier

    def name(self, image: Path) -> tuple[Prediction, Prediction | None]:
        """Say what is on an image: by the learned prompt, and by the words alone where the model reads words."""
        classifier = self.classifier()
        self.tried = image
        learned: Any = classifier.predict(image)
        if not classifier.backbone.has_text:
            return learned, None
        template = self.trained.data.template if self.trained and self.trained.data else "a photo of a {}."
        plain: Any = zero_shot(classifier.backbone, classifier.class_names, template).predict(image)
        return learned, plain

    def is_as_learned(self, template: str, class_names: list[str]) -> bool:
        """Return whether these are the words of the training and no others are in use, or there was none."""
        if self.trained is None or self.edited is not None:
            return self.trained is None
        learned = self.trained.classifier
        return (template, tuple(class_names)) == (learned.prompt.template.text, learned.class_names)

    def reword(self, template: str, class_names: list[str]) -> Reworded:
        """Put the learned vectors among other words, and say what that changes on the test images.

        Args:
            template: with as many vectors as were learned.
            class_names: those of the classes in their order, and perhaps further ones.
        Raises:
            UserError: words or names cannot be, or what was learned belongs to single classes.
        """
        self.classifier()
        assert self.trained is not None, "there is a classifier"
        learned, names = self.trained.classifier, [name.strip() for name in class_names if name.strip()]
        n_classes = len(learned.class_names)
        if self.trained.data is not None and len(names) < n_classes:
            expected = f"the images are of {n_classes} classes"
            raise bad_value("the number of class names", len(names), expected, "Keep a line for each, in their order.")
        edited = learned
        if template != learned.prompt.template.text:
            edited = edited.with_template(template)
        if tuple(names) != learned.class_names:
            edited = edited.with_class_names(names)
        reworded = self._compared(edited, template, names)
        self.edited = edited
        return reworded

    def _compared(self, edited: Classifier, template: str, names: list[str]) -> Reworded:
        assert self.trained is not None, "there is a classifier"
        data, learned = self.trained.data, self.trained.classifier
        if data is None:
            return Reworded(edited)
        if self._before is None:
            self._before = evaluate(learned, data.test, self._features)
        before, after = self._before, evaluate(edited, data.test, self._features)
        gain = paired_bootstrap(after.correct[None], before.correct[None])
        alone = None
        if learned.backbone.has_text and learned.prompt.template.n_ctx:  # type: ignore[attr-defined]
            alone = evaluate(zero_shot(learned.backbone, names, words_alone(template)), data.test, self._features)
        places = np.flatnonzero(np.asarray(before.predictions) != np.asarray(after.predictions))
        changed = tuple(
            Changed(
                data.test[at].path,
                data.class_names[data.test[at].label],
                learned.class_names[before.predictions[at]],
                edited.class_names[after.predictions[at]],
            )
            for at in places.tolist()
        )
        return Reworded(edited, before, after, alone, gain, changed)

    def _data(self, setting: Setting, table: Path) -> Dataset:
        if setting.data == OWN:
            return self.own.data(table, setting.shots)
        return bundled(setting)

    def _take_up(self) -> None:
        """Take up the last training that ended and can still be used, as it lies in the folder."""
        for folder in newest_first(self.folder / "runs"):
            if not ((folder / SETTINGS).is_file() and (folder / HEADER).is_file()):
                continue
            try:
                self._take_up_run(folder)
                return
            except UserError as error:
                _log.warning("%s is passed over: %s", folder, error)

    def _take_up_run(self, folder: Path) -> None:
        kept = read_json(folder / SETTINGS)
        table = self.folder / "tables" / kept.pop("table")
        setting = Setting(**kept)
        data = self.own.read(table, setting.shots) if setting.data == OWN else bundled(setting)
        log = folder / "log.jsonl"
        history = tuple(read_log(log)) if log.is_file() else ()
        classifier = load(folder, self.models.of_prompt(read_header(folder)))
        self.trained = Trained(folder, classifier, data, read_json(folder / "metrics.json"), history)
        self.setting, self._features = setting, ImageFeatures(classifier.backbone)


def newest_first(runs: Path) -> list[Path]:
    """Return the numbered folders of some runs, the last one first."""
    return sorted(runs.glob("*"), key=lambda folder: int(folder.name), reverse=True)


def bundled(setting: Setting) -> Dataset:
    """Return a bundled set with its shots drawn and an even part of its test images."""
    if setting.data not in SETS:
        raise unknown_name("bundled set", setting.data, SETS)
    data = load_dataset(setting.data, shots=setting.shots)
    test: tuple[Item, ...] = data.test[:: -(-len(data.test) // MOST_TESTED)]
    return replace(data, test=test)


def words_alone(template: str) -> str:
    """Return a template without its vectors."""
    parts, _ = parse_line(template.replace("{}", "{name}"))
    text = "".join("" if isinstance(part, Soft) else part if isinstance(part, str) else "{}" for part in parts)
    return " ".join(text.split())
