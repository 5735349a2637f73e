"""Methods for a decoder, of a language model and of a captioner alike: vectors among its tokens, keys and values in its
blocks, low-rank terms beside its layers, or words alone.

All of them start from something real, token embeddings or the keys and values of tokens: a prompt that starts from
noise breaks a small decoder before it can learn. Vectors are learned in units of the model's own numbers, so that one
learning rate serves models of any scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

from annotated_types import Ge, Gt, Le, Lt

from mmprompt.core.method import Combined, Method, Start, parts_of, refuse_same_settings
from mmprompt.errors import UserError, bad_value, unknown_name
from mmprompt.settings import Width
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from mmprompt.core.learned import Prompt

ALL, ATTENTION, HEAD, EMBEDDINGS = "all", "attention", "head", "embeddings"
VectorCount = Annotated[int, Ge(1), Le(1024)]
"""Vectors of one prompt; attention over more would leave no room for text."""
RECIPE = Recipe(optimizer="adamw", lr=0.03, batch_size=16, weight_decay=0.0, warmup_epochs=0, augment="none")


class DecoderMethod(Method, Protocol):
    """A method whose prompt enters a decoder.

    Attributes:
        kinds: of tasks that it learns.
        n_vectors: how many vectors stand in the bare `{soft}` of a template; 0 for none.
        changes_weights: whether it learns beside, behind or in place of the model's layers.
        stands_alone: whether it cannot be part of a combination.
        reads: what else of the data decides what it computes, by the names of its attributes.
    """

    kinds: ClassVar[tuple[str, ...]] = ("captioning", "language")
    changes_weights: ClassVar[bool] = False
    stands_alone: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()

    @property
    def n_vectors(self) -> int:
        """See the class."""
        return 0

    def __add__(self, other: DecoderMethod) -> DecoderCombination:
        return DecoderCombination((self, other)) if hasattr(other, "n_vectors") else NotImplemented


@dataclass(frozen=True)
class DecoderCombination(Combined, DecoderMethod):
    """Several methods of a decoder, trained as one prompt; what changes weights comes last."""

    methods: tuple[DecoderMethod, ...]

    def __post_init__(self) -> None:
        parts = parts_of(self)
        object.__setattr__(self, "methods", tuple(sorted(parts, key=lambda part: part.changes_weights)))
        refuse_same_settings([type(part) for part in parts])
        for part in parts:
            if part.stands_alone:
                raise UserError(f"{type(part).__name__} is not learned together with others. Use it alone.")

    @property
    def n_vectors(self) -> int:
        """Those of the one method that learns some."""
        return max(part.n_vectors for part in self.methods)


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
        from mmprompt.core.learned import Learned, Prompt
        from mmprompt.models.sites import LM_INPUT

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
    hidden: Width = 256
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
        from mmprompt.core.learned import Learned, Prompt
        from mmprompt.models.sites import LM_INPUT

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


class WeightMethod(DecoderMethod, Protocol):
    """A method whose prompt changes what layers of a language model compute."""

    kinds: ClassVar[tuple[str, ...]] = ("language",)
    changes_weights: ClassVar[bool] = True
    group: ClassVar[str] = "weights"

    def unit(self, start: Start) -> float:
        """Give the unit by which it learns at its own rate within the recipe of another method."""
        return 1.0 if start.lr is None else self.recipe.lr / start.lr


@dataclass(frozen=True)
class LoRA(WeightMethod):
    """Low-rank terms beside linear layers (Hu et al. 2022, "LoRA", section 4.1); prompt-tuning+lora learns both."""

    rank: Width = 8
    """Rank of each term."""
    alpha: Annotated[float, Gt(0)] = 16.0
    """The terms are scaled by alpha / rank."""
    dropout: Annotated[float, Ge(0), Lt(1)] | None = None
    """Share of what enters a term that is dropped in training; 0 for a language model, 0.2 for a captioner."""
    ratio: Annotated[float, Gt(0)] | None = None
    """How many times faster the outer matrix of a term learns than the inner one (Hayou et al. 2024, "LoRA+"); 1 where
    it is not given."""
    targets: tuple[str, ...] | None = None
    """all (every linear layer but the head), attention (those of attentions), head and embeddings (of a captioner,
    where words that it never said are to be said and read), or names of layers, such as q_proj; all for a language
    model; all, head and embeddings for a captioner."""

    kinds: ClassVar[tuple[str, ...]] = ("captioning", "language")
    recipe: ClassVar[Recipe] = replace(RECIPE, lr=2e-3)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "targets", None if self.targets is None else tuple(self.targets))
        if self.targets == ():
            raise bad_value("targets", "empty", "at least one layer is adapted", f"Use `targets=('{ALL}',)`.")

    def prompt(self, backbone: Any, start: Start) -> Prompt:
        """Make a term beside every layer that is meant; they are nothing before the first step.

        Raises:
            UserError: the model has no layer of that name, or no attention whose layers are known by name.
        """
        from mmprompt.core.learned import Prompt
        from mmprompt.core.sources import LowRankTerms
        from mmprompt.models.decoder.inserts import linear_layers

        targets = (ALL,) if self.targets is None else self.targets
        outer = [name for target in (HEAD, EMBEDDINGS) if target in targets for name in outer_layer(backbone, target)]
        inner = tuple(target for target in targets if target not in (HEAD, EMBEDDINGS))
        layers = chosen_layers(backbone.name, linear_layers(backbone.lm), inner) | dict(outer)
        places = {f"lm.part[{name}]": list(size) for name, size in layers.items()}
        shape, rates = (self.rank, self.alpha / self.rank, self.dropout or 0.0), (self.unit(start), self.ratio or 1.0)
        terms = LowRankTerms(places, *shape, *rates)
        return Prompt(start.template, terms.start_from(start.generator)).to(backbone.device)


def outer_layer(backbone: Any, target: str) -> list[tuple[str, tuple[int, int]]]:
    """Find the head of a captioner's decoder, or its table of embeddings: name, numbers that go in and come out.

    Raises:
        UserError: it is a language model, whose choices read rows of the head alone, or its head is no linear layer.
    """
    from mmprompt.models.decoder.inserts import layer_size

    if not getattr(backbone, "adapts_head", False):
        raise bad_value(
            "targets", target, f"the {target} of a language model is not adapted", "Use `targets=('all',)`."
        )
    lm = backbone.lm
    layer = lm.get_output_embeddings() if target == HEAD else lm.get_input_embeddings()
    found = [(name, layer_size(part)) for name, part in lm.named_modules() if part is layer]
    if any(size == (0, 0) for _, size in found):
        raise bad_value("targets", target, f"that of {backbone.name} is no linear layer", "Use `targets=('all',)`.")
    return found


def chosen_layers(
    model: str, layers: Mapping[str, tuple[int, int]], targets: tuple[str, ...]
) -> dict[str, tuple[int, int]]:
    """Select the linear layers that targets mean, in the model's order; refuse a target that means none.

    A target is one of `LoRA`'s, a layer's name or the last parts of it; `model` is a name for the message.
    """
    from mmprompt.models.decoder.inserts import in_attention

    chosen: set[str] = set()
    last = {name.rpartition(".")[2] for name in layers}
    for target in targets:
        if target == ALL:
            found = set(layers)
        elif target == ATTENTION:
            found = {name for name in layers if in_attention(name)}
            if not found:
                raise UserError(
                    f"{model} has no attention whose layers are known by name, but its linear layers are "
                    f"{', '.join(sorted(last))}. Name those to adapt, or use all."
                )
        else:
            found = {name for name in layers if f".{name}".endswith(f".{target}")}
        if not found:
            raise unknown_name(f"linear layer of {model}", target, {ALL, ATTENTION, *last})
        chosen |= found
    return {name: size for name, size in layers.items() if name in chosen}
