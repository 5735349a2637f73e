"""CoOp: context vectors in front of the class name, learned by cross entropy (Zhou et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmprompt.core.method import Method
from mmprompt.core.prompt import Prompt
from mmprompt.core.sources import FreeVectors, random_vectors
from mmprompt.core.template import ClassPosition, TextLayout
from mmprompt.errors import UserError, bad_value, is_count
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.sites import Site


@dataclass(frozen=True)
class CoOp(Method):
    """Context Optimization (Zhou et al. 2022, "Learning to Prompt for Vision-Language Models", section 3)."""

    n_ctx: int | None = None
    """Number of context vectors, 1 or more; 16 if no words are given, else the tokens of the words."""
    ctx_init: str | None = None
    """Words to start from, such as "a photo of a"; random N(0, 0.02) without."""
    class_position: ClassPosition = "end"
    """Where the class name stands among the context vectors: end, middle or front."""
    class_specific: bool = False
    """One context per class instead of one for all."""

    def __post_init__(self) -> None:
        if self.n_ctx is not None and not is_count(self.n_ctx):
            raise bad_value("n_ctx", self.n_ctx, "CoOp learns a whole number of them, 1 or more", "Use --n-ctx 4.")
        TextLayout(class_position=self.class_position)

    def prompt(
        self, backbone: DualEncoder, class_names: Sequence[str], generator: torch.Generator, template: str
    ) -> Prompt:
        """Free vectors at `text.input`, drawn at random or set to the embeddings of words."""
        n_classes = len(class_names)
        if self.ctx_init is None:
            n_ctx = 16 if self.n_ctx is None else self.n_ctx
            TextLayout(n_ctx=n_ctx).check_room(backbone)
            shape = (n_ctx, backbone.text_width)
            values = random_vectors((n_classes, *shape) if self.class_specific else shape, generator)
        else:
            values = self._words(backbone)
            n_ctx = values.shape[0]
            values = values.expand(n_classes, -1, -1) if self.class_specific else values
        layout = TextLayout(n_ctx=n_ctx, class_position=self.class_position)
        source = FreeVectors(values, "class" if self.class_specific else "shared").to(backbone.device)
        return Prompt(layout, {Site("text"): source})

    def _words(self, backbone: DualEncoder) -> torch.Tensor:
        ids = backbone.tokenize(self.ctx_init or "")
        if not ids:
            raise UserError(
                f"ctx_init is {self.ctx_init!r}, but it must hold at least one word. Write words or drop it."
            )
        if self.n_ctx not in (None, len(ids)):
            raise bad_value(
                "n_ctx",
                self.n_ctx,
                f"the words {self.ctx_init!r} are {len(ids)} tokens",
                f"Use --n-ctx {len(ids)} or leave it out.",
            )
        return backbone.token_vectors(torch.tensor(ids, device=backbone.device)).float().cpu()  # [M, D]
