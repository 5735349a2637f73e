from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import nn

from mmprompt.errors import UserError
from mmprompt.training.recipe import Recipe
from mmprompt.training.update import NotFiniteError, WeightUpdate, compute_dtype


def linear() -> nn.Linear:
    module = nn.Linear(2, 1, bias=False)
    nn.init.constant_(module.weight, 0.5)
    return module


def test_the_losses_are_summed_and_each_value_is_returned() -> None:
    module = linear()
    losses = {"a": module.weight.sum(), "b": 2 * module.weight.sum()}
    values = WeightUpdate(module, Recipe(momentum=0, weight_decay=0)).apply(losses, 0.1)
    assert values == {"a": 1.0, "b": 2.0, "loss": 3.0}
    assert module.weight.detach().flatten().tolist() == pytest.approx([0.2, 0.2])


def test_adamw_is_pytorchs_own() -> None:
    module, plain = linear(), linear()
    update = WeightUpdate(module, Recipe(optimizer="adamw", weight_decay=0.3))
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.1, weight_decay=0.3)
    for _ in range(3):
        update.apply({"a": module.weight.pow(2).sum()}, 0.1)
        optimizer.zero_grad()
        plain.weight.pow(2).sum().backward()
        optimizer.step()
    assert torch.equal(module.weight, plain.weight)


def test_eps_is_adamws() -> None:
    module, plain = linear(), linear()
    WeightUpdate(module, Recipe(optimizer="adamw", weight_decay=0, eps=1e-2)).apply(
        {"a": 1e-3 * module.weight.sum()}, 1
    )
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1, weight_decay=0, eps=1e-2)
    (1e-3 * plain.weight.sum()).backward()
    optimizer.step()
    assert torch.equal(module.weight, plain.weight)
    assert module.weight.detach().flatten().tolist() == pytest.approx([0.5 - 1e-3 / (1e-3 + 1e-2)] * 2)


def test_a_rule_makes_one_gradient_of_those_of_the_losses() -> None:
    module, seen = linear(), {}

    def rule(gradients: Mapping[str, Sequence[torch.Tensor]]) -> list[torch.Tensor]:
        seen.update({name: [value.tolist() for value in values] for name, values in gradients.items()})
        return [b - a for a, b in zip(gradients["a"], gradients["b"], strict=True)]

    losses = {"a": module.weight.sum(), "b": 3 * module.weight.sum()}
    values = WeightUpdate(module, Recipe(momentum=0, weight_decay=0)).apply(losses, 0.1, rule)
    assert seen == {"a": [[[1.0, 1.0]]], "b": [[[3.0, 3.0]]]}
    assert values["loss"] == 4.0
    assert module.weight.detach().flatten().tolist() == pytest.approx([0.3, 0.3])


def test_a_rule_sees_zeros_where_a_loss_does_not_reach() -> None:
    module, seen = nn.Sequential(linear(), linear()), {}

    def rule(gradients: Mapping[str, Sequence[torch.Tensor]]) -> list[torch.Tensor]:
        seen.update({name: [float(value.sum()) for value in values] for name, values in gradients.items()})
        return list(gradients["first"])

    losses = {"first": module[0].weight.sum(), "constant": torch.tensor(1.0)}
    WeightUpdate(module, Recipe()).apply(losses, 0.1, rule)
    assert seen == {"first": [2.0, 0.0], "constant": [0.0, 0.0]}
    assert torch.equal(module[1].weight, linear().weight * (1 - 0.1 * 5e-4))


def test_an_infinite_gradient_of_a_rule_is_found() -> None:
    module = linear()
    with pytest.raises(NotFiniteError, match="gradient"):
        WeightUpdate(module, Recipe()).apply(
            {"a": module.weight.sum()}, 0.1, lambda gradients: [gradients["a"][0] / 0.0]
        )
    assert torch.equal(module.weight, linear().weight)


def test_a_nan_loss_is_named_and_leaves_the_weights_alone() -> None:
    module = linear()
    with pytest.raises(NotFiniteError, match="second became nan"):
        WeightUpdate(module, Recipe()).apply(
            {"first": module.weight.sum(), "second": module.weight.sum() * torch.nan}, 1
        )
    assert torch.equal(module.weight, linear().weight)


def test_an_infinite_gradient_of_a_finite_loss_is_found() -> None:
    module = linear()
    with pytest.raises(NotFiniteError, match="gradient"):
        WeightUpdate(module, Recipe()).apply({"root": (module.weight - 0.5).sqrt().sum()}, 0.1)
    assert torch.equal(module.weight, linear().weight)


def test_a_frozen_parameter_is_not_touched() -> None:
    module = nn.Sequential(linear(), linear())
    module[0].requires_grad_(False)
    WeightUpdate(module, Recipe()).apply({"a": module[0].weight.sum() + module[1].weight.sum()}, 0.1)
    assert torch.equal(module[0].weight, linear().weight)
    assert not torch.equal(module[1].weight, linear().weight)


def test_a_module_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(UserError, match="there is nothing to train"):
        WeightUpdate(linear().requires_grad_(False), Recipe())


def test_losses_that_no_parameter_reaches_are_refused() -> None:
    with pytest.raises(UserError, match="no learned vector reaches the loss"):
        WeightUpdate(linear(), Recipe()).apply({"a": torch.tensor(1.0)}, 0.1)


def test_under_bf16_the_losses_are_bf16_and_the_parameters_stay_float32() -> None:
    module = linear()
    update = WeightUpdate(module, Recipe(precision="bf16"))
    with update.autocast():
        output = module(torch.ones(1, 2))
    update.apply({"a": output.sum()}, 0.1)
    assert (output.dtype, module.weight.dtype) == (torch.bfloat16, torch.float32)


def test_auto_is_fp32_on_a_cpu_and_fp16_is_refused_there() -> None:
    assert compute_dtype("auto", torch.device("cpu")) is torch.float32
    with pytest.raises(UserError, match="precision is fp16"):
        compute_dtype("fp16", torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp16", "bf16", "auto"])
def test_mixed_precision_on_a_gpu_keeps_float32_parameters(precision: str) -> None:
    module = linear().cuda()
    update = WeightUpdate(module, Recipe(precision=precision))  # type: ignore[arg-type]
    with update.autocast():
        output = module(torch.ones(1, 2, device="cuda"))
    update.apply({"a": output.float().sum()}, 0.1)
    assert module.weight.dtype is torch.float32
    assert output.dtype in (torch.float16, torch.bfloat16)
    assert not torch.equal(module.weight.cpu(), linear().weight)
