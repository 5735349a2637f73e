"""A piece of a forward that keeps nothing for its backward pass but what went in, and is run again there.

Unlike torch's checkpoint it leaves no nodes behind either: scattered between large buffers they would keep the
C library from giving any of those back, and the memory of many pieces would add up after all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Piece = Callable[[Sequence[Tensor]], Tensor]


class _Recomputed(torch.autograd.Function):
    """`run(tensors)`, run again in the backward pass under the same autocast."""

    @staticmethod
    def forward(ctx: Any, run: Piece, *tensors: Tensor) -> Tensor:
        device = tensors[0].device.type
        ctx.run, ctx.device, ctx.random = run, device, _random_state(tensors[0].device)
        ctx.autocast = {"dtype": torch.get_autocast_dtype(device), "enabled": torch.is_autocast_enabled(device)}
        ctx.save_for_backward(*tensors)
        return run(tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        tensors = [
            tensor.detach().requires_grad_(is_wanted)
            for tensor, is_wanted in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        place = tensors[0].device
        devices = [place] if place.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.enable_grad(), torch.autocast(ctx.device, **ctx.autocast):
            _set_random_state(place, ctx.random)  # dropout drops again what it dropped
            output = ctx.run(tensors)
        leaves = [tensor for tensor in tensors if tensor.requires_grad]
        found = iter(torch.autograd.grad(output, leaves, gradient, allow_unused=True))
        return None, *(next(found) if is_wanted else None for is_wanted in wanted)


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def recomputed(run: Piece, tensors: Sequence[Tensor]) -> Tensor:
    """Compute `run(tensors)`, a pure function of them, keeping the tensors alone for the backward pass.

    Other tensors that it uses get no gradient.
    """
    return _Recomputed.apply(run, *tensors) if tensors else run(tensors)
