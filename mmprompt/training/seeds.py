"""Everything random as a pure function of a seed and a place; no global generator is read or kept.

Whoever draws from `generator(seed, "augment", epoch, index)` gets the same numbers in whatever order
the items come, on whatever worker, and after a resume.
"""

from __future__ import annotations

import hashlib
import json

import torch


def derive_seed(seed: int, *stream: int | str) -> int:
    """Return a seed, 0 to 2**63 - 1, for one stream of random numbers, independent of every other stream's.

    `stream` says what the numbers are for, in words and counters, such as `"order", epoch`.
    """
    digest = hashlib.sha256(json.dumps([seed, *stream]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *stream: int | str) -> torch.Generator:
    """Return a fresh CPU generator for one stream; the arguments are those of `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *stream))


def seed_step(device: torch.device, seed: int, *stream: int | str) -> None:
    """Seed what one step draws of the global generators, such as for dropout; `seed` and `stream` as of `derive_seed`.

    On a CPU only its own: `torch.manual_seed` writes down a stack trace for every kind of device that is not there, a
    third of the time of a step that trains a head.
    """
    seed_all = torch.default_generator.manual_seed if device.type == "cpu" else torch.manual_seed
    seed_all(derive_seed(seed, *stream))


def epoch_order(seed: int, epoch: int, n: int) -> list[int]:
    """Return the order in which an epoch, counted from 0, visits its n items: a permutation of 0..n-1."""
    return torch.randperm(n, generator=generator(seed, "order", epoch)).tolist()


def batches(order: list[int], batch_size: int) -> list[list[int]]:
    """Cut an order into batches; a last partial batch is dropped if there is at least one full one."""
    n_full = len(order) // batch_size
    if n_full == 0:
        return [order] if order else []
    return [order[start * batch_size : (start + 1) * batch_size] for start in range(n_full)]
