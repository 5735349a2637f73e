"""What is learned for a frozen language model: where vectors stand, and how they are made. Nothing else.

Vectors are learned in units of the model's own numbers, so one learning rate a method serves models of any scale; the
defaults are measured in docs/language.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, get_args

import torch
from torch import Tensor

from mmprompt.core.sources import ScaledVectors
from mmprompt.errors import UserError, bad_value, unknown_name
from mmprompt.language.sources import (
    EncodedVectors,
    Encoder,
    LanguageSources,
    MultitaskSources,
    PrefixSources,
)
from mmprompt.language.templates.syntax import MAX_VECTORS
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.decoder.vectors import LM_INPUT
from mmprompt.models.sites import Site
from mmprompt.training.recipe import Recipe

RECIPE = Recipe(optimizer="adamw", lr=0.03, batch_size=16, weight_decay=0.0, warmup_epochs=0, augment="none")


class LanguageMethod(Protocol):
    """A frozen dataclass of settings.

    Attributes:
        recipe: the default optimiser and schedule.
        n_vectors: soft vectors of a template's bare `{soft}`.
        n_start: vectors that a start is asked for beside those of the template, such as keys and values.
    """

    recipe: ClassVar[Recipe]

    @property
    def n_vectors(self) -> int:
        """See the class."""
        ...

    @property
    def n_start(self) -> int:
        """See the class."""
        ...

    def sources(self, model: FrozenLanguageModel, start: Tensor, tasks: Sequence[str] = ()) -> LanguageSources:
        """The untrained vectors.

        Args:
            model: the frozen model.
            start: [P, D] embeddings to start from: those of the template's slots, or `n_start` of them.
            tasks: names of the tasks of the data, for methods that tell them apart.
        """
        ...


@dataclass(frozen=True)
class PromptTuning(LanguageMethod):
    """Vectors among the tokens (Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning")."""

    n_soft: int = 20
    """Vectors of the template's {soft}."""

    recipe = RECIPE
    n_start = 0

    def __post_init__(self) -> None:
        at_least_one("n_soft", self.n_soft, MAX_VECTORS)

    @property
    def n_vectors(self) -> int:
        """All of them."""
        return self.n_soft

    def sources(self, model: FrozenLanguageModel, start: Tensor, tasks: Sequence[str] = ()) -> LanguageSources:
        """Free vectors in units of the token embeddings' size."""
        return LanguageSources({LM_INPUT: ScaledVectors(start, unit=unit_of(model, start))}).to(model.device)


@dataclass(frozen=True)
class PTuning(PromptTuning):
    """Vectors that a small network makes (Liu et al. 2021, "GPT Understands, Too")."""

    encoder: Encoder = "mlp"
    """mlp, or lstm: a bidirectional LSTM over all vectors before the MLP."""
    hidden: int = 256
    """Width of the network."""

    recipe = replace(RECIPE, lr=3e-3)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder not in get_args(Encoder):
            raise unknown_name("encoder", self.encoder, get_args(Encoder))
        if self.hidden < 2 or self.hidden % 2:
            raise bad_value("hidden", self.hidden, "it must be an even number, 2 or more", "Use --hidden 256.")

    def sources(self, model: FrozenLanguageModel, start: Tensor, tasks: Sequence[str] = ()) -> LanguageSources:
        """Encoded vectors, which are the start before the first step."""
        encoded = EncodedVectors(start, model.embedding_rms, self.encoder, self.hidden)
        return LanguageSources({LM_INPUT: encoded}).to(model.device)


@dataclass(frozen=True)
class PrefixTuning(LanguageMethod):
    """Keys and values in every block (Li and Liang 2021, "Prefix-Tuning"), made by an MLP while they are learned."""

    n_prefix: int = 10
    """Keys and values in each block."""
    reparametrise: bool = True
    """Learn them through an MLP (section 4.3) or directly."""
    hidden: int = 256
    """Width of the MLP."""

    recipe = replace(RECIPE, lr=3e-4)
    n_vectors = 0

    def __post_init__(self) -> None:
        at_least_one("n_prefix", self.n_prefix, MAX_VECTORS)
        at_least_one("hidden", self.hidden)

    @property
    def n_start(self) -> int:
        """All of them."""
        return self.n_prefix

    def sources(self, model: FrozenLanguageModel, start: Tensor, tasks: Sequence[str] = ()) -> LanguageSources:
        """Keys and values, which are those that the model itself makes of the start before the first step.

        Raises:
            UserError: the model takes none.
        """
        if model.kv_shape is None:
            raise UserError(f"{model.name} has blocks of different shapes, which take no prefix. Use prompt-tuning.")
        values, units = [], []
        for pair in model.reader.keys_values_of(start.to(model.device, model.dtype)):
            parts = [part[0].transpose(0, 1).flatten(1).float() for part in pair]  # [M, H D/H] of keys, of values
            values.append(torch.cat(parts, dim=1))
            units.append(torch.cat([rms(part).expand(part.shape[1]) for part in parts]))
        if self.reparametrise:
            return PrefixSources(values, units, self.hidden).to(model.device)
        sources = {
            Site("lm.kv", layer): ScaledVectors(value, unit=unit)
            for layer, (value, unit) in enumerate(zip(values, units, strict=True))
        }
        return LanguageSources(sources).to(model.device)


@dataclass(frozen=True)
class DeepPrompts(PrefixTuning):
    """Keys and values in every block, learned directly (Liu et al. 2022, "P-Tuning v2")."""

    reparametrise: bool = False
    """Learn them through an MLP or directly."""

    recipe = replace(RECIPE, lr=0.01)


@dataclass(frozen=True)
class MultitaskPrompt(PromptTuning):
    """One prompt for several tasks and a matrix of low rank for each (Wang et al. 2023, "Multitask Prompt Tuning")."""

    rank: int = 1
    """Rank of a task's matrix."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("rank", self.rank)

    def sources(self, model: FrozenLanguageModel, start: Tensor, tasks: Sequence[str] = ()) -> LanguageSources:
        """Every task begins with the same prompt, the start.

        Raises:
            UserError: the data names no tasks.
        """
        if not tasks:
            raise UserError('multitask needs rows of several tasks, but these name none. Write "task" in every row.')
        n_vectors, width = start.shape
        columns, rows = torch.zeros(len(tasks), n_vectors, self.rank), torch.zeros(len(tasks), self.rank, width)
        columns[..., 0], rows[:, 0] = 1.0, 1.0  # their product is one everywhere
        if self.rank > 1:
            columns[..., 1:].normal_(0.0, 0.02)
        shared = ScaledVectors(start, unit=unit_of(model, start))
        return MultitaskSources(shared, tasks, columns, rows).to(model.device)


@dataclass(frozen=True)
class HardPrompt(LanguageMethod):
    """A prompt in words alone, those of the template: nothing is learned."""

    recipe = RECIPE
    n_vectors = 0
    n_start = 0

    def sources(self, model: FrozenLanguageModel, start: Tensor, tasks: Sequence[str] = ()) -> LanguageSources:
        """None."""
        return LanguageSources({})


LANGUAGE_METHODS: dict[str, type[LanguageMethod]] = {
    "prompt-tuning": PromptTuning,
    "p-tuning": PTuning,
    "prefix-tuning": PrefixTuning,
    "deep-prompts": DeepPrompts,
    "multitask": MultitaskPrompt,
    "hard": HardPrompt,
}


def unit_of(model: FrozenLanguageModel, start: Tensor) -> Tensor:
    """The size of a model's token embeddings, for vectors of any start."""
    return torch.tensor(model.embedding_rms, device=start.device)


def rms(values: Tensor) -> Tensor:
    """The root mean square of all numbers."""
    return values.square().mean().sqrt()


def at_least_one(name: str, value: int, most: int | None = None) -> None:
    """Refuse a count below one, or above a limit.

    Raises:
        UserError: it is.
    """
    advice = f"Use --{name.replace('_', '-')} 10."
    if value < 1:
        raise bad_value(name, value, "it must be 1 or more", advice)
    if most is not None and value > most:
        raise bad_value(name, value, f"it must be at most {most}", advice)
