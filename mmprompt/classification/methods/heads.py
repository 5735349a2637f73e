"""Heads that learn on stored image features: Tip-Adapter, CLIP-Adapter, TaskRes and CLAP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Ge, Gt, Le

from mmprompt.classification.methods.base import ClassificationMethod, need_text
from mmprompt.core.method import FrozenFeatures, Start
from mmprompt.errors import UserError
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from mmprompt.classification.predictor import Classifier
    from mmprompt.core.heads import Head
    from mmprompt.core.learned import Outputs, Prompt
    from mmprompt.models.dual_encoder.interface import DualEncoder

CACHE_WEIGHTS = (0.5, 1.0, 2.0, 4.0, 8.0)
SHARPNESSES = (1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class HeadMethod(ClassificationMethod):
    """A method that gives the classifier a head; its text is the data's template, or that of a method joined to it.

    `reads_text` says whether the head looks at the text, so that it needs a text tower.
    """

    group: ClassVar[str] = "heads"
    makes_head: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Make the template alone; refuse an image tower alone where the text is read."""
        from mmprompt.core.learned import Prompt

        if self.reads_text:
            need_text(backbone)
        return Prompt(start.template)


@dataclass(frozen=True)
class TipAdapter(HeadMethod):
    """A cache of the labelled images beside the text (Zhang et al. 2022, "Tip-Adapter", section 3.2).

    Nothing is chosen on test images. In the released code the keys are means over ten augmented views; here they are
    the images as they are.
    """

    cache_weight: Annotated[float, Ge(0)] | None = None
    """Alpha, the weight of the cache's votes; by default the best of 0.5 to 8 on images held out, or 1."""
    sharpness: Annotated[float, Gt(0)] | None = None
    """Beta, how fast a vote falls with the distance; by default the best of 1 to 8 on images held out, or 1."""
    is_trained: ClassVar[bool] = False

    def finish(self, predictor: Classifier, data: FrozenFeatures) -> None:
        """Make the cache of all training images, as what was learned beside it sees them."""
        put(predictor, cache_of(predictor, data, *self._chosen(predictor, data)))

    def _chosen(self, predictor: Classifier, data: FrozenFeatures) -> tuple[float, float]:
        """Return weight and sharpness as given, or with the least log-loss on images held out."""
        import torch.nn.functional as F

        from mmprompt.classification.methods.solved import held_out

        weights = CACHE_WEIGHTS if self.cache_weight is None else (self.cache_weight,)
        sharpnesses = SHARPNESSES if self.sharpness is None else (self.sharpness,)
        losses = {(weight, sharpness): 0.0 for sharpness in sharpnesses for weight in weights}
        if len(losses) == 1:
            return weights[0], sharpnesses[0]
        text, splits = predictor.class_features().double(), list(held_out(data))
        for features, labels, others, truth in splits:
            by_text, likeness = scale_of(predictor)[0] * others @ text.T, others @ features.T
            for sharpness in sharpnesses:
                votes = (sharpness * (likeness - 1)).exp() @ F.one_hot(labels, len(text)).double()
                for weight in weights:
                    loss = F.cross_entropy(by_text + weight * votes, truth, reduction="sum")
                    losses[weight, sharpness] += loss.item()
        if not splits:
            return or_one(self.cache_weight), or_one(self.sharpness)
        return min(losses, key=lambda pair: losses[pair])


@dataclass(frozen=True)
class TipAdapterF(HeadMethod):
    """Tip-Adapter whose keys learn (Zhang et al. 2022, "Tip-Adapter", section 3.2, "Tip-Adapter-F").

    The weights of the last epoch are kept; the released code keeps those that did best on test.
    """

    cache_weight: Annotated[float, Ge(0)] | None = None
    """Alpha, the weight of the cache's votes; by default 1, for keys that learn make their own."""
    sharpness: Annotated[float, Gt(0)] | None = None
    """Beta, how fast a vote falls with the distance; by default 1."""
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adamw",
        lr=1e-3,
        eps=1e-4,
        weight_decay=1e-2,
        batch_size=256,
        epochs=20,
        schedule="step",
        warmup_epochs=0,
    )

    def begin(self, predictor: Classifier, data: FrozenFeatures) -> None:
        """Make the cache of all training images, whose keys learn."""
        cache = cache_of(predictor, data, or_one(self.cache_weight), or_one(self.sharpness))
        put(predictor, cache.requires_grad_(True))


@dataclass(frozen=True)
class CLIPAdapter(HeadMethod):
    """A small network after the image tower (Gao et al. 2021, "CLIP-Adapter", section 3.2)."""

    ratio: Annotated[float, Ge(0), Le(1)] = 0.2
    """How much of the changed image feature there is beside the frozen one."""
    recipe: ClassVar[Recipe] = Recipe(lr=1e-2, batch_size=32)

    def begin(self, predictor: Classifier, data: FrozenFeatures) -> None:
        """Draw the network."""
        from mmprompt.core.heads import FeatureAdapter
        from mmprompt.core.sources import draw_linear

        head = FeatureAdapter(predictor.backbone.embed_dim, *scale_of(predictor), self.ratio)
        draw_linear(head.down, data.generator)
        draw_linear(head.up, data.generator)
        put(predictor, head)


@dataclass(frozen=True)
class TaskRes(HeadMethod):
    """Something learned is added to the class features (Yu et al. 2023, "Task Residual", section 3.2).

    The learning rate is the paper's for all sets but ImageNet, where it is 2e-4. Its enhanced base is not here.
    """

    share: Annotated[float, Gt(0)] = 0.5
    """Alpha, by which what is learned is multiplied; 1 for Oxford Flowers in the paper."""
    recipe: ClassVar[Recipe] = Recipe(optimizer="adam", lr=2e-3, batch_size=256)

    def begin(self, predictor: Classifier, data: FrozenFeatures) -> None:
        """Start from nothing added."""
        from mmprompt.core.heads import Residual

        n_classes, width = len(predictor.class_names), predictor.backbone.embed_dim
        put(predictor, Residual(n_classes, width, *scale_of(predictor), self.share))


@dataclass(frozen=True)
class ZeroShotProbe(HeadMethod):
    """A linear probe that starts from the text (Silva-Rodriguez et al. 2024, "CLAP", section 3.2, "ZS-LP")."""

    recipe: ClassVar[Recipe] = Recipe(lr=0.1, weight_decay=0.0, batch_size=256, epochs=300)

    def begin(self, predictor: Classifier, data: FrozenFeatures) -> None:
        """Start from the class features, before they are scaled to unit norm.

        Raises:
            UserError: something joined to it learns in the text, which nothing reads any more.
        """
        import torch

        from mmprompt.core.heads import Prototypes

        if predictor.prompt.has("text"):
            raise UserError(
                f"{type(self).__name__} reads the text once, before anything is learned, so what learns in the text "
                "would learn nothing. Join it to a method of the image tower, or take another head."
            )
        start = predictor.unscaled_class_features()
        (n_classes, width), (scale, bias) = start.shape, scale_of(predictor)
        head = Prototypes(n_classes, width, scale, bias)
        head.weight.data.copy_(start)
        head.start.copy_(start)
        logits = head(data.image_features.cpu().to(start.dtype), start)
        own = logits.softmax(1)[torch.arange(len(data.labels)), data.labels.cpu()]
        counts = torch.bincount(data.labels.cpu(), minlength=len(start)).clamp_min(1)
        head.trust.index_add_(0, data.labels.cpu(), own.detach().to(head.trust.dtype)).div_(counts)
        put(predictor, head)


@dataclass(frozen=True)
class CLAP(ZeroShotProbe):
    """A linear probe held near the text (Silva-Rodriguez et al. 2024, "Class-Adaptive Linear Probe", section 4).

    Each class is held by how well the text alone knows it. The released code learns from 20 augmented views of each
    image; here `views` of the recipe says how many.
    """

    def loss_terms(self, outputs: Outputs) -> Mapping[str, Tensor]:
        """Compute cross entropy and the distance from the text."""
        from mmprompt.core.heads import Prototypes

        assert isinstance(outputs.head, Prototypes), "CLAP made the head"
        return {**super().loss_terms(outputs), "distance": outputs.head.distance()}


def scale_of(predictor: Classifier) -> tuple[float, float]:
    """Return the scale and bias of the cosine."""
    return predictor.backbone.logit_scale, predictor.backbone.logit_bias


def or_one(value: float | None) -> float:
    """Return a setting, 1 where it was not given."""
    return 1.0 if value is None else value


def cache_of(predictor: Classifier, data: FrozenFeatures, weight: float, sharpness: float) -> Head:
    """Make a cache of all training images that does not learn."""
    import torch.nn.functional as F

    from mmprompt.core.heads import Cache

    n_classes, (n_keys, width) = len(predictor.class_names), data.image_features.shape
    head = Cache(n_keys, width, n_classes, *scale_of(predictor), weight, sharpness)
    head.keys.data.copy_(data.image_features)
    head.values.copy_(F.one_hot(data.labels, n_classes))
    return head.requires_grad_(False)


def put(predictor: Classifier, head: Head) -> None:
    """Give a classifier its head."""
    predictor.prompt.head = head.to(predictor.backbone.device)
