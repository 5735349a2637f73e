"""CoOp: context vectors around the class name, learned by cross entropy (Zhou et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmprompt.classification.methods.base import PromptMethod
from mmprompt.core.method import Start
from mmprompt.errors import UserError, bad_file, bad_value
from mmprompt.settings import Count

if TYPE_CHECKING:
    from torch import Tensor

    from mmprompt.core.learned import Prompt
    from mmprompt.models.dual_encoder.interface import DualEncoder

ClassPosition = Literal["end", "middle", "front"]


@dataclass(frozen=True)
class CoOp(PromptMethod):
    """Context Optimization (Zhou et al. 2022, "Learning to Prompt for Vision-Language Models", section 3).

    Two settings go further than the released code: with `ctx_init`, `class_specific` is obeyed (there it is ignored),
    and every token of the words learns (there the first `len(words)` do).
    """

    n_ctx: Count | None = None
    """Number of context vectors, 1 or more; 16 if no words are given (4 on tiny), else the tokens of the words."""
    ctx_init: str | None = None
    """Words to start from, such as "a photo of a", or the folder of a prompt with context vectors on the same backbone;
    random N(0, 0.02) without. An underscore is a space."""
    class_position: ClassPosition = "end"
    """Where the class name stands among the context vectors: end, middle or front."""
    class_specific: bool = False
    """One context per class instead of one for all."""

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Make free vectors at `text.input`, drawn at random or set to the embeddings of words."""
        from mmprompt.classification.template import ClassTemplate
        from mmprompt.core.learned import Learned, Prompt
        from mmprompt.models.sites import Site

        values = self.start_vectors(backbone, start)
        n_ctx = values.shape[-2]
        if self.class_specific:
            values = values.expand(len(start.class_names), n_ctx, -1)
        context = Learned(Site("text"), values, "class" if self.class_specific else "shared")
        return Prompt(ClassTemplate.of_context(n_ctx, self.class_position), context).to(backbone.device)

    def start_vectors(self, backbone: DualEncoder, start: Start) -> Tensor:
        """Make the vectors [M, D], or [C, M, D], to start from."""
        if self.ctx_init is None:
            n_names = len(start.class_names) if self.class_specific else None
            return random_context(backbone, 16 if self.n_ctx is None else self.n_ctx, start, n_names)
        is_folder = "/" in self.ctx_init or Path(self.ctx_init).is_dir()
        values = (saved_context if is_folder else word_vectors)(backbone, self.ctx_init)
        if self.n_ctx not in (None, len(values)):
            of_words = f"the words {self.ctx_init!r} are {len(values)} tokens"
            expected = f"the prompt in {self.ctx_init} has {len(values)} context vectors" if is_folder else of_words
            raise bad_value("n_ctx", self.n_ctx, expected, f"Use `n_ctx={len(values)}` or leave it out.")
        return values


def random_context(backbone: DualEncoder, n_ctx: int, start: Start, n_names: int | None = None) -> Tensor:
    """Draw context vectors [M, D], or [C, M, D], from N(0, 0.02).

    Raises:
        UserError: there are more than the text tower has slots.
    """
    from mmprompt.classification.template import check_room
    from mmprompt.core.learned import random_vectors

    check_room(n_ctx, backbone)
    shape = (n_ctx, backbone.text_width)
    return random_vectors(shape if n_names is None else (n_names, *shape), start.generator)


def word_vectors(backbone: DualEncoder, words: str) -> Tensor:
    """Return the embeddings [M, D] of words, on the CPU; an underscore is a space.

    Raises:
        UserError: there are none.
    """
    import torch

    ids = backbone.tokenize(words.replace("_", " "))
    if not ids:
        raise UserError(f"ctx_init is {words!r}, but it must hold at least one word. Write words or drop it.")
    return backbone.token_vectors(torch.tensor(ids, device=backbone.device)).float().cpu()


def saved_context(backbone: DualEncoder, folder: str) -> Tensor:
    """Return the context vectors [M, D] of a saved prompt, on the CPU.

    Raises:
        UserError: the folder holds no prompt for this backbone, or none with vectors that all classes share.
    """
    from mmprompt.core.file import load
    from mmprompt.core.header import read_header
    from mmprompt.core.learned import Learned
    from mmprompt.models.sites import Site

    read_header(Path(folder), "classification")
    for source in load(folder, backbone).prompt.sources:
        if isinstance(source, Learned) and source.sites == (Site("text"),) and source.scope == "shared":
            return source.vectors.detach().cpu()
    raise bad_file(folder, "holds no context vectors that all classes share", "Give the folder of a prompt of coop.")


def first_words(backbone: DualEncoder, words: str | None, n_ctx: int, start: Start) -> tuple[Tensor, str]:
    """Return vectors [M, D] to start from and the words that stay as they are after them.

    As in MaPLe's released code the first `n_ctx` tokens of the words learn and the others stay; with more vectors than
    tokens, or without words, the start is drawn at random.

    Args:
        backbone: the frozen model.
        words: to start from, or None.
        n_ctx: M.
        start: gives the generator.
    """
    ids = [] if words is None else backbone.tokenize(words.replace("_", " "))
    if len(ids) < n_ctx:
        return random_context(backbone, n_ctx, start), ""
    rest = backbone.decode(ids[n_ctx:]).strip()
    assert backbone.tokenize(rest) == ids[n_ctx:], "words can be cut between tokens"
    return word_vectors(backbone, words or "")[:n_ctx], rest
