"""CoOp: context vectors around the class name, learned by cross entropy (Zhou et al. 2022); and what is CoOp with one
thing more: CoCoOp shifts them for each image, KgCoOp and ProGrad hold them to what the frozen model knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from mmprompt.classification.methods.base import PromptMethod
from mmprompt.classification.methods.parts import AlignedGradient, KnowledgeGuided, Weight
from mmprompt.core.method import Start
from mmprompt.errors import UserError, bad_file, bad_value
from mmprompt.settings import Count, expanded, is_there
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from mmprompt.core.learned import Outputs, Prompt
    from mmprompt.models.dual_encoder.interface import DualEncoder
    from mmprompt.training.problem import GradientRule

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
    """Words to start from, such as "a photo of a", or the folder of a prompt with context vectors on the same backbone:
    what holds a / or names a folder that is there. Random N(0, 0.02) without. An underscore in words is a space."""
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
        is_folder = names_folder(self.ctx_init)
        values = (saved_context if is_folder else word_vectors)(backbone, self.ctx_init)
        if self.n_ctx not in (None, len(values)):
            of_words = f"the words {self.ctx_init!r} are {len(values)} tokens"
            expected = f"the prompt in {self.ctx_init} has {len(values)} context vectors" if is_folder else of_words
            raise bad_value("n_ctx", self.n_ctx, expected, f"Use `n_ctx={len(values)}` or leave it out.")
        return values


@dataclass(frozen=True)
class CoCoOp(CoOp):
    """Conditional Context Optimization (Zhou et al. 2022, "Conditional Prompt Learning", section 3.2).

    The released code takes one image a step; here a step takes as many as `batch_size` says, each with its own
    context, and its loss and gradient are those of the single images.
    """

    ctx_init: str | None = "a photo of a"
    """Words, or the folder of a prompt, to start from, as of coop; random N(0, 0.02) where None."""

    recipe: ClassVar[Recipe] = Recipe(batch_size=1, epochs=10)

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        """Make the context of CoOp and a network of one hidden layer, 1/16 as wide as the image features.

        Raises:
            UserError: one context per class was asked for.
        """
        from mmprompt.classification.template import ClassTemplate
        from mmprompt.core.learned import Prompt
        from mmprompt.core.sources import Conditioned

        if self.class_specific:
            raise UserError("CoCoOp learns one context for all classes. Leave out `class_specific`, or use CoOp.")
        values = self.start_vectors(backbone, start)
        source = Conditioned(len(values), backbone.text_width, backbone.embed_dim).start_from(values, start.generator)
        return Prompt(ClassTemplate.of_context(len(values), self.class_position), source).to(backbone.device)


@dataclass(frozen=True)
class KgCoOp(CoOp):
    """CoOp near the hand-written template (Yao et al. 2023, "Knowledge-guided Context Optimization", section 3.2)."""

    ctx_init: str | None = "a photo of a"
    """Words, or the folder of a prompt, to start from, as of coop; random N(0, 0.02) where None."""
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

    n_ctx: Count | None = None
    """Number of context vectors, 1 or more; 16 by default (8 on tiny), or the tokens of the words where more."""
    ctx_init: str | None = None
    """Words in place of the template's, or the folder of a prompt, as of coop, whose vectors alone are the start."""
    strength: Weight = 1.0
    """How much of the conflicting part of the gradient is taken off; 1 for all of it."""

    @property
    def _alignment(self) -> AlignedGradient:
        return AlignedGradient(self.strength)

    def start_vectors(self, backbone: DualEncoder, start: Start) -> Tensor:
        """Make vectors [M, D] that end in the words of the template, or in those of `ctx_init`; or a saved context."""
        import torch.nn.functional as F

        from mmprompt.classification.template import ClassTemplate, check_room

        if self.ctx_init is not None and names_folder(self.ctx_init):
            return super().start_vectors(backbone, start)
        own_words = ClassTemplate(hint_first(start.template.text)).words[0].strip() or "a photo of a"
        words = own_words if self.ctx_init is None else self.ctx_init
        values = word_vectors(backbone, words)
        least = 8 if backbone.name == "tiny" else 16
        n_ctx = max(least, len(values)) if self.n_ctx is None else self.n_ctx
        if n_ctx < len(values):
            expected = f"the words {words!r} are {len(values)} tokens"
            raise bad_value("n_ctx", n_ctx, expected, f"Use `n_ctx={len(values)}` or more.")
        check_room(n_ctx, backbone)
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
    from mmprompt.classification.template import ClassTemplate
    from mmprompt.core.template import escaped

    written = ClassTemplate(template)
    before, after = (escaped(words) for words in written.words)
    hint = after.strip().removesuffix(".")
    return f"{hint[1:].strip()}, {before}{{}}." if hint.startswith(",") else written.lines[0].text


def names_folder(start: str) -> bool:
    """Return whether what a context starts from is the folder of a prompt, and not words."""
    return "/" in start or is_folder(start)


def is_folder(words: str) -> bool:
    """Return whether there is a folder of this name."""
    return bool(words) and is_there(words) and expanded(words).is_dir()


def random_context(backbone: DualEncoder, n_ctx: int, start: Start, n_names: int | None = None) -> Tensor:
    """Draw context vectors [M, D], or [C, M, D], from N(0, 0.02); refuse more than the tower has slots."""
    from mmprompt.classification.template import check_room
    from mmprompt.core.learned import random_vectors

    check_room(n_ctx, backbone)
    shape = (n_ctx, backbone.text_width)
    return random_vectors(shape if n_names is None else (n_names, *shape), start.generator)


def word_vectors(backbone: DualEncoder, words: str) -> Tensor:
    """Return the embeddings [M, D] of one word or more, on the CPU; an underscore is a space."""
    import torch

    ids = backbone.tokenize(words.replace("_", " "))
    if not ids:
        raise UserError(f"the words to start from are {words!r}, but one at least was expected. Write some.")
    return backbone.token_vectors(torch.tensor(ids, device=backbone.device)).float().cpu()


def saved_context(backbone: DualEncoder, folder: str) -> Tensor:
    """Return the context vectors [M, D] of a saved prompt, on the CPU; all classes must share them."""
    from mmprompt.core.file import load
    from mmprompt.core.header import read_header
    from mmprompt.core.learned import Learned
    from mmprompt.models.sites import Site

    read_header(expanded(folder), "classification")
    for source in load(folder, backbone).prompt.sources:
        if isinstance(source, Learned) and source.sites == (Site("text"),) and source.scope == "shared":
            return source.vectors.detach().cpu()
    raise bad_file(folder, "holds no context vectors that all classes share", "Give the folder of a prompt of coop.")


def first_words(backbone: DualEncoder, words: str | None, n_ctx: int, start: Start) -> tuple[Tensor, str]:
    """Return vectors [M, D] to start from and the words that stay as they are after them.

    As in MaPLe's released code the first `n_ctx` tokens of the words learn and the others stay; with more vectors than
    tokens, or without words, the start is drawn at random. The words that stay are those of a template.
    """
    from mmprompt.core.template import escaped

    if words and is_folder(words):
        raise bad_value("ctx_init", words, "words were expected, not a folder", "Start coop from a prompt.")
    ids = [] if words is None else backbone.tokenize(words.replace("_", " "))
    if len(ids) < n_ctx:
        return random_context(backbone, n_ctx, start), ""
    rest = backbone.decode(ids[n_ctx:]).strip()
    if backbone.tokenize(rest) != ids[n_ctx:]:
        expected = f"it cannot be cut behind its first {n_ctx} tokens, which alone learn"
        raise bad_value("ctx_init", repr(words), expected, "Use other words or another `n_ctx`.")
    return word_vectors(backbone, words or "")[:n_ctx], escaped(rest)
