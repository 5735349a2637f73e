"""A problem of sixteen numbers for the loop's tests: a linear classifier on noisy points."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from mmprompt.training.problem import StepResult
from mmprompt.training.seeds import generator


class Toy:
    """Ten points in three dimensions and four classes; each visit of a point adds its own noise."""

    def __init__(self, n_items: int = 10, dropout: float = 0.0, validation: list[float] | None = None) -> None:
        self.n_items = n_items
        self.module: nn.Module = nn.Linear(3, 4)
        with torch.no_grad():
            self.module.weight.copy_(torch.randn(4, 3, generator=generator(0, "weight")))
            self.module.bias.zero_()
        self.points = torch.randn(n_items, 3, generator=generator(0, "points"))
        self.labels = torch.arange(n_items) % 4
        self.dropout = dropout
        self.validation = validation
        self.visits: list[tuple[int, list[int]]] = []

    def step(self, indices: list[int], epoch: int) -> StepResult:
        self.visits.append((epoch, indices))
        noise = torch.stack([torch.randn(3, generator=generator(0, "noise", epoch, index)) for index in indices])
        points = F.dropout(self.points[indices] + 0.1 * noise, self.dropout)
        logits, labels = self.module(points), self.labels[indices]
        return StepResult({"cross_entropy": F.cross_entropy(logits, labels)}, int((logits.argmax(1) == labels).sum()))

    def validate(self) -> float | None:
        """The scripted accuracy of the epoch under way, else a smooth function of the weights."""
        if self.validation is None:
            return None
        if not self.validation:
            return float(torch.sigmoid(self.module.state_dict()["weight"].sum()))
        epochs_done = len({epoch for epoch, _ in self.visits})
        return self.validation[max(epochs_done - 1, 0)]


def weights(problem: Toy) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in problem.module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
