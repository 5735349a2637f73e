"""`PromptClassifier`: the same training behind scikit-learn's conventions, for images in lists or arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from mmprompt.classification.methods import CoOp
from mmprompt.classification.task import ClassificationTask
from mmprompt.core.fit import fit
from mmprompt.core.method import Method
from mmprompt.data.images import ImageLike, as_list
from mmprompt.errors import UserError, bad_value
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.settings import check, checked
from mmprompt.training.recipe import Recipe


class PromptClassifier(ClassifierMixin, BaseEstimator):
    """A few-shot image classifier that works in scikit-learn's cross-validation, search and pipelines.

    Args:
        backbone: a backbone or the name of one.
        method: what is learned; `CoOp` if None.
        recipe: settings of optimiser and schedule; those that it was given count, as in `fit`.
        class_names: words for labels that are not words themselves, such as `{0: "cat", 1: "dog"}`.
        seed: of the start and the data order.

    Attributes:
        classes_: [C] the labels in sorted order, the columns of `predict_proba`.
        classifier_: the trained `Classifier`.
    """

    def __init__(
        self,
        backbone: DualEncoder | str = "tiny",
        method: Method | None = None,
        recipe: Recipe | None = None,
        class_names: Mapping[Any, str] | None = None,
        seed: int = 1,
    ) -> None:
        self.backbone = backbone
        self.method = method
        self.recipe = recipe
        self.class_names = class_names
        self.seed = seed

    @checked
    def fit(self, X: Sequence[ImageLike], y: Sequence[Any]) -> PromptClassifier:  # noqa: N803 (scikit-learn's name)
        """Learn the prompt.

        Args:
            X: N images: paths, PIL images, arrays or tensors.
            y: N labels.
        Raises:
            UserError: the lengths differ, labels are not in one row or not of one kind, fewer than two classes are
                given, or an image cannot be read.
        """
        check("class_names", self.class_names, Mapping[Any, str] | None, 'Write {0: "cat", 1: "dog"}.')
        images = as_list(X)
        try:
            given = np.asarray(y)
            classes, labels = np.unique(given, return_inverse=True)
        except (TypeError, ValueError):
            advice = "Give every image a label of one kind."
            raise UserError(f"y holds labels that cannot be sorted, such as None beside text. {advice}") from None
        if given.ndim != 1:
            raise bad_value("y", f"of shape {given.shape}", "one label an image was expected", "Give y.ravel().")
        if len(images) != len(given):
            raise bad_value("y", f"{len(given)} labels long", f"there are {len(images)} images", "Give one label each.")
        if len(classes) < 2:
            raise UserError(f"y holds {len(classes)} class, but at least two are needed. Add images of another.")
        task = ClassificationTask("images", [self._word(label) for label in classes], images, labels)
        result = fit(self.method or CoOp(), self.backbone, task, recipe=self.recipe, seed=self.seed, progress=False)
        self.classes_, self.classifier_ = classes, result.predictor
        return self

    def _word(self, label: Any) -> str:
        if self.class_names is None:
            return str(label).replace("_", " ")
        try:
            return self.class_names[label]
        except KeyError:
            raise UserError(f"class_names has no word for label {label}. Add it, or leave class_names out.") from None

    def predict_proba(self, X: Sequence[ImageLike]) -> np.ndarray:  # noqa: N803
        """Return [N, C] class probabilities, columns in the order of `classes_`.

        Raises:
            NotFittedError: `fit` was not called.
            UserError: an image cannot be read.
        """
        check_is_fitted(self)
        return self.classifier_.predict_proba(X)

    def predict(self, X: Sequence[ImageLike]) -> np.ndarray:  # noqa: N803
        """Return [N] the most probable label of each image; it raises what `predict_proba` raises."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]
