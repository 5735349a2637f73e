"""A head chosen among others by images held out of the training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from mmprompt.classification.methods.solved import (
    GDA,
    LinearProbe,
    NearestClassMean,
    SolvedHead,
    TextAndMeans,
    TextProbe,
    folds_of,
)
from mmprompt.core.method import FrozenFeatures

if TYPE_CHECKING:
    from torch import Tensor

    from mmprompt.classification.predictor import Classifier

CANDIDATES: tuple[tuple[str, SolvedHead], ...] = (
    ("text-probe", TextProbe()),
    ("text-and-means", TextAndMeans()),
    ("gda", GDA()),
    *(("linear-probe", LinearProbe(strength)) for strength in (1.0, 10.0, 100.0, 1000.0)),
    ("nearest-class-mean", NearestClassMean()),
)
"""By name; what each still chooses it chooses within the images it is fitted on. The first is taken where none can be
held out."""


@dataclass(frozen=True)
class Auto(SolvedHead):
    """The head that suits the images best: text-probe, text-and-means, gda, linear-probe or nearest-class-mean.

    Each is fitted on folds of the training images and has the images left out to name; the lowest log-loss wins, of
    equal ones the higher accuracy. Validation images are not read. With one image a class it is text-probe. On an image
    tower alone those that read no text are left, and with one image a class it is linear-probe.
    """

    reads_text: ClassVar[bool] = False

    def finish(self, predictor: Classifier, data: FrozenFeatures) -> Sequence[str]:
        """Choose a head, fit it on all training images, and say which it is and why."""
        wide, has_text = data.wide(), predictor.backbone.has_text
        candidates = [(name, head) for name, head in CANDIDATES if has_text or not head.reads_text]
        everything = replace(data, validation=lambda: None, wide=lambda: wide)
        folds = list(folds_of(data.image_features, data.labels))
        if not folds:
            name, head = candidates[0]
            head.finish(predictor, everything)
            return [f"auto took {name}: a class has one image, so none could be held out to choose by."]
        scores = [_score(head, predictor, everything, wide, folds) for _, head in candidates]
        order = sorted(range(len(scores)), key=lambda place: (scores[place][0], -scores[place][1]))
        name, head = candidates[order[0]]
        head.finish(predictor, everything)
        rival = next(place for place in order if candidates[place][0] != name)
        losses = f"log-loss {scores[order[0]][0]:.2g} on images held out, next {candidates[rival][0]}"
        return [f"auto chose {name}: {losses} {scores[rival][0]:.2g}."]


def _score(
    head: SolvedHead, predictor: Classifier, data: FrozenFeatures, wide: Tensor, folds: Sequence[Tensor]
) -> tuple[float, float]:
    """Return mean log-loss, to four digits so that what is equal counts as equal, and accuracy on images left out."""
    import torch.nn.functional as F

    loss, n_right = 0.0, 0
    for out in folds:
        head.finish(predictor, _some(data, wide, ~out))
        logits = predictor.outputs(wide[out] if predictor.reads_raw else data.image_features[out]).logits.double()
        loss += F.cross_entropy(logits, data.labels[out], reduction="sum").item()
        n_right += int((logits.argmax(1) == data.labels[out]).sum())
    n_out = sum(int(out.sum()) for out in folds)
    return round(loss / n_out, 4), n_right / n_out


def _some(data: FrozenFeatures, wide: Tensor, these: Tensor) -> FrozenFeatures:
    """Return some of the training images, as if there were no others."""
    return replace(data, image_features=data.image_features[these], labels=data.labels[these], wide=lambda: wide[these])
