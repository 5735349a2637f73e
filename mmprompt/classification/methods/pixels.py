"""Prompts in the image itself, for any image tower: pixels around its edge, or a square of them (Bahng et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from mmprompt.classification.methods.base import PromptMethod
from mmprompt.core.method import Start
from mmprompt.errors import bad_value
from mmprompt.settings import Count
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from mmprompt.core.learned import Prompt, Source
    from mmprompt.models.dual_encoder.interface import DualEncoder

PUBLISHED = Recipe(lr=40.0, weight_decay=0.0, batch_size=256, augment="none")
PAPER_WIDTH, PAPER_SIZE = 30, 224


@dataclass(frozen=True)
class PaddingPrompt(PromptMethod):
    """Learned pixels are added around the edge of every image (Bahng et al. 2022, "Exploring Visual Prompts", 3.2).

    They are added to the normalised input, as in the released code, and start from N(0, 1). There a training of whole
    data sets takes 1,000 epochs; here the data says how many, as for CoOp.
    """

    pad_size: Count | None = None
    """Width of the frame in pixels; 30 of an image of 224 pixels, in proportion for other sizes."""

    recipe: ClassVar[Recipe] = PUBLISHED

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Make the frame; refuse one that is too wide for the image."""
        from mmprompt.core.sources import PixelFrame

        width = pixels_of(backbone, self.pad_size)
        if 2 * width >= backbone.image_size:
            expected = f"{backbone.name} takes images of {backbone.image_size} pixels"
            raise bad_value("pad_size", width, expected, f"Use {(backbone.image_size - 1) // 2} or less.")
        return drawn(PixelFrame(backbone.image_size, width), backbone, start)


@dataclass(frozen=True)
class PatchPrompt(PromptMethod):
    """A learned square is added to every image (Bahng et al. 2022, "Exploring Visual Prompts", section 3.2).

    Where its place is random it is another one at each step, and the middle once it is learned, so that a prediction
    is the same every time; the released code goes on drawing. See `PaddingPrompt` for the rest.
    """

    patch_size: Count | None = None
    """Side of the square in pixels; 30 of an image of 224 pixels, in proportion for other sizes."""
    patch_place: Literal["fixed", "random"] = "fixed"
    """The upper left corner, or a place drawn at each step."""

    recipe: ClassVar[Recipe] = PUBLISHED

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Make the square; refuse one that is larger than the image."""
        from mmprompt.core.sources import PixelPatch

        width = pixels_of(backbone, self.patch_size)
        if width > backbone.image_size:
            expected = f"{backbone.name} takes images of {backbone.image_size} pixels"
            raise bad_value("patch_size", width, expected, f"Use {backbone.image_size} or less.")
        return drawn(PixelPatch(backbone.image_size, width, self.patch_place == "random"), backbone, start)


def pixels_of(backbone: DualEncoder, given: int | None) -> int:
    """Return a width in pixels, the paper's in proportion to the image where None."""
    return given or max(1, round(backbone.image_size * PAPER_WIDTH / PAPER_SIZE))


def drawn(source: Source, backbone: DualEncoder, start: Start) -> Prompt:
    """Draw all pixels of a source from N(0, 1), and make its prompt."""
    from mmprompt.core.learned import Prompt, random_vectors

    for parameter in source.parameters():
        parameter.data.copy_(random_vectors(tuple(parameter.shape), start.generator, std=1.0))
    return Prompt(start.template, source).to(backbone.device)
