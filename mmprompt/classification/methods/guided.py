"""CoOp held to what the frozen model knows: KgCoOp by a loss term, ProGrad by its gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mmprompt.classification.methods.coop import CoOp, word_vectors
from mmprompt.classification.methods.parts import AlignedGradient, KnowledgeGuided, Weight
from mmprompt.core.method import Start
from mmprompt.errors import bad_value
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from mmprompt.core.learned import Outputs
    from mmprompt.models.dual_encoder.interface import DualEncoder
    from mmprompt.training.problem import GradientRule


@dataclass(frozen=True)
class KgCoOp(CoOp):
    """CoOp near the hand-written template (Yao et al. 2023, "Knowledge-guided Context Optimization", section 3.2)."""

    ctx_init: str | None = "a photo of a"
    """Words to start from; random N(0, 0.02) where None."""
    knowledge_weight: Weight = 8.0
    """Weight of one minus the mean cosine between the learned class features and the template's."""

    recipe: ClassVar[Recipe] = Recipe(batch_size=128, epochs=100)

    @property
    def _guidance(self) -> KnowledgeGuided:
        return KnowledgeGuided(self.knowledge_weight)

    def teacher(self, backbone: DualEncoder, class_names: Sequence[str], template: str) -> Tensor:
        """See `KnowledgeGuided`."""
        return self._guidance.teacher(backbone, class_names, template)

    def loss_terms(self, outputs: Outputs) -> Mapping[str, Tensor]:
        """Compute cross entropy and the distance from the template."""
        return {**super().loss_terms(outputs), **self._guidance.loss_terms(outputs)}


@dataclass(frozen=True)
class ProGrad(CoOp):
    """CoOp that never steps against the frozen model (Zhu et al. 2023, "Prompt-aligned Gradient", section 3.2).

    It starts from zeros and, at their end, the words of the data's template, a hint such as "a type of pet" first, as
    the released code does. There only as many tokens learn as the words have spaces between them; here all do.
    """

    strength: Weight = 1.0
    """How much of the conflicting part of the gradient is taken off; 1 for all of it."""

    @property
    def _alignment(self) -> AlignedGradient:
        return AlignedGradient(self.strength)

    def start_vectors(self, backbone: DualEncoder, start: Start) -> Tensor:
        """Make vectors [M, D] that end in the words of the template, or in `ctx_init`."""
        import torch.nn.functional as F

        words = hint_first(start.template.text).split("{}")[0] if self.ctx_init is None else self.ctx_init
        values = word_vectors(backbone, words or "a photo of a")
        n_ctx = max(16, len(values)) if self.n_ctx is None else self.n_ctx
        if n_ctx < len(values):
            expected = f"the words {words.strip()!r} are {len(values)} tokens"
            raise bad_value("n_ctx", n_ctx, expected, f"Use `n_ctx={len(values)}` or more.")
        return F.pad(values, (0, 0, n_ctx - len(values), 0))

    def teacher(self, backbone: DualEncoder, class_names: Sequence[str], template: str) -> Tensor:
        """Read the data's template, a hint first."""
        return self._alignment.teacher(backbone, class_names, hint_first(template))

    def loss_terms(self, outputs: Outputs) -> Mapping[str, Tensor]:
        """Compute cross entropy and the general term."""
        return {**super().loss_terms(outputs), **self._alignment.loss_terms(outputs)}

    def gradient_rule(self, n_epochs: int) -> GradientRule:
        """See `AlignedGradient`."""
        return self._alignment.gradient_rule(n_epochs)


def hint_first(template: str) -> str:
    """Write "a photo of a {}, a type of pet." as "a type of pet, a photo of a {}."; others stay as they are."""
    template = template.splitlines()[0].replace("{name}", "{}")
    before, after = template.split("{}")
    hint = after.strip().removesuffix(".")
    return f"{hint[1:].strip()}, {before}{{}}." if hint.startswith(",") else template
