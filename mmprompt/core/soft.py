"""Methods for a decoder, of a language model and of a captioner alike: vectors among its tokens, keys and values in its
blocks, or words alone.

All of them start from something real, token embeddings or the keys and values of tokens: a prompt that starts from
noise breaks a small decoder before it can learn. Vectors are learned in units of the model's own numbers, so that one
learning rate serves models of any scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

from annotated_types import Ge, Le

from mmprompt.core.method import Combined, Method, Start
from mmprompt.errors import UserError, bad_value
from mmprompt.settings import Count
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from mmprompt.core.learned import Prompt

VectorCount = Annotated[int, Ge(1), Le(1024)]
"""Vectors of one prompt; attention over more would leave no room for text."""
RECIPE = Recipe(optimizer="adamw", lr=0.03, batch_size=16, weight_decay=0.0, warmup_epochs=0, augment="none")


class DecoderMethod(Method, Protocol):
    """A method whose prompt enters a decoder.

    Attributes:
        kinds: of tasks that it learns.
        n_vectors: how many vectors stand in the bare `{soft}` of a template; 0 for none.
        changes_weights: whether it learns beside, behind or in place of the model's layers.
    """

    kinds: ClassVar[tuple[str, ...]] = ("captioning", "language")
    changes_weights: ClassVar[bool] = False

    @property
    def n_vectors(self) -> int:
        """See the class."""
        return 0

    def __add__(self, other: DecoderMethod) -> DecoderCombination:
        return DecoderCombination((self, other)) if hasattr(other, "n_vectors") else NotImplemented


@dataclass(frozen=True)
class DecoderCombination(Combined, DecoderMethod):
    """Several methods of a language model, trained as one prompt; what changes weights comes last."""

    methods: tuple[DecoderMethod, ...]

    kinds: ClassVar[tuple[str, ...]] = ("language",)

    def __post_init__(self) -> None:
        parts = [part for one in self.methods for part in getattr(one, "methods", (one,))]
        object.__setattr__(self, "methods", tuple(sorted(parts, key=lambda part: part.changes_weights)))
        refuse_same_settings([type(part) for part in parts])

    @property
    def n_vectors(self) -> int:
        """Those of the one method that learns some."""
        return max(part.n_vectors for part in self.methods)


def refuse_same_settings(kinds: Sequence[type[Any]]) -> None:
    """Refuse to combine two methods that call a setting alike, of which a run could name one alone.

    Raises:
        UserError: there are two such.
    """
    owners: dict[str, type[Any]] = {}
    for kind in kinds:
        for name in (one.name for one in fields(kind)):
            if name in owners:
                raise UserError(
                    f"{owners[name].__name__} and {kind.__name__} both have a setting named {name}, but a combination "
                    "has one of each. Combine others."
                )
            owners[name] = kind


@dataclass(frozen=True)
class PromptTuning(DecoderMethod):
    """Vectors among the tokens (Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning")."""

    n_soft: VectorCount | None = None
    """Number of vectors, 1 or more; 20 for a language model, 8 for a captioner."""

    recipe: ClassVar[Recipe] = RECIPE

    @property
    def n_vectors(self) -> int:
        """All of them."""
        return 20 if self.n_soft is None else self.n_soft

    def prompt(self, backbone: Any, start: Start) -> Prompt:
        """Make vectors at `lm.input` that are learned directly."""
        from mmprompt.core.learned import LM_INPUT, Learned, Prompt

        assert start.vectors is not None, "a decoder's task gives vectors to start from"
        values, unit = start.vectors(self.n_vectors)
        return Prompt(start.template, Learned(LM_INPUT, values, unit=unit)).to(backbone.device)


@dataclass(frozen=True)
class PrefixTuning(DecoderMethod):
    """Keys and values in every block (Li and Liang 2021, "Prefix-Tuning"), perhaps made by an MLP while learned."""

    n_prefix: VectorCount | None = None
    """Keys and values in each block, 1 or more; 10 for a language model, 4 for a captioner."""
    reparametrise: bool | None = None
    """Learn them through an MLP (section 4.3) or directly; by default through it for a language model alone."""
    hidden: Count = 256
    """Width of the MLP."""

    recipe: ClassVar[Recipe] = replace(RECIPE, lr=3e-4)

    def prompt(self, backbone: Any, start: Start) -> Prompt:
        """Make keys and values, before the first step those that the model itself makes of the start.

        Raises:
            UserError: the model takes none.
        """
        from mmprompt.core.learned import Learned, Prompt
        from mmprompt.core.sources import MadePrefix
        from mmprompt.models.sites import Site

        if start.keys_values is None:
            raise UserError(
                f"{backbone.name} takes no keys and values of a prompt in its blocks, but prefix tuning learns some. "
                "Use prompt-tuning."
            )
        values, units = zip(*start.keys_values(10 if self.n_prefix is None else self.n_prefix), strict=True)
        if self.reparametrise is not False:
            return Prompt(start.template, MadePrefix(values, units, self.hidden)).to(backbone.device)
        sources = [
            Learned(Site("lm.kv", layer), value, unit=unit)
            for layer, (value, unit) in enumerate(zip(values, units, strict=True))
        ]
        return Prompt(start.template, *sources).to(backbone.device)


@dataclass(frozen=True)
class HardPrompt(DecoderMethod):
    """A prompt in words: nothing is learned, and it is saved and used like a learned prompt."""

    words: str = ""
    """What stands where a captioner's learned prompt has its vectors, such as "the feelings are"; a language model's
    words stand in its template."""

    group: ClassVar[str] = "nothing learned"
    needs_shots: ClassVar[bool] = False
    is_trained: ClassVar[bool] = False
    recipe: ClassVar[Recipe] = RECIPE

    def prompt(self, backbone: Any, start: Start) -> Prompt:
        """Make fixed vectors of the words, or nothing where they stand in the template.

        Raises:
            UserError: there are words and a template for them, or neither.
        """
        from mmprompt.core.learned import LM_INPUT, Learned, Prompt

        if start.embed is None:
            if self.words:
                advice = "Write them into the template."
                raise bad_value("words", repr(self.words), "those of a language model stand in its template", advice)
            return Prompt(start.template)
        values = start.embed(self.words)
        if not len(values):
            advice = 'Use `words="the mood is"`.'
            raise bad_value("words", repr(self.words), "they must hold at least one word", advice)
        return Prompt(start.template, Learned(LM_INPUT, values)).to(backbone.device).requires_grad_(False)
