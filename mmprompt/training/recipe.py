"""The settings of one training, with the papers' values as defaults, and the learning rates that follow from them.

A field is the default, the text under it the help, the class the validator. Nothing here imports
torch, so that `mmprompt --help` stays quick, and nothing here knows what is trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from mmprompt.errors import bad_value, unknown_name
from mmprompt.settings import Count, check_settings

OptimizerName = Literal["sgd", "adam", "adamw"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Augment = Literal["auto", "none", "coop"]
Schedule = Literal["epoch", "step"]
Rate = Annotated[float, Ge(0), Le(100)]
LENGTHS = ("epochs", "n_steps", "steps_per_shot")
"""The settings that say how long a training is, of which one is given."""


@dataclass(frozen=True)
class Recipe:
    """How a prompt is trained. Its own defaults are those of Zhou et al. 2022 (CoOp); methods may start from others.

    A recipe remembers which settings it was given: `fit` takes those alone from a user's recipe, and all others from
    the method, what was measured for it, and the data set, so `Recipe(epochs=30)` changes the epochs and nothing else.
    (`dataclasses.replace` gives a recipe all of its settings.)

    Raises:
        UserError: a value is outside its range.
    """

    optimizer: OptimizerName = "sgd"
    """sgd (with momentum, no Nesterov; the papers' choice), adam or adamw."""

    lr: Annotated[float, Gt(0), Le(100)] = 0.002
    """Learning rate after the warm-up, from which the cosine falls."""

    epochs: Count | None = None
    """Passes over the training set; None for as many as suit its size (of classes: 50 at 1 shot, 100 below 8 shots, 200
    above)."""

    batch_size: Count = 32
    """Images or rows per step; a last partial batch is dropped if there is at least one full one."""

    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Momentum of sgd, 0 or more and below 1; adam and adamw keep their own (0.9, 0.999)."""

    weight_decay: Rate = 5e-4
    """Pull of the learned vectors towards zero (adamw: decoupled)."""

    n_steps: Count | None = None
    """Steps in all, in place of epochs; the last epoch is cut short."""

    steps_per_shot: Count | None = None
    """Steps for each training image of a class, in place of epochs; a classifier alone has shots."""

    eps: Annotated[float, Gt(0), Le(1)] = 1e-8
    """What adam and adamw add to the root of its second moments."""

    schedule: Schedule = "epoch"
    """How often the learning rate falls: after each epoch, as in the papers of CoOp, or after each step."""

    min_lr: Rate = 0.0
    """Where the cosine ends."""

    restart_after: Annotated[float, Gt(0), Lt(1)] | None = None
    """Share of the training after which the cosine starts again from `lr`, for methods of two stages; None for none."""

    warmup_epochs: Annotated[int, Ge(0)] = 1
    """Epochs at the constant warm-up rate before the cosine starts."""

    warmup_lr: Rate = 1e-5
    """Learning rate during the warm-up."""

    precision: Precision = "auto"
    """auto: fp32 on a CPU, else bf16 where the device has it, else fp16. The learned vectors stay fp32."""

    augment: Augment = "auto"
    """Training images as they are (none), cropped and flipped as in the papers (coop), or as the data set says."""

    views: Annotated[int, Ge(0)] = 10
    """Cropped and flipped views per image, drawn once and taken in turn; 0 draws fresh ones in every epoch."""

    patience: Count | None = None
    """Stop after so many epochs without a better validation accuracy and keep the best; by default never."""

    checkpoint_every: Count = 1
    """Epochs between two checkpoints."""

    checkpoint_seconds: Annotated[float, Ge(0)] = 10.0
    """Seconds that must lie between two checkpoints, so that quick epochs are not slowed; 0 for no limit."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Recipe:
        """Remember the names of the settings that are given."""
        recipe = super().__new__(cls)
        given = {field.name for field, _ in zip(fields(cls), args, strict=False)} | set(kwargs)
        object.__setattr__(recipe, "_given", frozenset(given))
        return recipe

    @property
    def given(self) -> dict[str, Any]:
        """The settings that this recipe was given, by name; all others are defaults."""
        names: frozenset[str] = self._given  # type: ignore[attr-defined]
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name in names}

    def __post_init__(self) -> None:
        check_settings(self)
        lengths = {name: getattr(self, name) for name in LENGTHS if getattr(self, name) is not None}
        if len(lengths) > 1:
            (other, epochs), (name, value) = list(lengths.items())[:2]
            raise bad_value(name, value, f"{other} is given too ({epochs})", "Leave one of them out.")


def check_names(settings: Iterable[str], advice: str = "") -> None:
    """Refuse the name of a setting that no recipe has."""
    known = [field.name for field in fields(Recipe)]
    for name in settings:
        if name not in known:
            raise unknown_name("setting of a recipe", name, known, advice)


def refuse_views(recipe: Recipe, what: str) -> None:
    """Refuse to crop and flip what is learned from as it is, such as texts."""
    for name, is_asked in (("augment", recipe.augment == "coop"), ("views", recipe.views != Recipe.views)):
        if is_asked:
            raise bad_value(name, getattr(recipe, name), f"{what} are learned from as they are", f"Leave `{name}` out.")


def epochs_for(recipe: Recipe, shots: int | None) -> int:
    """Return the recipe's own number of epochs, else that of Zhou et al. 2022 (CoOp) by shots, None counting as many.

    (The papers' exception for ImageNet is data, not code.)
    """
    if recipe.epochs is not None:
        return recipe.epochs
    if shots is None or shots >= 8:
        return 200
    return 50 if shots == 1 else 100


def steps_of_first_stage(recipe: Recipe, n_steps: int) -> int | None:
    """Count those of all steps of a training that lie before the cosine starts again; None where it does not."""
    return None if recipe.restart_after is None else math.floor(recipe.restart_after * n_steps + 1e-9)


def learning_rate(recipe: Recipe, epoch: int, n_epochs: float, step: int = 0, n_steps: int = 1) -> float:
    """Compute the rate of one epoch or step: constant warm-up, then a cosine (Zhou et al. 2022, released code of CoOp).

    The cosine's period is the whole training with the warm-up counted again, so that the last epoch
    stays a little above zero: that is what the papers' numbers were trained with. Where a second cosine follows, both
    have the length of their own stage.
    Epochs, and steps within one, count from 0; `n_epochs` is no whole number where a training is counted in steps.
    """
    if epoch < recipe.warmup_epochs:
        return recipe.warmup_lr
    done = epoch + (step / n_steps if recipe.schedule == "step" else 0)
    n_first = steps_of_first_stage(recipe, round(n_epochs * n_steps))
    if n_first is not None and done >= n_first / n_steps:
        done, n_epochs = done - n_first / n_steps, n_epochs - n_first / n_steps
    else:
        done, n_epochs = done - recipe.warmup_epochs, n_epochs if n_first is None else n_first / n_steps
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * done / n_epochs)) / 2
