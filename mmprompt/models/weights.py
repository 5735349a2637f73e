"""Learned weights that stand in place of a frozen model's own for a while. None of its own is written to or copied."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from mmprompt.models.sites import Weight


@contextlib.contextmanager
def in_place(model: nn.Module, weights: Mapping[str, Weight]) -> Iterator[None]:
    """Have a model compute with some weights of others' making; every thread sees them meanwhile.

    Args:
        model: the frozen model.
        weights: by the name of the weight they stand in for, of its shape; tied ones are all replaced.
    """
    places = list(_places_of(model, weights)) if weights else []
    try:
        for part, name, _, learned in places:
            part._parameters[name] = learned  # type: ignore[assignment]
        yield
    finally:
        for part, name, frozen, _ in places:
            part._parameters[name] = frozen


def _places_of(
    model: nn.Module, weights: Mapping[str, Weight]
) -> Iterator[tuple[nn.Module, str, nn.Parameter, Tensor]]:
    """Find where weights stand, tied ones in several places: module, its name for it, the frozen one, the learned."""
    own = dict(model.named_parameters())
    learned = {id(own[name]): weight.values.to(own[name].dtype) for name, weight in weights.items()}
    for part in model.modules():
        for name, frozen in part._parameters.items():
            if frozen is not None and id(frozen) in learned:
                yield part, name, frozen, learned[id(frozen)]
