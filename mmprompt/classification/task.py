"""Few-shot image classification: a method, a frozen backbone and a data set give a classifier and its numbers.

What can be computed once follows from where the vectors are: with none in the image tower, image
features are encoded once and no picture is touched again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmprompt.classification.methods import Method, describe
from mmprompt.classification.predictor import Classifier
from mmprompt.core.defaults import suited_recipe
from mmprompt.core.file import check_new, describe_backbone, save
from mmprompt.core.losses import Outputs
from mmprompt.core.metrics import Evaluation, evaluate_probabilities, paired_bootstrap
from mmprompt.core.prompt import Prompt
from mmprompt.core.template import TextLayout, refuse_single_class
from mmprompt.data.catalog import load_dataset
from mmprompt.data.images import ImageLike, read_image
from mmprompt.data.splits import Dataset, Item
from mmprompt.data.transforms import augment_coop
from mmprompt.errors import UserError
from mmprompt.files import write_json
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.image_features import ImageFeatures, encode_pictures, encode_tensors
from mmprompt.training.callbacks import Callback, WriteConfig
from mmprompt.training.config import provenance, run_id_of, surroundings
from mmprompt.training.lock import run_lock
from mmprompt.training.loop import train
from mmprompt.training.problem import StepResult
from mmprompt.training.recipe import Recipe, epochs_for

BARE_NAME = "{}"
MAX_KEPT_PIXELS = 2**28


def zero_shot(backbone: DualEncoder, class_names: Sequence[str], template: str = "a photo of a {}.") -> Classifier:
    """The frozen backbone with words around the class name and nothing learned (Radford et al. 2021, section 3.1).

    Args:
        backbone: the frozen model.
        class_names: C names.
        template: words with one `{}`; `"{}"` is the bare class name.
    """
    return Classifier(backbone, Prompt(TextLayout(template), {}), class_names)


class ClassificationProblem:
    """What the loop trains: a classifier's prompt on labelled pictures.

    Args:
        classifier: whose prompt learns.
        method: gives the losses.
        images: N pictures.
        labels: N class indices.
        recipe: says how pictures are augmented.
        seed: of the augmentation.
        validation: held-out pictures for early stopping and other listeners; encoded only if one looks at them.
        stored: shared features of picture files, if some are already there.
    """

    def __init__(
        self,
        classifier: Classifier,
        method: Method,
        images: Sequence[ImageLike],
        labels: Sequence[int] | np.ndarray,
        recipe: Recipe,
        seed: int = 1,
        validation: Sequence[Item] = (),
        stored: ImageFeatures | None = None,
    ) -> None:
        self.classifier, self.method, self.backbone = classifier, method, classifier.backbone
        self.images, self.recipe, self.seed, self.validation = images, recipe, seed, validation
        self.labels = torch.as_tensor(labels, device=self.backbone.device)
        self.stored = stored or ImageFeatures(self.backbone)
        self.stored.refuse_other(self.backbone)
        self._features: dict[int, Tensor] = {}
        self._pixels: dict[tuple[int, int], Tensor] = {}

    @property
    def module(self) -> nn.Module:
        """The prompt, the only thing that learns."""
        return self.classifier.prompt

    @property
    def n_items(self) -> int:
        """N, the number of training pictures."""
        return len(self.images)

    def step(self, indices: list[int], epoch: int) -> StepResult:
        """The loss terms of one batch and how many of its pictures were classified right."""
        view = self._view(epoch)
        if self.classifier.prompt.has("vision"):
            images = torch.stack([self._picture(index, view) for index in indices])
            image_features = self.classifier.image_features(images.to(self.backbone.device, self.backbone.dtype))
        else:
            image_features = self._features_of_view(view)[indices]
        labels, class_features = self.labels[indices], self.classifier.class_features()
        logits = self.classifier.logits(image_features, class_features)
        losses = self.method.losses(Outputs(logits, labels, image_features, class_features))
        return StepResult(losses, int((logits.argmax(1) == labels).sum()))

    def read_pictures(self) -> None:
        """Read every picture once, so that a broken one is refused before anything is written."""
        if self.classifier.prompt.has("vision"):
            for index in range(self.n_items):
                self._picture(index, self._view(0))
        elif self.recipe.augment == "coop" and self.recipe.views and (paths := self._paths()):
            self.stored.prepare_views(paths, self.seed, min(self.recipe.views, self.recipe.epochs or self.recipe.views))
        else:
            self._features_of_view(self._view(0))

    def validate(self) -> float | None:
        """Accuracy on the validation pictures, None if there are none."""
        if not self.validation:
            return None
        return evaluate(self.classifier, self.validation, self.stored).accuracy

    def _view(self, epoch: int) -> int:
        """Which view of the pictures an epoch sees: one for all epochs, one of `views`, or one of its own."""
        if self.recipe.augment != "coop":
            return 0
        return epoch % self.recipe.views if self.recipe.views else epoch

    def _features_of_view(self, view: int) -> Tensor:
        """[N, E] features of all pictures in one view, encoded the first time the view is met."""
        if view not in self._features:
            if not self.recipe.views:
                self._features.clear()
            self._features[view] = self._encode_view(view)
        return self._features[view]

    def _encode_view(self, view: int) -> Tensor:
        paths = self._paths()
        if self.recipe.augment != "coop":
            return encode_pictures(self.backbone, self.images) if paths is None else self.stored.of(paths)
        if paths is None or not self.recipe.views:  # a view of its own in every epoch never comes back
            return encode_tensors(self.backbone, (self._augmented(index, view) for index in range(self.n_items)))
        return self.stored.of_view(paths, self.seed, view)

    def _paths(self) -> list[Path] | None:
        """The pictures as files, None if one of them is something else."""
        paths = [Path(image) for image in self.images if isinstance(image, str | Path)]
        return paths if len(paths) == self.n_items else None

    def _picture(self, index: int, view: int) -> Tensor:
        """One picture of a view as the image tower takes it, kept while there is room."""
        if (index, view) in self._pixels:
            return self._pixels[index, view]
        is_augmented = self.recipe.augment == "coop"
        pixels = (
            self._augmented(index, view) if is_augmented else self.backbone.preprocess(read_image(self.images[index]))
        )
        if (len(self._pixels) + 1) * pixels.numel() <= MAX_KEPT_PIXELS:
            self._pixels[index, view] = pixels
        return pixels

    def _augmented(self, index: int, view: int) -> Tensor:
        image = read_image(self.images[index])
        return self.backbone.normalize(augment_coop(image, self.backbone.image_size, self.seed, view, index))


def evaluate(classifier: Classifier, items: Sequence[Item], features: ImageFeatures | None = None) -> Evaluation:
    """Score a classifier on labelled pictures.

    Args:
        classifier: the classifier; its class features are computed once.
        items: N pictures with labels in the order of `classifier.class_names`.
        features: shared features of picture files; used where no vectors enter the image tower.
    Raises:
        UserError: there are no pictures, or one cannot be read.
    """
    if not items:
        raise UserError("there are no pictures to evaluate on. Give a split that holds some.")
    table = probabilities(classifier, [item.path for item in items], features)
    return evaluate_probabilities(table, [item.label for item in items], classifier.class_names)


@torch.no_grad()
def probabilities(classifier: Classifier, paths: Sequence[Path], features: ImageFeatures | None = None) -> np.ndarray:
    """What a classifier makes of picture files, with image features shared where no vectors enter the image tower.

    Args:
        classifier: the classifier; its class features are computed once.
        paths: N picture files.
        features: shared features of picture files.
    Returns:
        [N, C] float64, rows sum to 1.
    Raises:
        UserError: a picture cannot be read.
    """
    features = features or ImageFeatures(classifier.backbone)
    features.refuse_other(classifier.backbone)
    vectors = classifier.prompt.vectors("vision")
    encoded = encode_pictures(classifier.backbone, paths, vectors) if vectors else features.of(paths)
    return classifier.logits(encoded, classifier.class_features()).double().softmax(-1).cpu().numpy()


@dataclass(frozen=True)
class Result:
    """A finished training.

    Args:
        classifier: ready to predict.
        history: one dict per epoch, as in `log.jsonl`.
        data: what it was trained on.
        folder: the run folder, None if nothing was written.
        features: image features that later evaluations share.
    """

    classifier: Classifier
    history: list[dict[str, Any]]
    data: Dataset
    folder: Path | None
    features: ImageFeatures

    def evaluate(self, items: Sequence[Item]) -> Evaluation:
        """Score the classifier on labelled pictures, such as `data.test`."""
        return evaluate(self.classifier, items, self.features)


def fit(
    method: Method,
    backbone: DualEncoder | str = "tiny",
    data: Dataset | str = "openart-large",
    out: Path | str | None = None,
    recipe: Recipe | None = None,
    seed: int = 1,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    features: ImageFeatures | None = None,
) -> Result:
    """Learn a prompt on a frozen backbone from a few labelled pictures.

    Args:
        method: such as `CoOp(n_ctx=4)`.
        backbone: a backbone or the name of one.
        data: a data set or the name of one in the catalogue.
        out: a new run folder; nothing is written without.
        recipe: optimiser and schedule; by default the published SGD recipe with what the data set says of it.
        seed: of the start, the data order and the augmentation.
        callbacks: called as training goes.
        resume: go on from the newest checkpoint in `out`.
        features: of the same backbone, to share them or to choose where they are kept; by default in the cache folder.
    Raises:
        UserError: something in the input cannot be, or another process trains in `out`; nothing is written then.
        RunFailed: the loss stopped being finite.
    """
    backbone = load_backbone(backbone) if isinstance(backbone, str) else backbone
    data = load_dataset(data) if isinstance(data, str) else data
    recipe = resolve(recipe or Recipe(**suited_recipe(backbone.name, data.recipe)), data)
    classifier = method.build(backbone, data.class_names, seed, data.template)
    config = run_config(method, backbone, data, recipe, seed)
    folder = None if out is None else Path(out)
    with contextlib.nullcontext() if folder is None else run_lock(folder):
        if folder is not None:
            check_new(folder)
        features = features or ImageFeatures(backbone)
        paths, labels = [item.path for item in data.train], [item.label for item in data.train]
        problem = ClassificationProblem(classifier, method, paths, labels, recipe, seed, data.val, features)
        problem.read_pictures()
        listeners = callbacks if folder is None else (WriteConfig(folder, config), *callbacks)
        history = train(problem, recipe, seed, _epochs(recipe, data), folder, run_id_of(config), listeners, resume)
        if folder is not None:
            save(classifier, folder, provenance(config))
    return Result(classifier, history, data, folder, features)


def resolve(recipe: Recipe, data: Dataset) -> Recipe:
    """The recipe with what it leaves to the data set filled in.

    Raises:
        UserError: there is nothing to train on or one class only, or early stopping is asked for without validation
            pictures.
    """
    refuse_single_class(data.class_names)
    if not data.train:
        raise UserError(f"{data.name} has test pictures only, so nothing can be learned from it. Train on another set.")
    if recipe.patience is not None and not data.val:
        raise UserError(f"early stopping needs validation pictures, but {data.name} has none. Leave out --patience.")
    augment = data.augment if recipe.augment == "auto" else recipe.augment
    return replace(recipe, augment=augment, epochs=_epochs(recipe, data))  # type: ignore[arg-type]


def _epochs(recipe: Recipe, data: Dataset) -> int:
    shots = data.shots or max(np.bincount([item.label for item in data.train]))
    return epochs_for(recipe, int(shots))


def run_config(method: Method, backbone: DualEncoder, data: Dataset, recipe: Recipe, seed: int) -> dict[str, Any]:
    """All that is needed to repeat a run, JSON-ready: the content of `run.json`."""
    return {
        "format": 1,
        "backbone": describe_backbone(backbone),
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "protocol": data.protocol,
            "shots": data.shots,
            "seed": data.seed,
            "template": data.template,
            "sizes": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
            "notes": list(data.notes),
        },
        "class_names": list(data.class_names),
        "method": describe(method),
        "recipe": asdict(recipe),
        "seed": seed,
    } | surroundings(backbone)


def measure(result: Result) -> dict[str, Any]:
    """Test a trained prompt beside zero-shot with the bare class name and with the hand-written template.

    Nothing is chosen by these numbers. Written to `metrics.json` if the run has a folder.

    Returns:
        JSON-ready: for each of `zero_shot_name`, `zero_shot_template` and `learned` the accuracy, its interval,
        per-class accuracy and confusion; for `learned` also the paired gain over each; and every test prediction.
    Raises:
        UserError: the data set has no test pictures.
    """
    data, backbone = result.data, result.classifier.backbone
    classifiers = {
        "zero_shot_name": zero_shot(backbone, data.class_names, BARE_NAME),
        "zero_shot_template": zero_shot(backbone, data.class_names, data.template),
        "learned": result.classifier,
    }
    scores = {name: evaluate(c, data.test, result.features) for name, c in classifiers.items()}
    metrics: dict[str, Any] = {name: _summary(score, data.test) for name, score in scores.items()}
    learned = scores["learned"]
    for name in ("zero_shot_name", "zero_shot_template"):
        gain = paired_bootstrap(learned.correct[None], scores[name].correct[None])
        difference = learned.accuracy - scores[name].accuracy
        metrics["learned"][f"gain_over_{name}"] = {"gain": difference, "interval": list(gain)}
    metrics["class_names"] = list(data.class_names)
    metrics["predictions"] = [
        {"path": str(item.path), "label": item.label, "predicted": predicted, "probability": probability}
        for item, predicted, probability in zip(data.test, learned.predictions, learned.probabilities, strict=True)
    ]
    if result.folder is not None:
        write_json(result.folder / "metrics.json", metrics)
    return metrics


def _summary(score: Evaluation, items: Sequence[Item]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "accuracy": score.accuracy,
        "interval": list(score.interval),
        "n": score.n,
        "top5": score.top5,
        "macro_f1": score.macro_f1,
        "calibration_error": score.calibration_error,
        "per_class": score.per_class,
        "confusion": score.confusion.tolist(),
    }
    novel = np.array([item.novel for item in items])
    if novel.any():
        summary["novel"] = {"accuracy": float(score.correct[novel].mean()), "n": int(novel.sum())}
    return summary
