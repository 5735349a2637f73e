"""Heads that are solved on image features, in closed form or by a solver, once all else is learned.

What they choose, they choose by the log-loss of images held out: those of the val part, else folds of the training
images, with all copies of an image in one, else, with one image a class, a stated default.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Gt

from mmprompt.classification.methods.heads import HeadMethod, put, scale_of
from mmprompt.core.method import FrozenFeatures
from mmprompt.errors import UserError
from mmprompt.quiet import quiet
from mmprompt.settings import Count

if TYPE_CHECKING:
    from torch import Tensor

    from mmprompt.classification.predictor import Classifier

COARSE_STEP = 2  # decades between the values of C tried first
FINE_STEP = 1 / 8
LARGEST_C = 6
N_FOLDS = 5
DEFAULT_C = 0.316
TEXT_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
DEFAULT_TEXT_SHARE = 0.5
GDA_WEIGHTS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class SolvedHead(HeadMethod):
    """A method whose head is solved and not trained."""

    is_trained: ClassVar[bool] = False


@dataclass(frozen=True)
class NearestClassMean(SolvedHead):
    """The class whose mean image feature is nearest by cosine."""

    reads_text: ClassVar[bool] = False

    def finish(self, predictor: Classifier, data: FrozenFeatures) -> None:
        """Take the mean of the unit-norm features of each class, again of unit norm, as the head."""
        import torch.nn.functional as F

        from mmprompt.core.heads import ClassMeans

        features = F.normalize(data.image_features, dim=-1)
        means = F.normalize(class_means(features, data.labels, len(predictor.class_names)), dim=-1)
        scale, bias = scale_of(predictor)
        head = ClassMeans(len(means), means.shape[1], scale, bias)
        head.means.copy_(means)
        put(predictor, head)


@dataclass(frozen=True)
class TextAndMeans(SolvedHead):
    """The text of each class and its labelled images together, as one vector: `unit(text + sum of images)`.

    The text counts as much as one image. Nothing is trained and nothing chosen but the scale of the logits, which the
    training images say, each left out in turn, where every class has two or more.
    """

    def finish(self, predictor: Classifier, data: FrozenFeatures) -> None:
        """Add up the images, and set the scale."""
        from mmprompt.core.heads import TextAndMeans as Head

        text = predictor.class_features()
        scale, bias = scale_of(predictor)
        head = Head(len(text), text.shape[1], scale, bias).to(text.device)
        head.add(data.image_features, data.labels)
        head.scale = scale * left_out_temperature(head, data, text.double())
        put(predictor, head)


@dataclass(frozen=True)
class LinearProbe(SolvedHead):
    """Logistic regression on frozen image features (Radford et al. 2021, "Learning Transferable Visual Models").

    The paper chooses its strength by accuracy; many strengths share the best one, and the weakest of them is badly
    calibrated. Here the log-loss chooses.
    """

    inverse_strength: Annotated[float, Gt(0)] | None = None
    """C of the L2 penalty, above 0; by default the best of 1e-6 to 1e6 on images held out."""
    max_iter: Count = 1000
    """Iterations of L-BFGS, 1 or more."""
    reads_text: ClassVar[bool] = False

    def finish(self, predictor: Classifier, data: FrozenFeatures) -> None:
        """Fit one logistic regression with C as given or as held-out images say, and take it as the head."""
        from mmprompt.core.heads import Linear

        strength = self.inverse_strength
        if strength is None:
            strength = self._strength(data, len(predictor.class_names))
        n_classes = len(predictor.class_names)
        weight, bias = solve_logistic(strength, self.max_iter, data.image_features, data.labels, n_classes)
        head = Linear(*weight.shape)
        head.weight.copy_(weight)
        head.bias.copy_(bias)
        put(predictor, head)

    def _strength(self, data: FrozenFeatures, n_classes: int) -> float:
        """Choose C by the mean log-loss of images held out, a default where there are none."""
        import torch.nn.functional as F

        splits = list(held_out(data))
        n_held_out = sum(len(truth) for *_, truth in splits)

        def score(strength: float) -> float:
            losses = []
            for features, labels, others, truth in splits:
                weight, bias = solve_logistic(strength, self.max_iter, features, labels, n_classes)
                losses.append(F.cross_entropy((others @ weight.T + bias).double(), truth, reduction="sum").item())
            return -sum(losses) / n_held_out

        return 10 ** best_exponent(score) if splits else DEFAULT_C


@dataclass(frozen=True)
class GDA(SolvedHead):
    """Gaussian discriminant analysis beside the text (Wang et al. 2024, "A Hard-to-Beat Baseline", section 3.2).

    Class means and one shrunk covariance give a linear classifier in closed form; with one image a class the covariance
    is unknown and the text alone is left.
    """

    gda_weight: Annotated[float, Gt(0)] | None = None
    """Weight of the image part beside the text; by default the best of 1e-4 to 100 on images held out, or 1."""

    def finish(self, predictor: Classifier, data: FrozenFeatures) -> None:
        """Solve, and weigh the image part as given or as held-out images say."""
        import torch

        text = predictor.class_features().double()
        scale, bias = scale_of(predictor)
        share = self._share(data, text, scale) if self.gda_weight is None else self.gda_weight
        weight, offset = solve_gda(data.image_features.double(), data.labels, len(text))
        blend(predictor, torch.full((len(text),), scale), share * weight, bias + share * offset)

    def _share(self, data: FrozenFeatures, text: Tensor, scale: float) -> float:
        import torch.nn.functional as F

        losses = dict.fromkeys(GDA_WEIGHTS, 0.0)
        splits = list(held_out(data))
        for features, labels, others, truth in splits:
            weight, offset = solve_gda(features, labels, len(text))
            by_text, by_images = scale * others @ text.T, others @ weight.T + offset
            for share in GDA_WEIGHTS:
                losses[share] += F.cross_entropy(by_text + share * by_images, truth, reduction="sum").item()
        return min(losses, key=lambda share: losses[share]) if splits else 1.0


@dataclass(frozen=True)
class LPPlusPlus(SolvedHead):
    """A linear probe beside the text, each class with its own weight (Huang et al. 2024, "LP++", section 4).

    Step sizes follow from the features, so that nothing is tuned. The text's weights step down their gradient at that
    step; the released code adds up all gradients so far.
    """

    lp_steps: Count = 300
    """Steps of the class vectors, 1 or more; the text's weights step once in ten."""

    def finish(self, predictor: Classifier, data: FrozenFeatures) -> None:
        """Solve, and keep the latest step that is best on the validation images, the last one without any."""
        import torch
        import torch.nn.functional as F

        features, labels = data.image_features.double(), data.labels
        text = predictor.class_features().double()
        cosines, hot = features @ text.T, F.one_hot(labels, len(text)).double()
        weight = (hot.T @ features).requires_grad_(True)  # [C, E]
        bias = torch.zeros(len(text), dtype=torch.float64, device=text.device, requires_grad=True)
        start = 250 * ((hot * cosines).sum(0) / hot.sum(0).clamp_min(1)).mean()
        alpha = torch.full((len(text),), float(start), dtype=torch.float64, device=text.device, requires_grad=True)
        lr = 4 * len(features) / float(torch.linalg.eigvalsh(features.T @ features)[-1])
        alpha_lr = len(features) / float(4 * cosines.square().sum(0).max())
        optimizer = torch.optim.SGD([weight, bias], lr, momentum=0.9)
        best, kept, validation = -1.0, None, data.validation()
        if validation is not None:
            others, truth = validation[0].double(), validation[1]
            others_cosines = others @ text.T
        for step in range(self.lp_steps):
            optimizer.zero_grad()
            alpha.grad = None
            F.cross_entropy(alpha * cosines + features @ weight.T + bias, labels).backward()
            optimizer.step()
            if (step + 1) % 10 == 0 and alpha.grad is not None:
                alpha.data -= alpha_lr * alpha.grad
            if validation is not None:
                right = (alpha * others_cosines + others @ weight.T + bias).argmax(1) == truth
                accuracy = float(right.double().mean())
                if accuracy >= best:
                    best, kept = accuracy, [each.detach().clone() for each in (alpha, weight, bias)]
        blend(predictor, *(kept or [each.detach() for each in (alpha, weight, bias)]))


@dataclass(frozen=True)
class TextProbe(SolvedHead):
    """A linear probe of the image tower's own features, beside the text and the images of each class as one vector.

    The probe is a logistic regression on features before the projection into the joint space, where the backbone gives
    them, centred on the mean of the training images; beside it stands what `TextAndMeans` makes of the same images. How
    much, the log-loss of folds of the training images says; with one image a class it is 0.5. No validation image is
    read. docs/photographs.md says how strength and share were chosen, and on what.
    """

    probe_strength: Annotated[float, Gt(0)] = 100.0
    """C of the probe's L2 penalty, above 0."""
    text_share: Annotated[float, Ge(0)] | None = None
    """Weight of the part with the text; by default the best of 1/16 to 1 on folds of the training images."""
    max_iter: Count = 40
    """Iterations of L-BFGS, 1 or more."""

    def finish(self, predictor: Classifier, data: FrozenFeatures) -> None:
        """Fit the probe, and weigh the text."""
        wide, labels, text = data.wide().double(), data.labels, predictor.class_features().double()
        share = self.text_share
        if share is None:
            share = self._share(predictor, wide, labels, text)
        put(predictor, self._head(predictor, wide, labels, text, share))

    def _share(self, predictor: Classifier, wide: Tensor, labels: Tensor, text: Tensor) -> float:
        import torch.nn.functional as F

        losses = dict.fromkeys(TEXT_SHARES, 0.0)
        folds = list(folds_of(wide, labels))
        for out in folds:
            head = self._head(predictor, wide[~out], labels[~out], text, 0.0)
            joint, probe = wide[out][:, : text.shape[1]], head(wide[out], text)
            beside = head.beside(joint, text)
            for share in TEXT_SHARES:
                losses[share] += F.cross_entropy(probe + share * beside, labels[out], reduction="sum").item()
        return min(losses, key=lambda share: losses[share]) if folds else DEFAULT_TEXT_SHARE

    def _head(self, predictor: Classifier, wide: Tensor, labels: Tensor, text: Tensor, share: float) -> Any:
        import torch.nn.functional as F

        from mmprompt.core.heads import TextProbe as Head

        n_classes, width = text.shape
        raw = wide[:, width:] if wide.shape[1] > width else wide
        head = Head(n_classes, width, raw.shape[1], *scale_of(predictor), share).to(wide.device)
        head.beside.add(wide[:, :width], labels)
        head.centre.copy_(raw.mean(0))
        centred = F.normalize(raw - head.centre, dim=-1)
        weight, bias = solve_logistic(self.probe_strength, self.max_iter, centred, labels, n_classes)
        head.probe.weight.copy_(weight)
        head.probe.bias.copy_(bias)
        return head


def blend(predictor: Classifier, text_weight: Tensor, weight: Tensor, bias: Tensor | float) -> None:
    """Give a classifier the head of cosines weighted by class [C] and a linear map, of weight [C, E] and bias [C]."""
    from mmprompt.core.heads import Blend

    head = Blend(*weight.shape)
    head.text_weight.copy_(text_weight)
    head.weight.copy_(weight)
    head.bias.copy_(bias) if not isinstance(bias, float) else head.bias.fill_(bias)
    put(predictor, head)


def solve_gda(features: Tensor, labels: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """Return weight [C, E] and bias [C] of Gaussian classes of one covariance, shrunk after Kubokawa and Srivastava.

    They are of features [N, E] with labels [N].
    """
    import torch

    means = class_means(features, labels, n_classes)
    centred = features - means[labels]
    n_images, width = centred.shape
    covariance = centred.T.cov() if n_images > 1 else centred.new_zeros(width, width)
    if not covariance.any():
        return torch.zeros_like(means), means.new_full((n_classes,), -math.log(n_classes))
    ridge = covariance.trace() * torch.eye(width, dtype=features.dtype, device=features.device)
    factor = torch.linalg.cholesky((n_images - 1) * covariance + ridge)
    weight = width * torch.cholesky_solve(means.T, factor).T
    return weight, -math.log(n_classes) - (weight * means).sum(1) / 2


def left_out_temperature(head: Any, data: FrozenFeatures, text: Tensor) -> float:
    """Return the factor of the logits that suits the training images, each with its copies left out of its class.

    It is 1 where all images of a class are one. The head has the sums of all of them; the text is [C, E].
    """
    import torch
    import torch.nn.functional as F

    features, labels, rows = data.image_features.double(), data.labels, torch.arange(len(data.labels))
    images = torch.stack([labels, numbers_in_class(features, labels)])
    distinct, which, n_copies = torch.unique(images, dim=1, return_inverse=True, return_counts=True)
    if int(torch.bincount(distinct[0], minlength=len(text)).min()) < 2:
        return 1.0
    logits = features @ F.normalize(head.sums + text, dim=-1).T
    without = F.normalize(head.sums[labels] - n_copies[which, None] * features + text[labels], dim=-1)
    logits[rows, labels] = (features * without).sum(-1)
    logits = head.scale * logits
    losses = {power: F.cross_entropy(2.0 ** (power / 8) * logits, labels).item() for power in range(-24, 25)}
    return 2.0 ** (min(losses, key=lambda power: losses[power]) / 8)


def class_means(features: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Return the mean feature of each class [C, E], zero for a class without images."""
    import torch.nn.functional as F

    hot = F.one_hot(labels, n_classes).to(features.dtype)
    return hot.T @ features / hot.sum(0).clamp_min(1)[:, None]


def held_out(data: FrozenFeatures) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield features and labels to fit on, and those to choose by; nothing where there are none to hold out."""
    features, labels = data.image_features.double(), data.labels
    validation = data.validation()
    if validation is not None:
        yield features, labels, validation[0].double(), validation[1]
        return
    for out in folds_of(features, labels):
        yield features[~out], labels[~out], features[out], labels[out]


def folds_of(features: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """Yield masks [N] of images to hold out, some of every class, copies of an image together.

    Nothing where all images of a class are one.
    """
    numbers = numbers_in_class(features, labels)
    n_folds = min(N_FOLDS, 1 + min(int(numbers[labels == label].max()) for label in labels.unique()))
    for fold in range(n_folds if n_folds > 1 else 0):
        yield numbers % n_folds == fold


def numbers_in_class(features: Tensor, labels: Tensor) -> Tensor:
    """Number the images of every class from 0 as they come [N], copies of an image alike."""
    import torch

    same = torch.unique(features, dim=0, return_inverse=True)[1].tolist()
    known: dict[int, dict[int, int]] = defaultdict(dict)
    pairs = zip(labels.tolist(), same, strict=True)
    numbers = [known[label].setdefault(image, len(known[label])) for label, image in pairs]
    return torch.tensor(numbers, device=labels.device)


def solve_logistic(
    strength: float, max_iter: int, features: Tensor, labels: Tensor, n_classes: int
) -> tuple[Tensor, Tensor]:
    """Return weight [C, E] and bias [C] of scikit-learn's logistic regression; refuse a class without images."""
    import torch
    from sklearn.linear_model import LogisticRegression

    n_seen = len(torch.unique(labels))
    if n_seen < n_classes:
        raise UserError(
            f"{n_seen} of {n_classes} classes have training images, but a linear probe needs some of each. Add some, "
            "leave out the other classes, or use a head that reads the text of a dual encoder, such as gda."
        )
    # One image a class is what a 1-shot probe is; scikit-learn takes it for a regression.
    with quiet("The number of unique classes", UserWarning):
        model = LogisticRegression(C=strength, max_iter=max_iter)
        model.fit(features.double().cpu().numpy(), labels.cpu().numpy())
    weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    if len(weight) == 1:  # of two classes scikit-learn fits the second against the first
        weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
    return weight.to(features.device), bias.to(features.device)


def best_exponent(score: Callable[[float], float]) -> float:
    """Find the power of ten C with the best score, searched as Radford et al. 2021 describe.

    First -6, -4, ... 6; then, about the best so far, steps of half the width, down to eight a decade.
    """
    tried: dict[float, float] = {
        exponent: score(10**exponent) for exponent in range(-LARGEST_C, LARGEST_C + 1, COARSE_STEP)
    }
    step = COARSE_STEP / 2
    while step >= FINE_STEP:
        peak = max(tried, key=lambda exponent: tried[exponent])
        for exponent in (peak - step, peak + step):
            if abs(exponent) <= LARGEST_C and exponent not in tried:
                tried[exponent] = score(10**exponent)
        step /= 2
    return float(max(tried, key=lambda exponent: tried[exponent]))
