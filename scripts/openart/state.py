"""The state of a training run: its optimiser, and all of it as one safetensors file, written beside and renamed.

The optimiser is Muon for the matrices inside the transformer blocks, AdamW for everything else. Muon (Jordan et al.
2024) steps along the orthogonalised momentum; the size of its step is matched to AdamW's as in Liu et al. 2025 ("Muon
is scalable for LLM training"), so that one learning rate and weight decay serve both.
"""

import copy
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed, nn

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz iteration, from the Muon reference
STEP_SIZE = 0.2  # root mean square of one AdamW step in units of the learning rate


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


def orthogonalised(matrices: Tensor, n_iterations: int = 5) -> Tensor:
    """Nearest (semi-)orthogonal matrices, roughly: [N, r, c] with r <= c."""
    a, b, c = COEFFICIENTS
    x = matrices / matrices.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-7)
    for _ in range(n_iterations):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x


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


@dataclass
class State:
    """Everything a run needs to go on: model, optimiser, throw-away heads, averaged weights and the steps done.

    Of the optimiser, `state` {parameter: {name: tensor}} is kept.
    """

    model: nn.Module
    optimiser: MuonAdamW | torch.optim.AdamW
    heads: nn.Module = field(default_factory=nn.Module)
    average: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0

    def parameters(self) -> dict[str, nn.Parameter]:
        """All trained tensors by name."""
        return named_parameters(self.model, self.heads)

    def averaged(self) -> nn.Module:
        """A copy of the model that holds the averaged weights."""
        model = copy.deepcopy(self.model).requires_grad_(False).eval()
        for name, value in model.named_parameters():
            value.copy_(self.average[name])
        return model

    def update_average(self, decay: float) -> None:
        """Exponential moving average of the model's weights."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        for name, value in self.model.named_parameters():
            self.average[name].lerp_(value.detach(), 1 - decay)


def named_parameters(model: nn.Module, heads: nn.Module) -> dict[str, nn.Parameter]:
    """The tensors of both by names that tell them apart."""
    parts = {"model": model, "heads": heads}
    return {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}


def new_state(model: nn.Module, heads: nn.Module, weight_decay: float) -> State:
    """A state before its first step. Gains, offsets and embeddings are not decayed."""
    average = {n: p.detach().clone() for n, p in model.named_parameters()}
    return State(model, MuonAdamW(named_parameters(model, heads), weight_decay), heads, average)


def save_state(state: State, path: Path, settings: Mapping[str, object]) -> None:
    """Write the state; what was there is replaced at once or not at all."""
    tensors = {n: p.detach() for n, p in state.parameters().items()}
    tensors |= {f"average.{n}": v for n, v in state.average.items()}
    for name, parameter in state.parameters().items():
        for key, value in state.optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser.{key}.{name}"] = value
    part = path.with_suffix(".part")
    described = {"step": str(state.step), "settings": json.dumps(settings)}
    save_file({n: t.contiguous().cpu() for n, t in tensors.items()}, part, metadata=described)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


@torch.no_grad()
def load_state(state: State, path: Path) -> None:
    """Fill the state from a file."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        state.step = int(file.metadata()["step"])
    for name, parameter in state.parameters().items():
        if name.startswith("heads.") and name not in tensors:
            continue  # a head that the run did not have yet starts afresh
        parameter.copy_(tensors[name])
        keys = [k for k in ("step", "exp_avg", "exp_avg_sq") if f"optimiser.{k}.{name}" in tensors]
        state.optimiser.state[parameter] = {
            k: tensors[f"optimiser.{k}.{name}"].to("cpu" if k == "step" else parameter.device) for k in keys
        }
    for name, value in state.average.items():
        value.copy_(tensors[f"average.{name}"])
