"""CoOp: context vectors around the class name, learned by cross entropy (Zhou et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mmprompt.classification.methods.base import ClassificationMethod
from mmprompt.core.method import Start
from mmprompt.errors import UserError, bad_value
from mmprompt.settings import Count

if TYPE_CHECKING:
    from torch import Tensor

    from mmprompt.core.learned import Prompt
    from mmprompt.models.dual_encoder.interface import DualEncoder

ClassPosition = Literal["end", "middle", "front"]


@dataclass(frozen=True)
class CoOp(ClassificationMethod):
    """Context Optimization (Zhou et al. 2022, "Learning to Prompt for Vision-Language Models", section 3).

    Two settings go further than the released code: with `ctx_init`, `class_specific` is obeyed (there it is ignored),
    and every token of the words learns (there the first `len(words)` do).
    """

    n_ctx: Count | None = None
    """Number of context vectors, 1 or more; 16 if no words are given (4 on tiny), else the tokens of the words."""
    ctx_init: str | None = None
    """Words to start from, such as "a photo of a"; random N(0, 0.02) without. An underscore is a space."""
    class_position: ClassPosition = "end"
    """Where the class name stands among the context vectors: end, middle or front."""
    class_specific: bool = False
    """One context per class instead of one for all."""

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Make free vectors at `text.input`, drawn at random or set to the embeddings of words."""
        from mmprompt.classification.template import ClassTemplate, check_room
        from mmprompt.core.learned import Learned, Prompt, random_vectors
        from mmprompt.models.sites import Site

        if self.ctx_init is not None:
            values = self._words(backbone, self.ctx_init.replace("_", " "))
            n_ctx = values.shape[0]
            values = values.expand(len(start.class_names), -1, -1) if self.class_specific else values
        else:
            n_ctx = 16 if self.n_ctx is None else self.n_ctx
            check_room(n_ctx, backbone)
            shape = (n_ctx, backbone.text_width)
            values = random_vectors((len(start.class_names), *shape) if self.class_specific else shape, start.generator)
        context = Learned(Site("text"), values, "class" if self.class_specific else "shared")
        return Prompt(ClassTemplate.of_context(n_ctx, self.class_position), context).to(backbone.device)

    def _words(self, backbone: DualEncoder, words: str) -> Tensor:
        import torch

        ids = backbone.tokenize(words)
        if not ids:
            raise UserError(
                f"ctx_init is {self.ctx_init!r}, but it must hold at least one word. Write words or drop it."
            )
        if self.n_ctx not in (None, len(ids)):
            expected = f"the words {self.ctx_init!r} are {len(ids)} tokens"
            raise bad_value("n_ctx", self.n_ctx, expected, f"Use `n_ctx={len(ids)}` or leave it out.")
        return backbone.token_vectors(torch.tensor(ids, device=backbone.device)).float().cpu()  # [M, D]
