"""What joins any method that learns a prompt: loss terms, a gradient rule, an average of weights.

Those with a teacher compare with the frozen model that reads hand-written words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le, Lt

from mmprompt.classification.methods.base import Part
from mmprompt.classification.methods.zero_shot import imagenet_templates
from mmprompt.core.method import Method, overrides, parts_of
from mmprompt.errors import UserError, bad_value
from mmprompt.quiet import quiet

if TYPE_CHECKING:
    from torch import Tensor

    from mmprompt.core.learned import Outputs
    from mmprompt.models.dual_encoder.interface import DualEncoder
    from mmprompt.training.callbacks import Callback
    from mmprompt.training.problem import GradientRule

Weight = Annotated[float, Ge(0)]
Epoch = Annotated[float, Ge(-1e6), Le(1e6)]
Epochs = Annotated[float, Ge(1e-3), Le(1e6)]
PROMPTSRC_TEMPLATES = 60
GENERAL = "general"
LOOKS = ("begin", "finish", "loss_terms", "predictor")
"""The hooks through which a method looks at images; the cross entropy of each is what is made private."""


@dataclass(frozen=True)
class KnowledgeGuided(Part):
    """Class features stay near those of the hand-written template (Yao et al. 2023, "KgCoOp", section 3.2)."""

    knowledge_weight: Weight = 8.0
    """Weight of one minus the mean cosine."""

    def teacher(self, backbone: DualEncoder, class_names: Sequence[str], template: str) -> Tensor:
        """Read the data's own template."""
        return written_features(backbone, class_names, [template])

    def loss_terms(self, outputs: Outputs) -> Mapping[str, Tensor]:
        """Compute the distance of the class features from those of the template."""
        frozen = frozen_of(outputs)
        distance = 1 - (outputs.class_features * frozen.class_features).sum(-1).mean()
        return {"knowledge": self.knowledge_weight * distance}


@dataclass(frozen=True)
class Consistency(Part):
    """Features and logits stay near the frozen model's (Khattak et al. 2023, "PromptSRC", section 3.2.1)."""

    text_weight: Weight = 25.0
    """Weight of the L1 distance of class features from those of 60 templates."""
    image_weight: Weight = 10.0
    """Weight of the L1 distance of image features from those without a prompt."""
    logit_weight: Weight = 1.0
    """Weight of the divergence of the logits from the frozen model's."""

    def teacher(self, backbone: DualEncoder, class_names: Sequence[str], template: str) -> Tensor:
        """Read the 60 templates of the released code, of which a short text tower takes those that fit it.

        Raises:
            UserError: a class name fits none of them.
        """
        from mmprompt.classification.template import ClassTemplate

        templates = imagenet_templates()[:PROMPTSRC_TEMPLATES]
        longest = max(class_names, key=lambda name: len(ClassTemplate("{}").row(backbone, name)))
        room = backbone.context_length - 2  # beside start and end
        fitting = [each for each in templates if len(ClassTemplate(each).row(backbone, longest)) <= room]
        return written_features(backbone, class_names, fitting or templates)

    def loss_terms(self, outputs: Outputs) -> Mapping[str, Tensor]:
        """Compute the three distances, each a mean over all its numbers."""
        import torch.nn.functional as F

        frozen = frozen_of(outputs)
        own, general = outputs.logits.log_softmax(1), frozen.logits.log_softmax(1)
        written = frozen.class_features.expand_as(outputs.class_features)  # [B, C, E] of a text for each image
        return {
            "text": self.text_weight * F.l1_loss(outputs.class_features, written),
            "image": self.image_weight * F.l1_loss(outputs.image_features, frozen.image_features),
            "logits": self.logit_weight * F.kl_div(own, general, reduction="none", log_target=True).mean(),
        }


@dataclass(frozen=True)
class AlignedGradient(Part):
    """No step against what the frozen model knows (Zhu et al. 2023, "Prompt-aligned Gradient", section 3.2).

    The general direction is the gradient of the cross entropy between the frozen model's probabilities and the
    prompt's. It is not minimised: of the gradient of all other terms, what runs against it is taken off.
    """

    strength: Annotated[float, Ge(0)] = 1.0
    """How much of the conflicting part is taken off; 1 for all of it."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """By which logits are divided for the general direction."""

    def teacher(self, backbone: DualEncoder, class_names: Sequence[str], template: str) -> Tensor:
        """Read the data's own template."""
        return written_features(backbone, class_names, [template])

    def loss_terms(self, outputs: Outputs) -> Mapping[str, Tensor]:
        """Compute the general term."""
        own = (outputs.logits / self.temperature).log_softmax(1)
        general = (frozen_of(outputs).logits / self.temperature).softmax(1)
        return {GENERAL: -(self.temperature**2) * (general * own).sum(1).mean()}

    def gradient_rule(self, n_epochs: int) -> GradientRule:
        """Take off, parameter by parameter, what runs against the general direction."""
        return self._aligned

    def _aligned(self, gradients: Mapping[str, Sequence[Tensor]]) -> list[Tensor]:
        others = [parts for name, parts in gradients.items() if name != GENERAL]
        aligned = []
        for general, *own in zip(gradients[GENERAL], *others, strict=True):
            total = sum(own[1:], own[0])
            along = (total * general).sum() / general.square().sum().clamp_min(1e-30)
            aligned.append(total - self.strength * along.clamp(max=0) * general)
        return aligned


@dataclass(frozen=True)
class DPSGD(Part):
    """No image tells on itself (Abadi et al. 2016, "Deep Learning with Differential Privacy", section 3.1).

    The gradient of each image is clipped, and noise is added to their sum. An epoch meets an image at most once, so
    privacy is spent by the epoch, whatever the size of a batch; no amplification by sampling is counted. No seed gives
    the noise, so a run cannot be repeated. Private is what is learned; the log, the report and notices are not.
    """

    epsilon: Annotated[float, Gt(0)] = 8.0
    """With or without one image, no outcome is more than e^epsilon times as likely, but for `delta`."""
    delta: Annotated[float, Gt(0), Lt(1)] = 1e-5
    """Probability that more is told; it is to be well below one in as many as there are images."""
    max_norm: Annotated[float, Gt(0)] = 1.0
    """Norm to which the gradient of each image is clipped."""
    meets_images_once: ClassVar[bool] = True

    def check_whole(self, whole: Method) -> None:
        """Refuse what looks at images other than by the cross entropy of each.

        Raises:
            UserError: some other part of the method does.
        """
        for method in parts_of(whole):
            if not isinstance(method, DPSGD) and any(overrides(method, hook) for hook in LOOKS):
                raise UserError(
                    f"{type(method).__name__} looks at images in a way that dp-sgd does not make private. Join it to a "
                    "method that learns by cross entropy alone, such as coop, vpt or clip-lora."
                )

    def loss_terms(self, outputs: Outputs) -> Mapping[str, Tensor]:
        """Compute the cross entropy of each image, in place of the mean."""
        import torch.nn.functional as F

        assert outputs.labels is not None, "a loss is taken of labelled images"
        return {"cross_entropy": F.cross_entropy(outputs.logits.float(), outputs.labels, reduction="none")}

    def gradient_rule(self, n_epochs: int) -> GradientRule:
        """Clip and add noise, by Opacus, whose accountant says how much of it a training needs.

        Raises:
            UserError: Opacus is not installed, or no noise is enough.
        """
        import torch

        noise = self.noise_multiplier(n_epochs)
        from opacus.optimizers import DPOptimizer

        generator = torch.Generator()
        generator.seed()  # of the operating system

        def private(gradients: Mapping[str, Sequence[Tensor]]) -> list[Tensor]:
            of_images = gradients["cross_entropy"]
            places: list[Any] = [torch.nn.Parameter(torch.empty_like(each[0], device="cpu")) for each in of_images]
            for place, each in zip(places, of_images, strict=True):
                place.grad_sample = each.cpu()
            optimizer = DPOptimizer(
                torch.optim.SGD(places, lr=1.0),
                noise_multiplier=noise,
                max_grad_norm=self.max_norm,
                expected_batch_size=len(of_images[0]),
                generator=generator,
                secure_mode=True,
            )
            optimizer.pre_step()
            return [place.grad.to(each) for place, each in zip(places, of_images, strict=True)]

        return private

    def noise_multiplier(self, n_epochs: int) -> float:
        """Compute the noise that some epochs need: its standard deviation as a multiple of `max_norm`."""
        try:
            from opacus.accountants.utils import get_noise_multiplier
        except ImportError:
            advice = 'Use pip install "mmprompt[private]".'
            raise UserError(f"dp-sgd needs opacus, which is not installed. {advice}") from None
        budget = {"target_epsilon": self.epsilon, "target_delta": self.delta}
        try:
            with quiet():  # of orders that the search for the noise passes by
                return float(get_noise_multiplier(**budget, sample_rate=1.0, steps=n_epochs))
        except ValueError:
            raise bad_value("epsilon", self.epsilon, "no noise is enough for so little", "Use `epsilon=1`.") from None


@dataclass(frozen=True)
class GaussianAverage(Part):
    """Weights are their mean over epochs, weighted by a normal density (Khattak et al. 2023, section 3.2.2)."""

    gpa_mean: Epoch = 15.0
    """Epoch, counted from 1, that counts most."""
    gpa_std: Epochs = 1.0
    """Standard deviation of the density, in epochs."""
    averages_weights: ClassVar[bool] = True

    def callbacks(self, n_epochs: int) -> Sequence[Callback]:
        """Average what is learned alone."""
        from mmprompt.training.callbacks import WeightAverage

        return [WeightAverage(self.gpa_mean, self.gpa_std)]


def frozen_of(outputs: Outputs) -> Outputs:
    """Return what the frozen model puts out of the same images."""
    assert outputs.frozen is not None, "there is a teacher, so there are its outputs"
    return outputs.frozen


def written_features(backbone: DualEncoder, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Return class features [C, E] of hand-written templates, averaged as they are and then scaled to unit norm."""
    import torch
    import torch.nn.functional as F

    from mmprompt.classification.template import ClassTemplate

    with torch.no_grad():
        lines = [line for template in templates for line in ClassTemplate(template).lines]
        each = [backbone.encode_text(line.slots(backbone, class_names), normalise=False) for line in lines]
        return F.normalize(torch.stack(each).mean(0), dim=-1)
