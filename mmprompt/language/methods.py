"""The methods of a language model by name, those of every decoder and those that need a language model, where their
vectors start, and the ways to search words instead.

The defaults are measured in docs/language.md. A start has the size of the model's own token embeddings: vectors of
another size are a bad start (Lester et al. 2021, section 3.2, and Vu et al. 2022, "SPoT", for prompts of other tasks).
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from mmprompt.core.method import Start, refuse_same_settings
from mmprompt.core.soft import (
    RECIPE,
    DecoderMethod,
    HardPrompt,
    LoRA,
    PrefixTuning,
    PromptTuning,
    WeightMethod,
)
from mmprompt.errors import UserError, bad_value, unknown_name
from mmprompt.settings import Count, Width, check_settings
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from mmprompt.core.learned import Prompt

Encoder = Literal["mlp", "lstm"]
Objective = Literal["auto", "answer", "choices"]
StartKind = Literal["auto", "words", "labels", "texts", "vocabulary", "random", "prompt"]


@dataclass(frozen=True)
class PromptInit:
    """Where the vectors start."""

    start: StartKind = "auto"
    """words (those given), labels (the words of the classes, then of the texts), texts (the commonest tokens of the
    texts), vocabulary (drawn among the commonest 5,000 tokens), random (normal, of the embeddings' size), prompt (the
    vectors of a saved one), or auto: words or a prompt if they are given, else labels, else texts."""
    words: str = ""
    """Words whose token embeddings the vectors start from, repeated if there are fewer."""
    from_prompt: Path | None = None
    """A run folder whose vectors are taken over, for the same model."""

    def __post_init__(self) -> None:
        check_settings(self)
        if (self.start == "words" or self.words) and not self.words.strip():
            advice = 'Use `words="Classify the text"`.'
            raise bad_value("words", repr(self.words), "a start from words needs some", advice)
        if self.start == "prompt" and self.from_prompt is None:
            raise bad_value("from_prompt", None, "a start from a prompt needs one", "Use `from_prompt=RUN`.")
        if self.words and self.from_prompt is not None:
            raise bad_value("words", repr(self.words), f"the start is from {self.from_prompt} too", "Leave one out.")
        if self.words and self.start not in ("auto", "words"):
            raise bad_value("words", repr(self.words), f"the start is {self.start}", "Use `start='words'`.")
        if self.from_prompt is not None and self.start not in ("auto", "prompt"):
            raise bad_value("from_prompt", self.from_prompt, f"the start is {self.start}", "Use `start='prompt'`.")


@dataclass(frozen=True)
class PTuning(PromptTuning):
    """Vectors that a small network makes (Liu et al. 2021, "GPT Understands, Too")."""

    encoder: Encoder = "mlp"
    """mlp, or lstm: a bidirectional LSTM over all vectors before the MLP."""
    hidden: Width = 256
    """Width of the network."""

    recipe: ClassVar[Recipe] = replace(RECIPE, lr=3e-3)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden % 2:
            raise bad_value("hidden", self.hidden, "it must be an even number", "Use `hidden=256`.")

    def prompt(self, backbone: Any, start: Start) -> Prompt:
        """Make encoded vectors, which are the start before the first step."""
        from mmprompt.core.learned import Prompt
        from mmprompt.language.sources import EncodedVectors

        values, unit = vectors_to_start_from(start, self.n_vectors)
        encoded = EncodedVectors(values, unit.item(), self.encoder, self.hidden)
        return Prompt(start.template, encoded).to(backbone.device)


@dataclass(frozen=True)
class DeepPrompts(PrefixTuning):
    """Keys and values in every block, learned directly (Liu et al. 2022, "P-Tuning v2")."""

    reparametrise: bool | None = False
    """Learn them through an MLP or directly."""

    recipe: ClassVar[Recipe] = replace(RECIPE, lr=0.01)


@dataclass(frozen=True)
class MultitaskPrompt(PromptTuning):
    """One prompt for several tasks and a matrix of low rank for each (Wang et al. 2023, "Multitask Prompt Tuning")."""

    rank: Width = 1
    """Rank of a task's matrix."""

    def prompt(self, backbone: Any, start: Start) -> Prompt:
        """Make a prompt that is the start for every task.

        Raises:
            UserError: the data names no tasks.
        """
        import torch

        from mmprompt.core.learned import Prompt
        from mmprompt.language.sources import MultitaskVectors

        if not start.tasks:
            raise UserError('multitask needs rows of several tasks, but these name none. Write "task" in every row.')
        values, unit = vectors_to_start_from(start, self.n_vectors)
        n_tasks, (n_vectors, width) = len(start.tasks), values.shape
        columns, rows = torch.zeros(n_tasks, n_vectors, self.rank), torch.zeros(n_tasks, self.rank, width)
        columns[..., 0], rows[:, 0] = 1.0, 1.0  # their product is one everywhere
        if self.rank > 1:
            columns[..., 1:].normal_(0.0, 0.02)
        source = MultitaskVectors.of(start.tasks, values.cpu(), columns, rows, unit.cpu())
        return Prompt(start.template, source).to(backbone.device)


@dataclass(frozen=True)
class SoftVerbalizer(DecoderMethod):
    """A learned row of the output layer for each label in place of its words (Hambardzumyan et al. 2021, "WARP");
    prompt-tuning+soft-verbalizer learns both.
    """

    kinds: ClassVar[tuple[str, ...]] = ("language",)
    group: ClassVar[str] = "heads"
    recipe: ClassVar[Recipe] = replace(RECIPE, lr=0.01)

    def prompt(self, backbone: Any, start: Start) -> Prompt:
        """Make rows that start from the mean of the output rows of each label's first word.

        Raises:
            UserError: the data has no labels, or the model's output layer is not at hand.
        """
        from mmprompt.core.learned import Prompt
        from mmprompt.language.sources import LabelRows

        assert start.label_rows is not None, "a language model's task gives rows to start from"
        rows, unit = start.label_rows()
        ratio = 1.0 if start.lr is None else self.recipe.lr / start.lr
        head = LabelRows(*rows.shape).start_from(rows.cpu(), unit.cpu() * ratio)
        return Prompt(start.template, head=head).to(backbone.device)


@dataclass(frozen=True)
class Adapter(WeightMethod):
    """A network of one small hidden layer behind every block (Houlsby et al. 2019; one as Pfeiffer et al. 2021)."""

    width: Width = 16
    """Width of the hidden layer."""

    recipe: ClassVar[Recipe] = replace(RECIPE, lr=2e-3)

    def prompt(self, backbone: Any, start: Start) -> Prompt:
        """Make the networks; they add nothing before the first step.

        Raises:
            UserError: the model's blocks are not found.
        """
        from mmprompt.core.learned import Prompt
        from mmprompt.language.sources import Bottlenecks
        from mmprompt.models.decoder.inserts import block_names

        names = block_names(backbone.lm)
        if not names:
            raise UserError(f"the blocks of {backbone.name} are not found, so it takes no adapters. Use lora.")
        width = backbone.lm.config.get_text_config().hidden_size
        networks = Bottlenecks({f"lm.part[{name}]": width for name in names}, self.width, self.unit(start))
        return Prompt(start.template, networks.start_from(start.generator)).to(backbone.device)


@dataclass(frozen=True)
class FullTuning(WeightMethod):
    """Weights of its own in place of all of the model's; as large as the model."""

    recipe: ClassVar[Recipe] = replace(RECIPE, lr=3e-5)

    def prompt(self, backbone: Any, start: Start) -> Prompt:
        """Make weights that start as the model's own."""
        from mmprompt.core.learned import Prompt
        from mmprompt.core.sources import Weights

        own = dict(backbone.lm.named_parameters())
        weights = Weights({f"lm.part[{name}]": list(value.shape) for name, value in own.items()}, self.unit(start))
        return Prompt(start.template, weights.start_from(list(own.values()))).to(backbone.device)


def vectors_to_start_from(start: Start, n_vectors: int) -> tuple[Tensor, Tensor]:
    """Give the embeddings [P, D] that a decoder's task offers to start from, and their unit."""
    assert start.vectors is not None, "a decoder's task gives vectors to start from"
    return start.vectors(n_vectors)


@dataclass(frozen=True)
class Instruction(DecoderMethod):
    """One of the instructions in words that the card of the data has; nothing is learned."""

    number: Count = 1
    """Which of them, from 1."""

    kinds: ClassVar[tuple[str, ...]] = ("language",)
    stands_alone: ClassVar[bool] = True
    group: ClassVar[str] = "nothing learned"
    needs_shots: ClassVar[bool] = False
    is_trained: ClassVar[bool] = False
    recipe: ClassVar[Recipe] = RECIPE
    reads: ClassVar[tuple[str, ...]] = ("instructions",)

    def prompt(self, backbone: Any, start: Start) -> Prompt:
        """Make a prompt of nothing but the instruction as its template."""
        from mmprompt.core.learned import Prompt
        from mmprompt.language.templates.template import Template

        if self.number > len(start.templates):
            has = f"the card of the data has {len(start.templates)} instructions"
            raise bad_value("number", self.number, has, "Write more of them, or give a smaller number.")
        return Prompt(Template.instruction(start.templates[self.number - 1]))


@dataclass(frozen=True)
class SearchedWords(DecoderMethod):
    """Words that a search finds in place of vectors; `mmprompt llm search` has all its options."""

    search: Literal["coordinates", "projection"] = "coordinates"
    """How: coordinates (Shin et al. 2020, "AutoPrompt") or projection (Wen et al. 2023, "PEZ")."""

    kinds: ClassVar[tuple[str, ...]] = ("language",)
    stands_alone: ClassVar[bool] = True
    is_trained: ClassVar[bool] = False
    recipe: ClassVar[Recipe] = RECIPE

    def prompt(self, backbone: Any, start: Start) -> Prompt:
        """Make a prompt without words, those come last."""
        from mmprompt.core.learned import Prompt

        return Prompt(start.template)

    def finish(self, predictor: Any, data: Any) -> Sequence[str]:
        """Search the words with the rows of a problem of a language model, and give the predictor their template."""
        from mmprompt.language.search.task import search_words

        found = search_words(data.task, predictor.model, search=SEARCHES[self.search](), seed=data.seed)
        predictor.take(found.prompted.prompt)
        data.noticed += found.notices  # which the search has said
        return found.notices


METHODS: dict[str, type[DecoderMethod]] = {
    "prompt-tuning": PromptTuning,
    "p-tuning": PTuning,
    "prefix-tuning": PrefixTuning,
    "deep-prompts": DeepPrompts,
    "multitask": MultitaskPrompt,
    "lora": LoRA,
    "adapter": Adapter,
    "full-tuning": FullTuning,
    "soft-verbalizer": SoftVerbalizer,
    "searched-words": SearchedWords,
    "instruction": Instruction,
    "hard": HardPrompt,
}


def method_types(name: str) -> list[type[Any]]:
    """Return the methods that a name such as `lora` or `prompt-tuning+lora` stands for."""
    names = [part.strip() for part in name.split("+")]
    for part in names:
        if part not in METHODS:
            raise unknown_name("method", part, METHODS)
    kinds = [METHODS[part] for part in names]
    refuse_same_settings(kinds)
    return kinds


def make_method(name: str, settings: Mapping[str, Any]) -> DecoderMethod:
    """Make a method from its name and the settings of all its parts together."""
    kinds = method_types(name)
    own = [{one.name: settings[one.name] for one in fields(kind) if one.name in settings} for kind in kinds]
    return reduce(operator.add, [kind(**given) for kind, given in zip(kinds, own, strict=True)])


@dataclass(frozen=True)
class WordSearch:
    """What both ways of searching share."""

    n_steps: Count = 100
    """Most steps; the best words on the way are kept."""
    batch_size: Count = 16
    """Rows of a gradient, and of a first look at a prompt; what does well there is scored on all."""
    n_rows: Count = 128
    """Most training rows that prompts are scored on, as many of each class."""
    ascii_only: bool = True
    """Take tokens of plain ASCII alone, or those of all letters; special ones and what cannot be printed never."""
    fluency: Annotated[float, Ge(0)] = 0.0
    """Weight of the prompt's own improbability to the model, in nats a token, beside the loss; 0 for none."""

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def recipe(self) -> Recipe:
        """Steps and rows as a training has them; a step counts as an epoch."""
        return replace(RECIPE, epochs=self.n_steps, batch_size=self.batch_size)


@dataclass(frozen=True)
class Projection(WordSearch):
    """Soft vectors are moved by the gradient at the nearest words (Wen et al. 2023, "Hard Prompts Made Easy", PEZ)."""

    lr: float = 0.3
    """Learning rate, in units of the token embeddings' size."""
    weight_decay: float = 0.0
    """Pull of the soft vectors towards zero."""

    @property
    def recipe(self) -> Recipe:
        """Its optimiser, too; checks learning rate and weight decay."""
        return replace(super().recipe, lr=self.lr, weight_decay=self.weight_decay)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.recipe  # noqa: B018


@dataclass(frozen=True)
class CoordinateSearch(WordSearch):
    """One token a step is exchanged for the best of some that the gradient proposes (Shin et al. 2020, "AutoPrompt"),
    candidates drawn over all places (Zou et al. 2023, "Universal and Transferable Adversarial Attacks").
    """

    n_steps: Count = 14
    """Most steps; in each of them one token is exchanged, or none."""
    n_candidates: Count = 24
    """Prompts that are scored in a step."""
    top_k: Count = 64
    """Tokens that the gradient proposes for each place, of which candidates are drawn."""
    patience: Count = 5
    """Steps without a gain after which the search ends."""


SEARCHES: dict[str, type[WordSearch]] = {"projection": Projection, "coordinates": CoordinateSearch}
