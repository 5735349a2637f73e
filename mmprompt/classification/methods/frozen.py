"""Methods that train no prompt: zero-shot, and heads fitted in closed form or by a solver on frozen image features."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Gt

from mmprompt.classification.methods.base import ClassificationMethod
from mmprompt.core.method import FrozenFeatures, Start
from mmprompt.data.class_names import check_template
from mmprompt.errors import UserError
from mmprompt.settings import Count

if TYPE_CHECKING:
    import numpy as np

    from mmprompt.classification.predictor import Classifier
    from mmprompt.core.learned import Prompt
    from mmprompt.models.dual_encoder.interface import DualEncoder

COARSE_STEP = 2  # decades between the values of C tried first
FINE_STEP = 1 / 8
LARGEST_C = 6


@dataclass(frozen=True)
class ZeroShot(ClassificationMethod):
    """The class name in one hand-written template, nothing learned (Radford et al. 2021, section 3.1)."""

    words: str | None = None
    """The template, with one {}; by default that of the data set."""
    needs_shots: ClassVar[bool] = False
    is_trained: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.words is not None:
            check_template(self.words)

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Make the template alone."""
        from mmprompt.classification.template import ClassTemplate
        from mmprompt.core.learned import Prompt

        return Prompt(start.template if self.words is None else ClassTemplate(self.words))


@dataclass(frozen=True)
class ZeroShotEnsemble(ClassificationMethod):
    """The class name in the set's own templates, or in ImageNet's 80, features averaged (Radford et al. 2021)."""

    needs_shots: ClassVar[bool] = False
    is_trained: ClassVar[bool] = False

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Make the templates alone."""
        from mmprompt.classification.template import ClassTemplate
        from mmprompt.core.learned import Prompt

        return Prompt(ClassTemplate("\n".join(start.templates if len(start.templates) > 1 else imagenet_templates())))


def imagenet_templates() -> tuple[str, ...]:
    """Give the 80 templates that OpenAI published for ImageNet, as open_clip carries them."""
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


@dataclass(frozen=True)
class NearestClassMean(ClassificationMethod):
    """The class whose mean image feature is nearest by cosine."""

    is_trained: ClassVar[bool] = False

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Make the template alone; it is not read."""
        from mmprompt.core.learned import Prompt

        return Prompt(start.template)

    def begin(self, predictor: Classifier, data: FrozenFeatures) -> None:
        """Take the mean of the unit-norm features of each class, again of unit norm, as the head."""
        import torch
        import torch.nn.functional as F

        from mmprompt.core.learned import ClassMeans

        n_classes, backbone = len(predictor.class_names), predictor.backbone
        each = [data.image_features[data.labels == label].mean(0) for label in range(n_classes)]
        head = ClassMeans(n_classes, backbone.embed_dim, backbone.logit_scale, backbone.logit_bias)
        head.means.copy_(F.normalize(torch.stack(each), dim=-1))
        predictor.prompt.head = head.to(backbone.device)


@dataclass(frozen=True)
class LinearProbe(ClassificationMethod):
    """Logistic regression on frozen image features, its strength chosen on validation (Radford et al. 2021)."""

    inverse_strength: Annotated[float, Gt(0)] | None = None
    """C of the L2 penalty, above 0; by default the best of 1e-6 to 1e6 on the val part."""
    max_iter: Count = 1000
    """Iterations of L-BFGS, 1 or more."""
    is_trained: ClassVar[bool] = False

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Make the template alone; it is not read."""
        from mmprompt.core.learned import Prompt

        return Prompt(start.template)

    def begin(self, predictor: Classifier, data: FrozenFeatures) -> None:
        """Fit one logistic regression with C as given or as validation says, and take it as the head.

        Raises:
            UserError: C is to be chosen and there are no val images.
        """
        import torch

        from mmprompt.core.learned import Linear

        rows, labels = data.image_features.double().cpu().numpy(), data.labels.cpu().numpy()
        strength = self.inverse_strength
        if strength is None:
            validation = data.validation()
            if validation is None:
                raise UserError(
                    "a linear probe chooses its strength on validation images, but this data has none. "
                    "Give `inverse_strength=0.316`, or images with a val part."
                )
            val, truth = validation[0].double().cpu().numpy(), validation[1].cpu().numpy()
            strength = 10 ** best_exponent(
                lambda c: float((self._fitted(rows, labels, c).predict(val) == truth).mean())
            )
        model = self._fitted(rows, labels, strength)
        weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
        if len(weight) == 1:  # of two classes scikit-learn fits the second against the first
            weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
        head = Linear(*weight.shape)
        head.weight.copy_(weight)
        head.bias.copy_(bias)
        predictor.prompt.head = head.to(predictor.backbone.device)

    def _fitted(self, rows: np.ndarray, labels: np.ndarray, strength: float) -> Any:
        from sklearn.linear_model import LogisticRegression

        with warnings.catch_warnings():
            # One image a class is what a 1-shot probe is; scikit-learn takes it for a regression.
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
            return LogisticRegression(C=strength, max_iter=self.max_iter).fit(rows, labels)


def best_exponent(accuracy: Callable[[float], float]) -> float:
    """Find the power of ten C with the best validation accuracy, as Radford et al. 2021 describe.

    First -6, -4, ... 6; then, about the best so far, steps of half the width, down to eight a decade.

    Args:
        accuracy: a function of C.
    """
    tried: dict[float, float] = {
        exponent: accuracy(10**exponent) for exponent in range(-LARGEST_C, LARGEST_C + 1, COARSE_STEP)
    }
    step = COARSE_STEP / 2
    while step >= FINE_STEP:
        peak = max(tried, key=lambda exponent: tried[exponent])
        for exponent in (peak - step, peak + step):
            if abs(exponent) <= LARGEST_C:
                tried[exponent] = accuracy(10**exponent)
        step /= 2
    return float(max(tried, key=lambda exponent: tried[exponent]))
