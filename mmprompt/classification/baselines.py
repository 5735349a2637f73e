"""What a learned prompt is measured against: nothing learned, or a head on frozen image features.

A baseline is a frozen dataclass of settings whose `fit` gives a `Scorer`, something that says how probable
each class is. It looks at the train and val parts of its data set, never at test.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from mmprompt.classification.predictor import Classifier
from mmprompt.classification.task import probabilities, zero_shot
from mmprompt.core.prompt import Prompt
from mmprompt.core.template import TextLayout
from mmprompt.data.splits import Dataset, Item
from mmprompt.data.templates import check_template
from mmprompt.errors import UserError, bad_value, unknown_name
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.image_features import ImageFeatures

COARSE_STEP = 2.0  # decades between the values of C tried first
FINE_STEP = 1 / 8
LARGEST_C = 6.0


class Scorer(Protocol):
    """Something fitted that gives class probabilities."""

    @property
    def n_parameters(self) -> int:
        """How many numbers were learned."""
        ...

    @property
    def reads_class_names(self) -> bool:
        """Whether it can name classes it was not fitted on, from their names."""
        ...

    def probabilities(self, paths: Sequence[Path], class_names: Sequence[str], template: str) -> np.ndarray:
        """Class probabilities of picture files.

        Args:
            paths: N picture files.
            class_names: C names, those it was fitted on or, where it can take them, others.
            template: the hand-written prompt of the data set, for those that use one.
        Returns:
            [N, C] float64, rows sum to 1.
        Raises:
            UserError: it cannot take other class names, or a picture cannot be read.
        """
        ...


class Baseline(Protocol):
    """A frozen dataclass of settings.

    Attributes:
        needs_shots: whether it learns from labelled pictures, so that shots and seed matter.
    """

    needs_shots: ClassVar[bool]

    def wording(self, data: Dataset) -> str:
        """Which words stand around the class names, for people to compare."""
        ...

    def fit(self, backbone: DualEncoder, data: Dataset, features: ImageFeatures) -> Scorer:
        """Learn from the train and val parts of a data set whatever there is to learn.

        Args:
            backbone: the frozen model.
            data: the data set.
            features: shared features of picture files.
        """
        ...


@dataclass(frozen=True)
class ZeroShot:
    """The class name in one hand-written template, nothing learned (Radford et al. 2021)."""

    words: str | None = None
    """The template, with one {}; by default that of the data set."""
    needs_shots: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.words is not None:
            check_template(self.words)

    def wording(self, data: Dataset) -> str:
        """The template."""
        return self.words or data.template

    def fit(self, backbone: DualEncoder, data: Dataset, features: ImageFeatures) -> Scorer:
        """Nothing to learn: class features are made when names are known."""
        return _Words(backbone, features, () if self.words is None else (self.words,))


@dataclass(frozen=True)
class ZeroShotEnsemble:
    """The class name in the set's own templates, or in ImageNet's 80, features averaged (Radford et al. 2021)."""

    needs_shots: ClassVar[bool] = False

    def wording(self, data: Dataset) -> str:
        """How many templates."""
        return f"mean of {len(_ensemble_of(data))}"

    def fit(self, backbone: DualEncoder, data: Dataset, features: ImageFeatures) -> Scorer:
        """Nothing to learn: class features are made when names are known."""
        return _Words(backbone, features, _ensemble_of(data))


@dataclass(frozen=True)
class NearestClassMean:
    """The class whose mean image feature is nearest by cosine."""

    needs_shots: ClassVar[bool] = True

    def wording(self, data: Dataset) -> str:
        """None: class names are not read."""
        return "none"

    def fit(self, backbone: DualEncoder, data: Dataset, features: ImageFeatures) -> Scorer:
        """The mean of the unit-norm features of each class, again of unit norm."""
        rows, labels = features.of([item.path for item in data.train]), _labels(data.train)
        means = torch.stack([rows[labels == c].mean(0) for c in range(len(data.class_names))])  # [C, E]
        return _ClassMeans(backbone, features, data.class_names, torch.nn.functional.normalize(means, dim=-1))


@dataclass(frozen=True)
class LinearProbe:
    """Logistic regression on frozen image features, its strength chosen on validation (Radford et al. 2021)."""

    inverse_strength: float | None = None
    """C of the L2 penalty, above 0; by default the best of 1e-6 to 1e6 on the val part."""
    max_iter: int = 1000
    """Iterations of L-BFGS, 1 or more."""
    needs_shots: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.inverse_strength is not None and not 0 < self.inverse_strength < math.inf:
            advice = "Use --inverse-strength 0.316, or leave it out."
            raise bad_value("inverse_strength", self.inverse_strength, "a number above 0 was expected", advice)
        if self.max_iter < 1:
            raise bad_value("max_iter", self.max_iter, "it must be 1 or more", "Use --max-iter 1000.")

    def wording(self, data: Dataset) -> str:
        """None: class names are not read."""
        return "none"

    def fit(self, backbone: DualEncoder, data: Dataset, features: ImageFeatures) -> Scorer:
        """Fit one logistic regression with C as given or as validation says.

        Raises:
            UserError: C is to be chosen and there are no val pictures.
        """
        if self.inverse_strength is None and not data.val:
            raise UserError(
                f"a linear probe chooses its strength on validation pictures, but {data.name} has none. "
                "Give --inverse-strength 0.316, or pictures with a val part."
            )
        train = _matrix(features, data.train)
        strength = self.inverse_strength
        if strength is None:
            val, truth = _matrix(features, data.val), _labels(data.val).numpy()

            def accuracy(c: float) -> float:
                return float((self._regression(train, data.train, c).predict(val) == truth).mean())

            strength = 10 ** best_exponent(accuracy)
        return _Regression(self._regression(train, data.train, strength), features, data.class_names)

    def _regression(self, rows: np.ndarray, items: Sequence[Item], strength: float) -> Any:
        from sklearn.linear_model import LogisticRegression

        with warnings.catch_warnings():
            # One picture a class is what a 1-shot probe is; scikit-learn takes it for a regression.
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
            return LogisticRegression(C=strength, max_iter=self.max_iter).fit(rows, _labels(items).numpy())


def best_exponent(accuracy: Any) -> float:
    """The power of ten C with the best validation accuracy, found as Radford et al. 2021 describe.

    First -6, -4, ... 6; then, about the best so far, steps of half the width, down to eight a decade.

    Args:
        accuracy: a function of C.
    """
    tried = {exponent: accuracy(10**exponent) for exponent in np.arange(-LARGEST_C, LARGEST_C + 1, COARSE_STEP)}
    step = COARSE_STEP / 2
    while step >= FINE_STEP:
        peak = max(tried, key=lambda exponent: tried[exponent])
        for exponent in (peak - step, peak + step):
            if abs(exponent) <= LARGEST_C:
                tried[exponent] = accuracy(10**exponent)
        step /= 2
    return float(max(tried, key=lambda exponent: tried[exponent]))


def _ensemble_of(data: Dataset) -> tuple[str, ...]:
    return data.templates if len(data.templates) > 1 else imagenet_templates()


def ensemble_features(backbone: DualEncoder, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Class features averaged over templates: unit norm, mean, unit norm again (Radford et al. 2021).

    Args:
        backbone: the frozen model.
        class_names: C names.
        templates: K templates with one `{}` each, at least one.
    Returns:
        [C, E] of unit norm.
    """
    with torch.no_grad():
        each = [zero_shot(backbone, class_names, template).class_features() for template in templates]
    return torch.nn.functional.normalize(torch.stack(each).mean(0), dim=-1)  # [K, C, E] to [C, E]


def imagenet_templates() -> tuple[str, ...]:
    """The 80 templates that OpenAI published for ImageNet, as open_clip carries them."""
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


@dataclass(frozen=True)
class _Words:
    backbone: DualEncoder
    features: ImageFeatures
    templates: tuple[str, ...]
    n_parameters: int = 0
    reads_class_names: bool = True

    def probabilities(self, paths: Sequence[Path], class_names: Sequence[str], template: str) -> np.ndarray:
        templates = self.templates or (template,)
        class_features = ensemble_features(self.backbone, class_names, templates) if len(templates) > 1 else None
        prompt = Prompt(TextLayout(templates[0]), {})
        return probabilities(Classifier(self.backbone, prompt, class_names, class_features), paths, self.features)


@dataclass(frozen=True)
class _ClassMeans:
    backbone: DualEncoder
    features: ImageFeatures
    class_names: tuple[str, ...]
    means: Tensor
    reads_class_names: bool = False

    @property
    def n_parameters(self) -> int:
        return self.means.numel()

    def probabilities(self, paths: Sequence[Path], class_names: Sequence[str], template: str) -> np.ndarray:
        _refuse_other_names("nearest-class-mean", self.class_names, class_names)
        prompt = Prompt(TextLayout(template), {})
        return probabilities(Classifier(self.backbone, prompt, class_names, self.means), paths, self.features)


@dataclass(frozen=True)
class _Regression:
    model: Any
    features: ImageFeatures
    class_names: tuple[str, ...]
    reads_class_names: bool = False

    @property
    def n_parameters(self) -> int:
        return self.model.coef_.size + self.model.intercept_.size

    def probabilities(self, paths: Sequence[Path], class_names: Sequence[str], template: str) -> np.ndarray:
        _refuse_other_names("linear-probe", self.class_names, class_names)
        return self.model.predict_proba(_rows(self.features, paths))


def _refuse_other_names(name: str, known: Sequence[str], asked: Sequence[str]) -> None:
    if tuple(known) != tuple(asked):
        raise UserError(
            f"{name} knows the {len(known)} classes it was fitted on and no others. "
            "Compare on new classes with methods that read class names, such as coop or zero-shot."
        )


def _labels(items: Sequence[Item]) -> Tensor:
    return torch.tensor([item.label for item in items])


def _matrix(features: ImageFeatures, items: Sequence[Item]) -> np.ndarray:
    return _rows(features, [item.path for item in items])


def _rows(features: ImageFeatures, paths: Sequence[Path]) -> np.ndarray:
    return features.of(paths).double().cpu().numpy()  # [N, E]


BASELINES: dict[str, type[Any]] = {
    "zero-shot": ZeroShot,
    "zero-shot-ensemble": ZeroShotEnsemble,
    "nearest-class-mean": NearestClassMean,
    "linear-probe": LinearProbe,
}


def make_baseline(name: str, settings: Mapping[str, Any] | None = None) -> Baseline:
    """A baseline from its name and settings.

    Raises:
        UserError: the name or a setting is unknown, or a value is out of range.
    """
    if name not in BASELINES:
        raise unknown_name("baseline", name, BASELINES)
    known = [field.name for field in fields(BASELINES[name])]
    for key in settings or {}:
        if key not in known:
            raise unknown_name(f"setting of {name}", key, known)
    return BASELINES[name](**(settings or {}))
