"""The optimiser: Muon for the matrices inside the transformer blocks, AdamW for everything else.

Muon (Jordan et al. 2024) steps along the orthogonalised momentum; the size of its step is matched to AdamW's as in
Liu et al. 2025 ("Muon is scalable for LLM training"), so that one learning rate and weight decay serve both.
"""

from collections import defaultdict

import torch
from torch import Tensor, distributed, nn

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz iteration, from the Muon reference
STEP_SIZE = 0.2  # root mean square of one AdamW step in units of the learning rate


def orthogonalised(matrices: Tensor, n_iterations: int = 5) -> Tensor:
    """Nearest (semi-)orthogonal matrices, roughly: [N, r, c] with r <= c."""
    a, b, c = COEFFICIENTS
    x = matrices / matrices.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-7)
    for _ in range(n_iterations):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x


class MuonAdamW:
    """Both optimisers behind one step. `state` {parameter: {name: tensor}} is what a checkpoint must hold."""

    def __init__(self, parameters: dict[str, nn.Parameter], weight_decay: float) -> None:
        self.weight_decay = weight_decay
        self.hidden = {n: p for n, p in parameters.items() if "resblocks" in n and p.ndim == 2}
        rest = {n: p for n, p in parameters.items() if n not in self.hidden}
        decayed = [p for n, p in rest.items() if p.ndim >= 2 and "embedding" not in n]
        plain = [p for n, p in rest.items() if p.ndim < 2 or "embedding" in n]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.adam = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-8)
        self.state = self.adam.state
        for p in self.hidden.values():
            self.state[p] = {"exp_avg": torch.zeros_like(p)}

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.adam.zero_grad(set_to_none=True)
        for p in self.hidden.values():
            p.grad = None

    @torch.no_grad()
    def step(self, rate: float, rank: int = 0, count: int = 1) -> None:
        """One step at a learning rate; the orthogonalisations are divided among the workers."""
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        stacks: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for p in self.hidden.values():
            momentum = self.state[p]["exp_avg"].mul_(MOMENTUM).add_(p.grad)
            for part in lying(p.grad + MOMENTUM * momentum):
                stacks[tuple(part.shape)].append(part)
        steps = {shape: iter(shared(torch.stack(parts), rank, count)) for shape, parts in stacks.items()}
        for p in self.hidden.values():
            p.mul_(1 - rate * self.weight_decay)
            for part in lying(p):
                part.sub_(next(steps[tuple(part.shape)]), alpha=rate * STEP_SIZE * max(part.shape) ** 0.5)


def lying(matrix: Tensor) -> list[Tensor]:
    """Views of a weight as matrices no taller than wide; stacked queries, keys and values come apart."""
    if matrix.shape[0] == 3 * matrix.shape[1]:
        return list(matrix.chunk(3))
    return [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT]


def shared(stack: Tensor, rank: int, count: int) -> Tensor:
    """Orthogonalise a stack, every worker its own part of it."""
    if count == 1:
        return orthogonalised(stack)
    result = torch.zeros_like(stack)
    result[rank::count] = orthogonalised(stack[rank::count])
    distributed.all_reduce(result)
    return result
