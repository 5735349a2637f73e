"""Classifiers of a form of their own: one divides its logits by a temperature, one tunes its prompt on each image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Gt, Lt
from torch import Tensor, nn

from mmprompt.classification.methods.tpt import TPT
from mmprompt.classification.predictor import CLASSIFIERS, Classifier
from mmprompt.classification.template import refuse_single_class
from mmprompt.core.learned import Outputs, Prompt
from mmprompt.data.images import ImageLike, as_list, read_image
from mmprompt.data.transforms import augment_augmix, augment_coop
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.image_features import ImageFeatures
from mmprompt.settings import annotations_of, check

Temperature = Annotated[float, Gt(0), Lt(1e6)]


class Calibrated(Classifier):
    """A classifier with its logits divided by a temperature above 0 (Guo et al. 2017, section 4.2).

    Above 1 it is less sure.
    """

    form: ClassVar[str] = "calibrated"

    def __init__(
        self,
        backbone: DualEncoder,
        prompt: Prompt,
        class_names: Sequence[str],
        class_features: Tensor | None = None,
        temperature: float = 1.0,
    ) -> None:
        check("temperature", temperature, Temperature, "Use `temperature=1.0`.")
        self.temperature = temperature
        super().__init__(backbone, prompt, class_names, class_features)

    def outputs(self, image_features: Tensor, labels: Tensor | None = None, frozen: Outputs | None = None) -> Outputs:
        """See `Classifier`."""
        outputs = super().outputs(image_features, labels, frozen)
        return replace(outputs, logits=outputs.logits / self.temperature)

    def form_settings(self) -> dict[str, Any]:
        """Give the temperature."""
        return {"temperature": self.temperature}


def calibrated(classifier: Classifier, temperature: float) -> Calibrated:
    """Return a classifier of the same prompt with its logits divided by a temperature, on top of any before.

    One of a form of its own is refused.
    """
    if isinstance(classifier, Calibrated):
        temperature *= classifier.temperature
    elif classifier.form:
        raise UserError(f"a {classifier.form} classifier cannot be calibrated. Use a prompt of another method.")
    features = classifier.kept_tensors().get("class_features")
    prompt = classifier.prompt.sharing_sources(classifier.prompt.template, classifier.prompt.head)
    return Calibrated(classifier.backbone, prompt, classifier.class_names, features, temperature)


class TestTimeClassifier(Classifier):
    """What is learned in the text tower is tuned on views of each image (Shu et al. 2022, "TPT", section 3.2).

    The mean probabilities of the most confident views are made less uncertain by single steps of AdamW. Views are drawn
    alike for every image, so that a prediction does not depend on what was predicted before.

    Args:
        backbone, prompt, class_names, class_features: as of `Classifier`.
        n_views: the image and its crops.
        confident_share: share of the views with the lowest entropy, 0..1.
        step_size: learning rate.
        n_tuning_steps: for each image.
        augmix: whether AugMix changes the crops.
    Raises:
        UserError: one of the last five is nothing that `TPT` takes.
    """

    __test__ = False  # no class of tests, whatever its name
    form = "test-time"

    def __init__(
        self,
        backbone: DualEncoder,
        prompt: Prompt,
        class_names: Sequence[str],
        class_features: Tensor | None = None,
        *,
        n_views: int,
        confident_share: float,
        step_size: float,
        n_tuning_steps: int,
        augmix: bool = False,
    ) -> None:
        super().__init__(backbone, prompt, class_names, class_features)
        self.n_views, self.confident_share = n_views, confident_share
        self.step_size, self.n_tuning_steps, self.augmix = step_size, n_tuning_steps, augmix
        for name, value in self.form_settings().items():
            check(name, value, annotations_of(TPT)[name], f"Use `{name}={getattr(TPT, name)}`.")

    def form_settings(self) -> dict[str, Any]:
        """See `Classifier`."""
        names = ("n_views", "confident_share", "step_size", "n_tuning_steps", "augmix")
        return {name: getattr(self, name) for name in names}

    def probabilities(self, paths: Sequence[Path], features: ImageFeatures | None = None) -> np.ndarray:
        """See `Classifier`; views of images are not kept."""
        return self.predict_proba(list(paths))

    def predict_proba(self, images: ImageLike | Iterable[ImageLike]) -> np.ndarray:
        """See `Classifier`."""
        refuse_single_class(self.class_names)
        with self.in_use():
            rows = [self._adapted(image) for image in as_list(images)]
        return np.stack(rows) if rows else np.zeros((0, len(self.class_names)))

    def _adapted(self, source: ImageLike) -> np.ndarray:
        with torch.no_grad():
            features = self.image_features(self.views(source).to(self.backbone.dtype))
        with self.tuned_on(features), torch.no_grad():
            return self.outputs(features[:1]).logits[0].double().softmax(-1).cpu().numpy()

    def views(self, image: ImageLike) -> Tensor:
        """Draw the views of an image, itself first: [V, 3, H, W] float32, normalised."""
        read, size = read_image(image), self.backbone.image_size
        augment = augment_augmix if self.augmix else augment_coop
        crops = (augment(read, size, seed=0, epoch=view, index=0) for view in range(self.n_views - 1))
        return torch.stack([self.backbone.preprocess(read), *map(self.backbone.normalize, crops)])

    @contextmanager
    def tuned_on(self, features: Tensor) -> Iterator[list[float]]:
        """Tune what is learned in the text tower on views [V, E] of an image for a while; give each step's loss."""
        tuned = [parameter for source in self.prompt.sources_of("text") for parameter in source.parameters()]
        before = [parameter.detach().clone() for parameter in tuned]
        needed = [parameter.requires_grad for parameter in tuned]
        try:
            for parameter in tuned:
                parameter.requires_grad_(True)
            yield self._tune(tuned, features)
        finally:
            for parameter, value, need in zip(tuned, before, needed, strict=True):
                parameter.grad = None
                parameter.requires_grad_(need)
                with torch.no_grad():
                    parameter.copy_(value)

    def _tune(self, parameters: list[nn.Parameter], features: Tensor) -> list[float]:
        losses: list[float] = []
        optimizer = torch.optim.AdamW(parameters, lr=self.step_size)
        confident: Tensor | None = None
        for _ in range(self.n_tuning_steps):
            with torch.enable_grad():
                logits = self.outputs(features).logits
                if confident is None:
                    entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1)
                    confident = entropy.argsort(stable=True)[: max(1, int(len(logits) * self.confident_share))]
                loss = entropy_of_mean(logits[confident])
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses


def entropy_of_mean(logits: Tensor) -> Tensor:
    """Compute the entropy of the mean of the rows' probabilities [V, C]."""
    log_mean = logits.log_softmax(1).logsumexp(0) - float(np.log(len(logits)))
    return -(log_mean.exp() * log_mean).sum()


CLASSIFIERS |= {kind.form: kind for kind in (Calibrated, TestTimeClassifier)}
