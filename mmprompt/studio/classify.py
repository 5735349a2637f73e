"""One person's classifier: what it is learned from, what came out, what it says of an image, and its words edited.

Everything is asked of the package's public calls; what is kept lies in the person's folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmprompt.classification.measure import measure
from mmprompt.classification.predictor import Classifier, Prediction
from mmprompt.classification.task import ClassificationTask, evaluate, zero_shot
from mmprompt.classification.template import ClassTemplate
from mmprompt.core.fit import fit
from mmprompt.core.metrics import Evaluation, paired_bootstrap
from mmprompt.core.template import escaped
from mmprompt.data.catalog import load_dataset
from mmprompt.data.splits import Dataset
from mmprompt.errors import UserError, bad_value, unknown_name
from mmprompt.files import read_json, write_json
from mmprompt.models.image_features import ImageFeatures
from mmprompt.studio.images import TABLE, OwnImages
from mmprompt.studio.jobs import Job
from mmprompt.studio.prompts import Models, new_run, take_up
from mmprompt.training.recipe import Recipe
from mmprompt.training.run_files import read_log

OWN = "my own images"
SETS = ("openart-left", "openart-large", "openart-right", "openart-small", "openart-action", "openart-emotion")
METHODS = ("coop", "cocoop", "kgcoop", "prograd", "vpt", "maple", "promptsrc", "text-probe", "linear-probe", "auto")
"""Those that leave the shared model's weights where they are."""
MOST_TESTED = 300
"""Test images of a bundled set that are looked at, evenly taken, so that the first training takes seconds."""
SETTINGS = "studio.json"
KIND = "classification"


@dataclass(frozen=True)
class Setting:
    """What a training is asked for: the name of a bundled set or `OWN`, training images a class, and epochs at most."""

    data: str = SETS[0]
    backbone: str = "tiny"
    method: str = "coop"
    shots: int = 8
    epochs: int = 40


@dataclass(frozen=True, repr=False)
class Trained:
    """A classifier in the words that it was learned in, with what is known of it: nothing of one from a file.

    `metrics` are those of `classification.measure.measure`, `history` has a record an epoch.
    """

    folder: Path
    classifier: Classifier
    data: Dataset | None = None
    metrics: dict[str, Any] | None = None
    history: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Reworded:
    """What edited words come to; nothing is known beside the classifier where there are no test images.

    `words_alone` is without the vectors, None where that is nothing else; `gain` is the 95 % interval of the difference
    of after and before, paired over images; of each image that is named otherwise `changed` has the file, its label,
    and what it was and is taken for.
    """

    classifier: Classifier
    before: Evaluation | None = None
    after: Evaluation | None = None
    words_alone: Evaluation | None = None
    gain: tuple[float, float] | None = None
    changed: tuple[tuple[Path, str, str, str], ...] = ()


class ImageWork:
    """One person's images and classifier; what is found in the folder is taken up again."""

    def __init__(self, folder: Path, models: Models) -> None:
        self.folder, self.models = folder, models
        self.own = OwnImages(folder / "images")
        self.trained: Trained | None = None
        self.edited: Classifier | None = None
        self.tried: Path | None = None
        self.setting = Setting()
        self._features: ImageFeatures | None = None
        self._before: Evaluation | None = None
        take_up(folder, KIND, self.open_prompt)

    def train(self, setting: Setting) -> Callable[[Job], None]:
        """Look a training over, refuse what cannot be, and return the work to be queued."""
        if setting.method not in METHODS:
            raise unknown_name("method", setting.method, METHODS)
        if setting.data == OWN:
            self.own.check()

        def work(job: Job) -> None:
            folder = new_run(self.folder)
            data = self.own.data(folder / TABLE, setting.shots) if setting.data == OWN else bundled(setting)
            job.say(f"loading {setting.backbone}")
            backbone = self.models.get(KIND, setting.backbone)
            features = ImageFeatures(backbone, progress=job.count("looking at images"))
            features.of([item.path for item in (*data.train, *data.test)])
            task = ClassificationTask.of(data, features)
            recipe = Recipe(epochs=setting.epochs) if task.methods[setting.method].is_trained else None
            result = fit(setting.method, backbone, task, folder, recipe, callbacks=[job], progress=False)
            job.say("testing")
            metrics = measure(result.predictor, data, folder, features)
            write_json(folder / SETTINGS, vars(setting))
            self._show(Trained(folder, result.predictor, data, metrics, tuple(result.history)), setting, features)

        return work

    def open_prompt(self, folder: Path) -> None:
        """Take up a classifier from a folder: a training of this person's with all that came out, or a prompt alone."""
        classifier, setting = self.models.load(folder, KIND), self.setting
        trained = Trained(folder, classifier)
        if (folder / SETTINGS).is_file():
            setting = Setting(**read_json(folder / SETTINGS))
            data = self.own.read(folder / TABLE, setting.shots) if setting.data == OWN else bundled(setting)
            history = tuple(read_log(folder / "log.jsonl")) if (folder / "log.jsonl").is_file() else ()
            trained = Trained(folder, classifier, data, read_json(folder / "metrics.json"), history)
        self._show(trained, setting, ImageFeatures(classifier.backbone))

    def _show(self, trained: Trained, setting: Setting, features: ImageFeatures) -> None:
        self.trained, self.setting, self._features = trained, setting, features
        self.edited = self._before = None

    def classifier(self) -> Classifier:
        """Return the classifier with the words as they were last edited; refuse where there is none."""
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

        The template has as many vectors as were learned; names are those of the classes, in order, and perhaps more.
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
            (
                data.test[at].path,
                data.class_names[data.test[at].label],
                learned.class_names[before.predictions[at]],
                edited.class_names[after.predictions[at]],
            )
            for at in places.tolist()
        )
        return Reworded(edited, before, after, alone, gain, changed)


def bundled(setting: Setting) -> Dataset:
    """Return a bundled set with its shots drawn and an even part of its test images."""
    if setting.data not in SETS:
        raise unknown_name("bundled set", setting.data, SETS)
    data = load_dataset(setting.data, shots=setting.shots)
    return replace(data, test=data.test[:: -(-len(data.test) // MOST_TESTED)])


def words_alone(template: str) -> str:
    """Return a template without its vectors."""
    each = (map(escaped, line.words) for line in ClassTemplate(template).lines)
    return "\n".join(" ".join(f"{before}{{}}{after}".split()) for before, after in each)
