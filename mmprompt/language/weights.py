"""Methods of a language model that learn beside, behind or in place of its own layers, which stay as they are.

They learn at a rate of their own. Where they are trained with vectors of a prompt, by the recipe of those, their
numbers are learned in units of the ratio of the two rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

from annotated_types import Ge, Gt, Lt

from mmprompt.core.method import Start
from mmprompt.core.soft import RECIPE, DecoderMethod
from mmprompt.errors import UserError, bad_value, unknown_name
from mmprompt.settings import Count
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from mmprompt.core.learned import Prompt

ALL, ATTENTION = "all", "attention"


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

    rank: Count = 8
    """Rank of each term."""
    alpha: Annotated[float, Gt(0)] = 16.0
    """The terms are scaled by alpha / rank."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of what enters a term that is dropped in training."""
    targets: tuple[str, ...] = (ALL,)
    """all (every linear layer but the head), attention (those of attentions), or names of layers, such as q_proj."""

    recipe: ClassVar[Recipe] = replace(RECIPE, lr=2e-3)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "targets", tuple(self.targets))
        if not self.targets:
            raise bad_value("targets", "empty", "at least one layer is adapted", f"Use `targets=('{ALL}',)`.")

    def prompt(self, backbone: Any, start: Start) -> Prompt:
        """Make a term beside every layer that is meant; they are nothing before the first step.

        Raises:
            UserError: the model has no layer of that name, or no attention whose layers are known by name.
        """
        from mmprompt.core.learned import Prompt
        from mmprompt.core.sources import LowRankTerms
        from mmprompt.models.decoder.weights import linear_layers

        layers = chosen_layers(backbone.name, linear_layers(backbone.lm), self.targets)
        places = {f"lm.part[{name}]": list(size) for name, size in layers.items()}
        terms = LowRankTerms(places, self.rank, self.alpha / self.rank, self.dropout, self.unit(start))
        return Prompt(start.template, terms.start_from(start.generator)).to(backbone.device)


@dataclass(frozen=True)
class Adapter(WeightMethod):
    """A network of one small hidden layer behind every block (Houlsby et al. 2019; one as Pfeiffer et al. 2021)."""

    width: Count = 16
    """Width of the hidden layer."""

    recipe: ClassVar[Recipe] = replace(RECIPE, lr=2e-3)

    def prompt(self, backbone: Any, start: Start) -> Prompt:
        """Make the networks; they add nothing before the first step.

        Raises:
            UserError: the model's blocks are not found.
        """
        from mmprompt.core.learned import Prompt
        from mmprompt.language.sources import Bottlenecks
        from mmprompt.models.decoder.weights import block_names

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


def chosen_layers(
    model: str, layers: Mapping[str, tuple[int, int]], targets: tuple[str, ...]
) -> dict[str, tuple[int, int]]:
    """Select the linear layers that targets mean, in the model's order.

    Args:
        model: its name, for the error message.
        layers: by name, their sizes.
        targets: as of `LoRA`; a name is a layer's own, or the last parts of it.
    Raises:
        UserError: a target means no layer.
    """
    from mmprompt.models.decoder.weights import in_attention

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
