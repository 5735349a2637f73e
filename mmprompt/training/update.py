"""From the losses of one batch to changed weights: precision, backward, the check for NaN, the optimiser.

It knows no data and no epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmprompt.errors import UserError, bad_value
from mmprompt.models.ranks import Ranks
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from mmprompt.training.problem import GradientRule

SMALLEST_SCALE = 1.0


class NotFiniteError(ArithmeticError):
    """A loss or gradient is NaN or infinite; the text says which, and the weights are as they were."""


class WeightUpdate:
    """One optimiser over the trainable parameters of a module, which are float32 and stay so."""

    def __init__(self, module: nn.Module, recipe: Recipe, ranks: Ranks | None = None) -> None:
        self.ranks = ranks or Ranks()
        self.parameters = [value for value in module.parameters() if value.requires_grad]
        if not self.parameters:
            raise UserError("there is nothing to train: the prompt holds no learned vector. Use one vector or more.")
        self.device = self.parameters[0].device
        self.dtype = compute_dtype(recipe.precision, self.device)
        self._optimizer = _optimizer(self.parameters, recipe)
        is_scaled = self.dtype is torch.float16
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=is_scaled)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which losses are computed."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not torch.float32)

    def apply(
        self, losses: Mapping[str, Tensor], lr: float, rule: GradientRule | None = None, share: float = 1.0
    ) -> dict[str, float]:
        """Step once down the gradient of the sum of the losses, or down what a rule makes of their gradients.

        Return the value of each loss, and of their sum as `loss`. One that is NaN or infinite is refused; an infinite
        gradient under fp16 only lowers the loss scale, until that can go no lower. Of several processes each has
        losses of its `share` of the batch, and values and gradients are those of the whole.
        """
        if any(value.dim() for value in losses.values()) and (self.ranks.size > 1 or self._scaler.is_enabled()):
            raise UserError("the gradient of each item is taken by one process, in fp32 or bf16. Use one of these.")
        if self.ranks.size > 1:
            losses = {name: value * share for name, value in losses.items()}
        means = [value.mean() for value in losses.values()]
        total = sum(means, start=torch.zeros((), device=self.device))
        own = [value.item() for value in [*means, total]]
        values = dict(zip([*losses, "loss"], self.ranks.sum(own, self.device), strict=True))
        for name, value in values.items():
            if not math.isfinite(value):
                raise NotFiniteError(f"{name} became {value}")
        if not total.requires_grad:
            raise UserError("no learned vector reaches the loss. Use one vector or more, at a site the model has.")
        self._optimizer.zero_grad(set_to_none=True)
        if rule is None:
            self._scaler.scale(total).backward()
            self._sum_gradients()
        else:
            self._combine(losses, rule)
        self._check_gradients()
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return values

    def _combine(self, losses: Mapping[str, Tensor], rule: GradientRule) -> None:
        gradients: dict[str, Sequence[Tensor]] = {}
        learning = [parameter for parameter in self.parameters if parameter.requires_grad]
        for name, loss in losses.items():
            if not loss.requires_grad:
                gradients[name] = [torch.zeros_like(parameter) for parameter in learning]
                continue
            each = [
                torch.autograd.grad(one, learning, retain_graph=True, allow_unused=True, materialize_grads=True)
                for one in self._scaler.scale(loss).reshape(-1)
            ]
            gradients[name] = (
                each[0] if loss.dim() == 0 else [torch.stack(values) for values in zip(*each, strict=True)]
            )
            self.ranks.sum_gradients(gradients[name])
        for parameter, gradient in zip(learning, rule(gradients), strict=True):
            parameter.grad = gradient

    def _sum_gradients(self) -> None:
        """Sum over all processes the gradients of what at least one of them reached."""
        if self.ranks.size == 1:
            return
        reached = self.ranks.sum([float(value.grad is not None) for value in self.parameters], self.device)
        for value, n_reached in zip(self.parameters, reached, strict=True):
            if n_reached and value.grad is None:
                value.grad = torch.zeros_like(value)
        self.ranks.sum_gradients([value.grad for value in self.parameters if value.grad is not None])

    def _check_gradients(self) -> None:
        if self._scaler.is_enabled():
            if self._scaler.get_scale() < SMALLEST_SCALE:
                raise NotFiniteError("the gradient overflows fp16 at every loss scale")
            return
        if not all(bool(value.grad.isfinite().all()) for value in self.parameters if value.grad is not None):
            raise NotFiniteError("the gradient became nan or infinite")

    def tensors(self) -> dict[str, Tensor]:
        """Return the optimiser's moments, by parameter and name."""
        states = self._optimizer.state_dict()["state"]
        return {
            f"{index}.{name}": value
            for index, state in states.items()
            for name, value in state.items()
            if value is not None
        }

    def scaler_state(self) -> dict[str, float]:
        """Return the loss scale and its counter; empty unless under fp16."""
        return self._scaler.state_dict()

    def restore(self, tensors: Mapping[str, Tensor], scaler_state: Mapping[str, float]) -> None:
        """Take back what `tensors` and `scaler_state` gave."""
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, _, name = key.partition(".")
            states.setdefault(int(index), {})[name] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": states, "param_groups": groups})
        if scaler_state:
            self._scaler.load_state_dict(dict(scaler_state))


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype in which losses are computed on a device, by the setting of a recipe."""
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if precision == "fp16" and device.type == "cpu":
        raise bad_value("precision", "fp16", "a CPU does not compute in it", "Use `precision='bf16'` or fp32.")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _optimizer(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer != "sgd":
        kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
        return kind(parameters, lr=recipe.lr, eps=recipe.eps, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
