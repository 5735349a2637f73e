"""A frozen dual encoder and a prompt, together a classifier: an `nn.Module` for training, `predict` for use.

Whichever tower holds no vectors has features that never change: they are computed once. It knows no
loss and no optimiser.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mmprompt.core.prompt import Prompt
from mmprompt.core.template import check_class_names, refuse_single_class
from mmprompt.data.images import ImageLike, as_list, is_one, read_image
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.interface import DualEncoder

PREDICT_BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one picture.

    Args:
        label: the most probable class name.
        probability: its probability, 0..1.
        probabilities: the probability of every class, most probable first.
    """

    label: str
    probability: float
    probabilities: dict[str, float]


class Classifier(nn.Module):
    """Logits over class names from a frozen backbone steered by a prompt.

    The backbone is not a sub-module: `parameters()` and `state_dict()` hold the prompt alone.

    Args:
        backbone: the frozen model.
        prompt: the learned vectors and the words around the class name.
        class_names: C names, the order of the logits.
        class_features: [C, E] of unit norm as saved, so that loading encodes no text; computed if None.
    Raises:
        UserError: a class name is empty, repeated, or too long for the text tower.
    """

    def __init__(
        self,
        backbone: DualEncoder,
        prompt: Prompt,
        class_names: Sequence[str],
        class_features: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.prompt = prompt
        check_class_names(class_names)
        self.class_names = tuple(class_names)
        self._slots = None if class_features is not None else prompt.layout.slots(backbone, self.class_names)
        self._cached = class_features
        self._cached_for = self._versions() if class_features is not None else None

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch.

        Args:
            images: [B, 3, H, W], as `backbone.preprocess` gives them.
        Returns:
            [B, C].
        """
        return self.logits(self.image_features(images), self.class_features())

    def logits(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """The scaled cosine of features of unit norm: [B, E] and [C, E] to [B, C]."""
        return self.backbone.logit_scale * image_features @ class_features.T + self.backbone.logit_bias

    def image_features(self, images: Tensor) -> Tensor:
        """Unit-norm features [B, E] of images [B, 3, H, W]; no graph is kept where no vision site is prompted."""
        images = images.to(self.backbone.device)
        if not self.prompt.has("vision"):
            with torch.no_grad():
                return self.backbone.encode_image(images)
        return self.backbone.encode_image(images, self.prompt.vectors("vision"))

    def class_features(self) -> Tensor:
        """Unit-norm features [C, E] of the class names, computed again only if the vectors have changed."""
        if torch.is_grad_enabled() and any(p.requires_grad for p in self._text_parameters()):
            return self._encode_text()
        versions = self._versions()
        if self._cached is None or self._cached_for != versions:
            with torch.no_grad():
                self._cached, self._cached_for = self._encode_text(), versions
        return self._cached

    def _encode_text(self) -> Tensor:
        if self._slots is None:
            self._slots = self.prompt.layout.slots(self.backbone, self.class_names)
        return self.backbone.encode_text(self._slots, self.prompt.vectors("text"))

    def _text_parameters(self) -> list[nn.Parameter]:
        pairs = zip(self.prompt.sites, self.prompt.sources, strict=True)
        return [parameter for site, source in pairs if site.tower == "text" for parameter in source.parameters()]

    def _versions(self) -> tuple[tuple[int, int], ...]:
        """Where the text vectors lie and how often they were written to: changes with every update."""
        return tuple((parameter.data_ptr(), parameter._version) for parameter in self._text_parameters())

    def predict_proba(self, images: ImageLike | Iterable[ImageLike]) -> np.ndarray:
        """Class probabilities of pictures.

        Args:
            images: a path, PIL image, array (HWC or HW) or tensor (CHW), or many of them.
        Returns:
            [N, C] float64, rows sum to 1, columns in the order of `class_names`.
        Raises:
            UserError: there is one class only, or a picture cannot be read.
        """
        refuse_single_class(self.class_names)
        sources = as_list(images)
        rows = [self._probabilities(sources[i : i + PREDICT_BATCH]) for i in range(0, len(sources), PREDICT_BATCH)]
        return np.concatenate(rows) if rows else np.zeros((0, len(self.class_names)))

    @torch.no_grad()
    def _probabilities(self, sources: Sequence[ImageLike]) -> np.ndarray:
        batch = torch.stack([self.backbone.preprocess(read_image(source)) for source in sources])
        return self(batch.to(self.backbone.dtype)).double().softmax(dim=-1).cpu().numpy()

    def predict(self, images: ImageLike | Iterable[ImageLike]) -> Prediction | list[Prediction]:
        """What the classifier sees: a `Prediction` for one picture, a list of them for many.

        Args:
            images: as for `predict_proba`.
        Raises:
            UserError: as for `predict_proba`.
        """
        predictions = [self._prediction(row) for row in self.predict_proba(images)]
        return predictions[0] if is_one(images) else predictions

    def _prediction(self, row: np.ndarray) -> Prediction:
        order = np.argsort(-row, kind="stable")
        ranked = {self.class_names[i]: float(row[i]) for i in order}
        best = next(iter(ranked))
        return Prediction(best, ranked[best], ranked)

    def with_class_names(self, class_names: Sequence[str]) -> Classifier:
        """The same prompt with other class names (base to new).

        Raises:
            UserError: the context is class-specific, or a name is empty, repeated or too long.
        """
        if self.prompt.is_class_specific:
            raise UserError(
                "this prompt has one context per class, so it cannot take other class names. "
                "Train with class_specific=False for that."
            )
        return Classifier(self.backbone, self.prompt, class_names)
