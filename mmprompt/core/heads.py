"""Heads: from the features of images and classes to logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprompt.core.learned import made_with


class Head(nn.Module):
    """A module from image features [B, E] and class features, both of unit norm, to logits [B, C].

    Attributes:
        kind: the name under which a prompt file keeps its settings and state; a key of `HEADS` when it is read.
        is_class_specific: whether it belongs to the classes it was made for, so that no others can be named.
        reads_raw: whether it also reads what the image tower gives before the projection: image features are then
            [B, E + W], the W raw ones of unit norm last; [B, E] of a backbone that has none.
        reads_text: whether it looks at class features, which an image tower alone does not give.
    """

    kind: ClassVar[str] = ""
    is_class_specific: bool = True
    reads_raw: ClassVar[bool] = False
    reads_text: ClassVar[bool] = True
    if TYPE_CHECKING:

        def __call__(self, image_features: Tensor, class_features: Tensor) -> Tensor:  # noqa: D102
            ...

    def settings(self) -> dict[str, Any]:
        """Give the keyword arguments, JSON-ready, with which `HEADS[kind]` makes a head of the same shapes."""
        return made_with(self)

    def for_class_names(self, own: Sequence[str], wanted: Sequence[str]) -> Head:
        """Give the head for the `wanted` class names in place of its `own`; the same one where it knows no classes."""
        return self


class Scaled(Head):
    """A head whose logits are a scaled cosine: a linear `scale`, about 100 for CLIP, and a `bias` (SigLIP)."""

    def __init__(self, scale: float, bias: float = 0.0) -> None:
        super().__init__()
        self.scale, self.bias = scale, bias

    def cosine(self, image_features: Tensor, weight: Tensor) -> Tensor:
        """Compute logits [B, C] from unit vectors of classes [C, E], or [B, C, E] where they depend on the image."""
        if weight.dim() == 2:
            return self.scale * image_features @ weight.T + self.bias
        return self.scale * torch.einsum("be,bce->bc", image_features, weight) + self.bias


class ScaledPerClass(Scaled):
    """A scaled cosine with something kept for each of `n_classes` C, of width E."""

    def __init__(self, n_classes: int, width: int, scale: float, bias: float) -> None:
        super().__init__(scale, bias)
        self.n_classes, self.width = n_classes, width


class Cosine(Scaled):
    """The scaled cosine (Radford et al. 2021, "Learning Transferable Visual Models", section 2.3), nothing learned."""

    is_class_specific = False

    def forward(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Compute logits [B, C] from class features [C, E], or [B, C, E] where they depend on the image."""
        return self.cosine(image_features, class_features)


class ClassMeans(ScaledPerClass):
    """The scaled cosine to a vector of each class."""

    kind = "class-means"
    reads_text = False

    def __init__(self, n_classes: int, width: int, scale: float, bias: float) -> None:
        super().__init__(n_classes, width, scale, bias)
        self.means = nn.Parameter(torch.zeros(n_classes, width), requires_grad=False)

    def forward(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Compute logits [B, C]; class features are not looked at."""
        return self.cosine(F.normalize(image_features, dim=-1), self.means.to(image_features.dtype))


class TextAndMeans(ScaledPerClass):
    """The scaled cosine to the text and the labelled images of each class together: `unit(text + sum of images)`."""

    kind = "text-and-means"

    def __init__(self, n_classes: int, width: int, scale: float, bias: float) -> None:
        super().__init__(n_classes, width, scale, bias)
        self.sums = nn.Parameter(torch.zeros(n_classes, width, dtype=torch.float64), requires_grad=False)

    @torch.no_grad()
    def add(self, image_features: Tensor, labels: Tensor) -> None:
        """Learn from images; the order in which they come does not matter.

        Args:
            image_features: [N, E] of unit norm.
            labels: [N].
        """
        self.sums.index_add_(0, labels.to(self.sums.device), image_features.to(self.sums))

    def forward(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Compute logits [B, C]."""
        return self.cosine(image_features, F.normalize(self.sums.to(class_features.dtype) + class_features, dim=-1))


class TextProbe(Head):
    """A linear map of the image tower's own features, beside text and images of each class as `TextAndMeans` has them.

    Args:
        n_classes: C.
        width: E.
        raw_width: W of what the linear map reads; E where the backbone gives no raw features.
        scale, bias: as of the cosine.
        text_share: weight of the part with the text.
    """

    kind = "text-probe"
    reads_raw = True

    def __init__(
        self, n_classes: int, width: int, raw_width: int, scale: float, bias: float, text_share: float
    ) -> None:
        super().__init__()
        self.width, self.text_share = width, text_share
        self.beside = TextAndMeans(n_classes, width, scale, bias)
        self.centre = nn.Parameter(torch.zeros(raw_width, dtype=torch.float64), requires_grad=False)
        self.probe = Linear(n_classes, raw_width)

    def settings(self) -> dict[str, Any]:
        """See `Head`."""
        own = {"raw_width": len(self.centre), "text_share": self.text_share}
        return self.beside.settings() | own

    def forward(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Compute logits [B, C] of image features [B, E + W]."""
        joint, raw = image_features[:, : self.width], image_features[:, -len(self.centre) :]
        centred = F.normalize(raw.double() - self.centre, dim=-1)
        return self.text_share * self.beside(joint, class_features) + self.probe(centred, class_features)


class Linear(Head):
    """A linear map of image features of width E to C classes.

    It is in double precision as its solver has it, or, `is_trained`, learned by steps in single precision.
    """

    kind = "linear"
    reads_text = False

    def __init__(self, n_classes: int, width: int, is_trained: bool = False) -> None:
        super().__init__()
        self.n_classes, self.width, self.is_trained = n_classes, width, is_trained
        dtype = torch.float32 if is_trained else torch.float64
        self.weight = nn.Parameter(torch.zeros(n_classes, width, dtype=dtype), requires_grad=is_trained)
        self.bias = nn.Parameter(torch.zeros(n_classes, dtype=dtype), requires_grad=is_trained)

    def start_from(self, generator: torch.Generator) -> Linear:
        """Draw the weights from N(0, 2/C), as the released code of Jia et al. 2022 does; the bias stays zero."""
        self.weight.data.normal_(0.0, math.sqrt(2 / self.n_classes), generator=generator)
        return self

    def settings(self) -> dict[str, Any]:
        """See `Head`."""
        return {name: value for name, value in super().settings().items() if value is not False}

    def forward(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Compute logits [B, C]; class features are not looked at."""
        return F.linear(image_features.to(self.weight.dtype), self.weight, self.bias)


class Blend(Head):
    """The cosine with the text, weighted class by class, plus a linear map of the image features [B, E]."""

    kind = "blend"

    def __init__(self, n_classes: int, width: int) -> None:
        super().__init__()
        self.n_classes, self.width = n_classes, width
        self.text_weight = nn.Parameter(torch.zeros(n_classes), requires_grad=False)
        self.weight = nn.Parameter(torch.zeros(n_classes, width), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(n_classes), requires_grad=False)

    def forward(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Compute logits [B, C]."""
        dtype = image_features.dtype
        text = self.text_weight.to(dtype) * (image_features @ class_features.T)
        return text + F.linear(image_features, self.weight.to(dtype), self.bias.to(dtype))


class Cache(ScaledPerClass):
    """The scaled cosine, and votes of labelled images by their likeness (Zhang et al. 2022, "Tip-Adapter").

    Args:
        n_keys: N images.
        width: E.
        n_classes: C.
        scale, bias: as of the cosine.
        weight: alpha, of the votes.
        sharpness: beta, how fast a vote falls with the distance.
    """

    kind = "cache"
    values: Tensor

    def __init__(
        self, n_keys: int, width: int, n_classes: int, scale: float, bias: float, weight: float, sharpness: float
    ) -> None:
        super().__init__(n_classes, width, scale, bias)
        self.n_keys, self.weight, self.sharpness = n_keys, weight, sharpness
        self.keys = nn.Parameter(torch.zeros(n_keys, width))
        self.register_buffer("values", torch.zeros(n_keys, n_classes))

    def forward(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Compute logits [B, C]."""
        likeness = image_features @ self.keys.to(image_features.dtype).T  # [B, N]
        votes = (self.sharpness * (likeness - 1)).exp() @ self.values.to(image_features.dtype)
        return self.cosine(image_features, class_features) + self.weight * votes


class FeatureAdapter(Scaled):
    """The scaled cosine of image features that a small network has changed (Gao et al. 2021, "CLIP-Adapter").

    The hidden layer is a quarter as wide; `ratio` says how much of the changed feature there is, 0..1.
    """

    kind = "feature-adapter"
    is_class_specific = False

    def __init__(self, width: int, scale: float, bias: float, ratio: float) -> None:
        super().__init__(scale, bias)
        self.width, self.ratio = width, ratio
        hidden = max(1, width // 4)
        self.down, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Compute logits [B, C]."""
        changed = self.up(self.down(image_features.to(self.down.weight.dtype)).relu()).relu().to(image_features.dtype)
        mixed = F.normalize(self.ratio * changed + (1 - self.ratio) * image_features, dim=-1)
        return self.cosine(mixed, class_features)


class Residual(ScaledPerClass):
    """The scaled cosine with class features to which something learned is added (Yu et al. 2023, "TaskRes").

    `share` is alpha, by which what is learned is multiplied.
    """

    kind = "residual"

    def __init__(self, n_classes: int, width: int, scale: float, bias: float, share: float) -> None:
        super().__init__(n_classes, width, scale, bias)
        self.share = share
        self.residual = nn.Parameter(torch.zeros(n_classes, width))

    def forward(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Compute logits [B, C]."""
        moved = F.normalize(class_features + self.share * self.residual.to(class_features.dtype), dim=-1)
        return self.cosine(image_features, moved)


class Prototypes(ScaledPerClass):
    """The scaled cosine with a learned vector of each class, which stays near where it began (CLAP)."""

    kind = "prototypes"
    start: Tensor
    trust: Tensor

    def __init__(self, n_classes: int, width: int, scale: float, bias: float) -> None:
        super().__init__(n_classes, width, scale, bias)
        self.weight = nn.Parameter(torch.zeros(n_classes, width))
        self.register_buffer("start", torch.zeros(n_classes, width), persistent=False)  # for training alone
        self.register_buffer("trust", torch.zeros(n_classes), persistent=False)

    def forward(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Compute logits [B, C]; class features are not looked at."""
        return self.cosine(image_features, F.normalize(self.weight, dim=-1).to(image_features.dtype))

    def distance(self) -> Tensor:
        """Compute the mean squared distance from the start, each class by its trust."""
        return (self.trust * (self.weight - self.start).square().sum(-1)).mean()


class TextStarted(ScaledPerClass):
    """The scaled cosine with a vector of each class that starts from its text (Farina et al. 2025, section 4, "2SFS").

    Before it starts, and for class names that it did not learn, the text stands in its place.
    """

    kind = "text-started"
    is_class_specific = False
    is_learned: Tensor

    def __init__(self, n_classes: int, width: int, scale: float, bias: float) -> None:
        super().__init__(n_classes, width, scale, bias)
        self.weight = nn.Parameter(torch.zeros(n_classes, width))
        self.register_buffer("is_learned", torch.zeros(n_classes, dtype=torch.bool))

    @torch.no_grad()
    def start_from(self, class_features: Tensor) -> None:
        """Start to learn, from class features [C, E]."""
        self.weight.copy_(class_features)
        self.is_learned.fill_(True)

    def for_class_names(self, own: Sequence[str], wanted: Sequence[str]) -> TextStarted:
        """Keep what was learned of the names that both have; see `Head`."""
        head = TextStarted(len(wanted), self.width, self.scale, self.bias).to(self.weight.device)
        rows = {name: row for row, name in enumerate(own)}
        for place, name in enumerate(wanted):
            if name in rows:
                head.weight.data[place] = self.weight.data[rows[name]]
                head.is_learned[place] = self.is_learned[rows[name]]
        return head.requires_grad_(self.weight.requires_grad)

    def forward(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Compute logits [B, C]."""
        # In a training that starts later no graph of the weights, so that an optimiser leaves them as they are; a trace
        # of a finished one cannot decide by values.
        if not torch.is_grad_enabled() or self.is_learned.any():
            learned = F.normalize(self.weight, dim=-1).to(class_features.dtype)
            class_features = torch.where(self.is_learned[:, None], learned, class_features)
        return self.cosine(image_features, class_features)


_KINDS = (ClassMeans, TextAndMeans, TextProbe, Linear, Blend, Cache, FeatureAdapter, Residual, Prototypes, TextStarted)
HEADS: dict[str, Callable[..., Head]] = {kind.kind: kind for kind in _KINDS}
"""The kinds of heads that a prompt file may name; a head of your own is added here."""
