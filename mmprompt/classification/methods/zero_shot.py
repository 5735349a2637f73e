"""Hand-written words alone, nothing learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mmprompt.classification.methods.base import ClassificationMethod, need_text
from mmprompt.core.method import Start
from mmprompt.data.class_names import check_template

if TYPE_CHECKING:
    from mmprompt.core.learned import Prompt
    from mmprompt.models.dual_encoder.interface import DualEncoder


@dataclass(frozen=True)
class ZeroShot(ClassificationMethod):
    """The class name in one hand-written template, nothing learned (Radford et al. 2021, section 3.1)."""

    words: str | None = None
    """The template, with one {}; by default that of the data set."""
    group: ClassVar[str] = "nothing learned"
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

        need_text(backbone)
        return Prompt(start.template if self.words is None else ClassTemplate(self.words))


@dataclass(frozen=True)
class ZeroShotEnsemble(ClassificationMethod):
    """The class name in the set's own templates, or in ImageNet's 80, features averaged (Radford et al. 2021)."""

    group: ClassVar[str] = "nothing learned"
    needs_shots: ClassVar[bool] = False
    is_trained: ClassVar[bool] = False

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Make the templates alone."""
        from mmprompt.classification.template import ClassTemplate
        from mmprompt.core.learned import Prompt

        need_text(backbone)
        return Prompt(ClassTemplate("\n".join(start.templates if len(start.templates) > 1 else imagenet_templates())))


def imagenet_templates() -> tuple[str, ...]:
    """Give the 80 templates that OpenAI published for ImageNet, as open_clip carries them."""
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
