"""Few-shot image classification: a data set and a method give a classifier and its numbers.

What can be computed once follows from where the learned parts are: with none in the image tower, image features are
encoded once and no image is touched again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mmprompt.classification.methods import METHODS
from mmprompt.classification.methods.base import untrained
from mmprompt.classification.notices import MOST_IMAGES, BelowZeroShot, ZeroShotScore, at_chance
from mmprompt.classification.predictor import Classifier
from mmprompt.classification.template import ClassTemplate, refuse_single_class
from mmprompt.core.fit import Task
from mmprompt.core.heads import Cosine
from mmprompt.core.learned import Outputs, Prompt
from mmprompt.core.method import FrozenFeatures, Method, Start, named_losses, overrides, parts_of
from mmprompt.core.metrics import Evaluation, evaluate_probabilities
from mmprompt.data.images import ImageLike, read_image
from mmprompt.data.transforms import augment_coop
from mmprompt.errors import UserError, bad_value
from mmprompt.models.dual_encoder.interface import DualEncoder, without_text
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.image_features import ImageFeatures, encode_images, encode_tensors
from mmprompt.settings import check, check_settings, checked
from mmprompt.training.callbacks import Callback
from mmprompt.training.loop import count_epochs
from mmprompt.training.problem import StepResult
from mmprompt.training.recipe import Recipe, epochs_for

if TYPE_CHECKING:
    from mmprompt.data.splits import Dataset, Item

BARE_NAME = "{}"
MAX_KEPT_PIXELS = 2**28


@checked
def zero_shot(backbone: DualEncoder, class_names: Sequence[str], template: str = "a photo of a {}.") -> Classifier:
    """Make a classifier of words around the class name, nothing learned (Radford et al. 2021, section 3.1).

    Args:
        backbone: the frozen model.
        class_names: C names.
        template: words with one `{}`; `"{}"` is the bare class name.
    Raises:
        UserError: it has no text tower.
    """
    if not backbone.has_text:
        raise without_text(backbone.name)
    return Classifier(backbone, Prompt(ClassTemplate(template)), class_names)


class ClassificationProblem:
    """What the loop trains: all that is learned of a classifier, on labelled images, by the losses of a method.

    The recipe says how images are augmented, by the seed. Held-out images and labels are for methods and listeners, and
    encoded only if one looks at them; `stored` are shared features of image files, if some are already there, and the
    template is the data's hand-written one, for methods with a teacher.
    """

    def __init__(
        self,
        method: Method,
        classifier: Classifier,
        images: Sequence[ImageLike],
        labels: Sequence[int] | np.ndarray,
        recipe: Recipe,
        seed: int = 1,
        validation: Sequence[Item] = (),
        stored: ImageFeatures | None = None,
        template: str = "a photo of a {}.",
    ) -> None:
        self.classifier, self.method, self.backbone = classifier, method, classifier.backbone
        self.images, self.recipe, self.seed, self.validation = images, recipe, seed, validation
        self.labels = torch.as_tensor(labels, device=self.backbone.device)
        self.stored = stored or ImageFeatures(self.backbone)
        self.stored.refuse_other(self.backbone)
        self.template, self.noticed = template, list[str]()
        self._features: dict[int | None, Tensor] = {}
        self._pixels: dict[tuple[int, int | None], Tensor] = {}
        self.teacher = method.teacher(self.backbone, classifier.class_names, template)
        self._cosine = Cosine(self.backbone.logit_scale, self.backbone.logit_bias)
        if any(part.meets_images_once for part in parts_of(method)) and are_repeated(images):
            advice = "Draw the shots by another protocol, which repeats none."
            raise UserError(f"an image is there more than once, but what is learned must meet each once. {advice}")
        n_epochs = count_epochs(recipe, len(images), epochs_for(recipe, None))
        self.gradient_rule = method.gradient_rule(n_epochs)
        if overrides(method, "begin"):
            method.begin(classifier, self.features())
        if any(parameter.requires_grad for parameter in self.module.parameters()):
            self._read_images()

    @property
    def module(self) -> nn.Module:
        """The prompt, all that learns."""
        return self.classifier.prompt

    @property
    def n_items(self) -> int:
        """N, the number of training images."""
        return len(self.images)

    def step(self, indices: list[int], epoch: int) -> StepResult:
        """Compute the loss terms of one batch and how many of its images were classified right."""
        view, frozen = self._view(epoch), None
        if self.classifier.prompt.has("vision"):
            images = torch.stack([self._image(index, view) for index in indices])
            image_features = self.classifier.image_features(images.to(self.backbone.device, self.backbone.dtype))
        else:
            image_features = self._features_of_view(view)[indices]
        labels = self.labels[indices]
        if self.teacher is not None:
            bare = self._features_of_view(view)[indices]
            frozen = Outputs(self._cosine(bare, self.teacher), labels, bare, self.teacher)
        outputs = self.classifier.outputs(image_features, labels, frozen)
        n_correct = int((outputs.logits.argmax(1) == labels).sum())
        return StepResult(named_losses(self.method, outputs), n_correct, self.gradient_rule)

    def validate(self) -> float | None:
        """Compute the accuracy on the validation images, None if there are none."""
        if not self.validation:
            return None
        return evaluate(self.classifier, self.validation, self.stored).accuracy

    def features(self) -> FrozenFeatures:
        """Give the training images, and those of validation when asked, as the image tower now sees them."""
        generator = torch.Generator().manual_seed(self.seed)
        wide = partial(self._seen, self.images, raw=True)
        return FrozenFeatures(self._seen(self.images), self.labels, self._validation_features, generator, wide)

    @cached_property
    def zero_shot_score(self) -> ZeroShotScore:
        """Let the template alone name the training images, or some evenly taken of more than a thousand."""
        places = range(0, self.n_items, -(-self.n_items // MOST_IMAGES))
        images = [self.images[place] for place in places]
        paths = self._paths(images)
        features = encode_images(self.backbone, images) if paths is None else self.stored.of(paths)
        classes = zero_shot(self.backbone, self.classifier.class_names, self.template).class_features()
        labels = self.labels[list(places)].cpu().numpy()
        named = (features @ classes.T).argmax(1).cpu().numpy()
        return ZeroShotScore.of(named, labels, len(classes))

    @torch.no_grad()
    def _seen(self, images: Sequence[ImageLike], raw: bool = False) -> Tensor:
        paths = self._paths(images)
        if paths is None or self.classifier.prompt.has("vision"):
            with self.classifier.in_use():
                inserts = self.classifier.prompt.inserts("vision")
            return encode_images(self.backbone, images, inserts, raw=raw)
        return self.stored.wide(paths) if raw else self.stored.of(paths)

    def _validation_features(self) -> tuple[Tensor, Tensor] | None:
        if not self.validation:
            return None
        features = self._seen([item.path for item in self.validation])
        return features, torch.tensor([item.label for item in self.validation], device=features.device)

    def _read_images(self) -> None:
        """Read every image once, so that a broken one is refused before anything is written."""
        if self.classifier.prompt.has("vision"):
            for index in range(self.n_items):
                self._image(index, self._view(0))
        elif self.recipe.augment == "coop" and self.recipe.views and (paths := self._paths(self.images)):
            self.stored.prepare_views(paths, self.seed, min(self.recipe.views, self.recipe.epochs or self.recipe.views))
        elif self.n_items:
            self._features_of_view(self._view(0))

    def _view(self, epoch: int) -> int | None:
        """Say which view of the images an epoch sees: one of `views`, one of its own, or None for them as they are."""
        if self.recipe.augment != "coop":
            return None
        return epoch % self.recipe.views if self.recipe.views else epoch

    def _features_of_view(self, view: int | None) -> Tensor:
        """Give [N, E] features of all images in one view, encoded the first time the view is met."""
        if view not in self._features:
            if not self.recipe.views:
                self._features.clear()
            self._features[view] = self._encode_view(view)
        return self._features[view]

    def _encode_view(self, view: int | None) -> Tensor:
        paths = self._paths(self.images)
        if view is None:
            return encode_images(self.backbone, self.images) if paths is None else self.stored.of(paths)
        if paths is None or not self.recipe.views:  # a view of its own in every epoch never comes back
            return encode_tensors(self.backbone, (self._augmented(index, view) for index in range(self.n_items)))
        return self.stored.of_view(paths, self.seed, view)

    @staticmethod
    def _paths(images: Sequence[ImageLike]) -> list[Path] | None:
        """List images as files, None if one of them is something else."""
        paths = [Path(image) for image in images if isinstance(image, str | Path)]
        return paths if len(paths) == len(images) else None

    def _image(self, index: int, view: int | None) -> Tensor:
        """Give one image of a view as the image tower takes it, kept while there is room."""
        if (index, view) in self._pixels:
            return self._pixels[index, view]
        if not self.recipe.views and next(iter(self._pixels), (index, view))[1] != view:
            self._pixels.clear()  # of an epoch that is over
        if view is None:
            pixels = self.backbone.preprocess(read_image(self.images[index]))
        else:
            pixels = self._augmented(index, view)
        if (len(self._pixels) + 1) * pixels.numel() <= MAX_KEPT_PIXELS:
            self._pixels[index, view] = pixels
        return pixels

    def _augmented(self, index: int, view: int) -> Tensor:
        image = read_image(self.images[index])
        return self.backbone.normalize(augment_coop(image, self.backbone.image_size, self.seed, view, index))


def are_repeated(images: Sequence[ImageLike]) -> bool:
    """Return whether a file, or an object that holds an image, is there more than once."""
    kept = list(images)  # what numpy makes of a row lives on, and is no other's
    places = {Path(one).resolve() if isinstance(one, str | Path) else id(one) for one in kept}
    return len(places) < len(kept)


@dataclass
class ClassificationTask(Task[Classifier]):
    """Labelled images to learn from; see `core.fit.Task`.

    Args:
        name: of the data.
        class_names: C names.
        images: N training images.
        labels: N class indices.
        validation: labelled files to choose by, () for none.
        template: the hand-written template.
        templates: the ensemble of hand-written templates.
        recipe: what the data says of the recipe.
        augment: what the recipe's `auto` means here.
        shots: training images a class; by default those of the largest class.
        facts: what `run.json` says of the data.
        features: shared features of image files, or a store chosen by hand; the default store where None.
        test: labelled images that `Result.evaluate` measures on; nothing is learned or chosen from them.
    """

    name: str
    class_names: Sequence[str]
    images: Sequence[ImageLike]
    labels: Sequence[int] | np.ndarray
    validation: Sequence[Item] = ()
    template: str = "a photo of a {}."
    templates: Sequence[str] = ()
    recipe: dict[str, Any] = field(default_factory=dict)
    augment: str = "coop"
    shots: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    features: ImageFeatures | None = None
    test: Sequence[Item] = ()
    _kept: ImageFeatures | None = field(default=None, init=False, repr=False)

    kind = "classification"
    methods = METHODS

    def __post_init__(self) -> None:
        advice = "Number the labels as the names are ordered."
        for name, many in {"images": self.images, "class_names": self.class_names}.items():
            if not hasattr(many, "__len__"):
                raise bad_value(name, f"of type {type(many).__name__}", "it must have a length", "Give a list.")
        check("images", self.images, Sequence[Any], "Give one for each label.")
        check("labels", self.labels, Sequence[int], advice)
        labels = np.asarray(self.labels)
        if labels.ndim != 1 or (len(labels) and labels.dtype.kind not in "iu"):
            shown = f"of shape {labels.shape} and {labels.dtype}"
            raise bad_value("labels", shown, "a whole number for each image was expected", advice)
        check_settings(self)
        if len(labels) != len(self.images):
            raise bad_value("labels", len(labels), f"there are {len(self.images)} images", "Give one for each image.")
        for label in labels:
            if label < 0 or 0 < len(self.class_names) <= label:
                expected = f"there are {len(self.class_names)} class names, whose numbers begin at 0"
                raise bad_value("label", label, expected, advice)

    @classmethod
    def of(cls, data: Dataset, features: ImageFeatures | None = None) -> ClassificationTask:
        """Make the task of a data set."""
        facts = {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "protocol": data.protocol,
            "shots": data.shots,
            "seed": data.seed,
            "template": data.template,
            "sizes": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
            "notes": list(data.notes),
        }
        images, labels = [item.path for item in data.train], [item.label for item in data.train]
        return cls(
            data.name,
            data.class_names,
            images,
            labels,
            data.val,
            data.template,
            data.templates,
            dict(data.recipe),
            data.augment,
            data.shots,
            facts,
            features,
            data.test,
        )

    def load_model(self, model: DualEncoder | str) -> DualEncoder:
        """Return a backbone, or load the one of that name."""
        check("model", model, DualEncoder | str, "Use load_backbone.")
        return load_backbone(model) if isinstance(model, str) else model

    def predictor(self, method: Method, model: DualEncoder, seed: int) -> Classifier:
        """Make the untrained classifier.

        Raises:
            UserError: there is nothing to learn from, or a class name or setting cannot be used with this backbone.
        """
        if method.needs_shots and not len(self.images):
            raise UserError(
                f"{self.name} has test images only, so nothing can be learned from it. Train on another set."
            )
        generator = torch.Generator().manual_seed(seed)
        start = Start(generator, ClassTemplate(self.template), self.class_names, self.templates)
        return untrained(method, model, start)

    def complete(self, recipe: Recipe) -> Recipe:
        """Fill in augmentation and epochs.

        Raises:
            UserError: there is one class only, or early stopping is asked for without validation images.
        """
        refuse_single_class(self.class_names)
        if recipe.patience is not None and not self.validation:
            advice = "Leave out `patience`."
            raise UserError(f"early stopping needs validation images, but {self.name} has none. {advice}")
        augment = self.augment if recipe.augment == "auto" else recipe.augment
        recipe = replace(recipe, augment=augment)  # type: ignore[arg-type]
        if recipe.steps_per_shot is not None:
            return replace(recipe, steps_per_shot=None, n_steps=recipe.steps_per_shot * self._n_shots)
        return recipe if recipe.n_steps is not None else replace(recipe, epochs=self.n_epochs(recipe))

    def n_epochs(self, recipe: Recipe) -> int:
        """Give the recipe's epochs, else those that the papers train for at this number of shots."""
        return epochs_for(recipe, self._n_shots)

    @property
    def _n_shots(self) -> int:
        return int(self.shots or max(np.bincount(np.asarray(self.labels, dtype=int)), default=1))

    def problem(self, method: Method, predictor: Classifier, recipe: Recipe, seed: int) -> ClassificationProblem:
        """Make what the loop trains."""
        stored = self.shared(predictor.backbone)
        return ClassificationProblem(
            method, predictor, self.images, self.labels, recipe, seed, self.validation, stored, self.template
        )

    def callbacks(self, predictor: Any) -> list[Callback]:
        """Watch how the accuracy compares with zero-shot's, where there is a text tower."""
        return [BelowZeroShot()] if predictor.backbone.has_text else []

    def describe(self, predictor: Classifier) -> dict[str, Any]:
        """Give its part of `run.json`."""
        return {"data": self.facts, "class_names": list(self.class_names)}

    def notices(self, problem: ClassificationProblem, predictor: Classifier) -> list[str]:
        """Say whether it fell behind zero-shot, or that is at chance; nothing of what reads no images or no text."""
        reads_text = predictor.backbone.has_text and getattr(predictor.prompt.head, "reads_text", True)
        if not problem.method.needs_shots or not reads_text:
            return []
        return [*problem.noticed, *at_chance(problem, problem.n_items)]

    def evaluate(self, predictor: Classifier, items: Sequence[Item]) -> Evaluation:
        """Score a classifier on labelled images, with the features that the training shared."""
        from mmprompt.classification.measure import evaluate

        return evaluate(predictor, items, features=self.shared(predictor.backbone))

    def shared(self, backbone: DualEncoder) -> ImageFeatures:
        """Give the features of image files that were given, else some that are kept while the backbone is the same."""
        if self.features is not None:
            return self.features
        if self._kept is None or self._kept.backbone is not backbone:
            self._kept = ImageFeatures(backbone)
        return self._kept


def evaluate(classifier: Classifier, items: Sequence[Item], features: ImageFeatures | None = None) -> Evaluation:
    """Score a classifier on labelled images.

    Args:
        classifier: the classifier; its class features are computed once.
        items: N images with labels in the order of `classifier.class_names`.
        features: shared features of image files; used where nothing learned is in the image tower.
    Raises:
        UserError: there are no images, one cannot be read, or a label is of no class name.
    """
    if not items:
        raise UserError("there are no images to evaluate on. Give a split that holds some.")
    if (least := min(item.label for item in items)) < 0:
        raise bad_value("label", least, "the numbers of class names begin at 0", "Number the labels as the names are.")
    n_labels = 1 + max(item.label for item in items)
    if n_labels > len(classifier.class_names):
        known = f"the classifier has {len(classifier.class_names)} class names"
        raise UserError(f"the images are of {n_labels} classes, but {known}. Give it those of the data.")
    table = classifier.probabilities([item.path for item in items], features)
    return evaluate_probabilities(table, [item.label for item in items], classifier.class_names)
