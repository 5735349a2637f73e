"""Several processes that take one training step together, such as those that `torchrun` starts.

Each takes a share of the batch, and of the classes where their features are the same for every image; gradients are
summed, so that all hold the prompt that one process alone would. What is frozen is never sent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


class PeerLostError(RuntimeError):
    """Another process of the job is gone."""


class Ranks:
    """The processes of one job, this one being `rank` of `size`; a lone process is 0 of 1."""

    def __init__(self) -> None:
        is_launched = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ
        if is_launched and not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        together = dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size() if together else 1
        self.rank = dist.get_rank() if together else 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def share(self, indices: list[int]) -> tuple[list[int], bool]:
        """Return this process's part of a batch; where there is none, one item that must not count, and False."""
        mine = indices[self.rank :: self.size]
        return (mine, True) if mine else (indices[:1], False)

    def sum(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Return the sums of some numbers over all processes."""
        if self.size == 1:
            return list(values)
        sendable = device if dist.get_backend() == "nccl" else torch.device("cpu")
        return _summed(torch.tensor(values, dtype=torch.float64, device=sendable)).tolist()

    def sum_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Sum gradients over all processes, in place and in one message a dtype."""
        if self.size == 1:
            return
        for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
            some = [gradient for gradient in gradients if gradient.dtype == dtype]
            flat = _summed(nn.utils.parameters_to_vector(some))
            nn.utils.vector_to_parameters(flat, some)

    def from_first(self, ask: Callable[[], T]) -> T:
        """Ask the first process alone, and return its answer, or raise its error, in all of them."""
        if self.size == 1:
            return ask()
        told: list[Any] = [None, None]
        if self.is_first:
            try:
                told = [ask(), None]
            except Exception as error:
                told = [None, error]
        with _peers_watched():
            dist.broadcast_object_list(told)
        if told[1] is not None:
            raise told[1]
        return told[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within the block all processes do the same work, so that classes may be divided among them."""
        global _DIVIDED
        before, _DIVIDED = _DIVIDED, self.size > 1
        try:
            yield
        finally:
            _DIVIDED = before


_DIVIDED = False


def own_classes(costs: Sequence[int]) -> slice | None:
    """Return the classes that this process computes, of about equal cost with the others'; None where it is all."""
    if not _DIVIDED or len(costs) < dist.get_world_size():
        return None
    size, rank = dist.get_world_size(), dist.get_rank()
    reached = list(accumulate(costs))
    bounds = [0]
    for place in range(1, size):
        aim = reached[-1] * place / size
        found = next(index for index, total in enumerate(reached, 1) if total >= aim)
        bounds.append(min(max(found, bounds[-1] + 1), len(costs) - (size - place)))
    return slice(bounds[rank], [*bounds, len(costs)][rank + 1])


def all_classes(own: Tensor, place: slice, n_classes: int) -> Tensor:
    """Put the parts [B, C', D] of all processes together: [B, C, D], with the gradients of all of them."""
    gathered: Tensor = _Gather.apply(own, place, n_classes)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, own: Tensor, place: slice, n_classes: int) -> Tensor:
        context.place = place
        whole = own.new_zeros(own.shape[0], n_classes, own.shape[2])
        whole[:, place] = own
        return _summed(whole)  # all but one of the terms are zero

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _summed(gradient.contiguous().clone())[:, context.place], None, None


def _summed(tensor: Tensor) -> Tensor:
    with _peers_watched():
        dist.all_reduce(tensor)
    return tensor


@contextmanager
def _peers_watched() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLostError(str(error).splitlines()[0]) from None
