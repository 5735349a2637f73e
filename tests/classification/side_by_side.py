"""What holds a method to a plain version of it: a task in double precision, what is kept of each step, and how near."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmprompt.classification.predictor import Classifier
from mmprompt.classification.task import ClassificationTask
from mmprompt.core.method import Method
from mmprompt.data.images import read_image
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.training.callbacks import Callback
from mmprompt.training.problem import Run
from mmprompt.training.seeds import batches, epoch_order

TOLERANCE = 1e-8


class InDouble(ClassificationTask):
    """All that is learned in double precision."""

    def predictor(self, method: Method, model: DualEncoder, seed: int) -> Classifier:
        return super().predictor(method, model, seed).double()


class DoubleTask(InDouble):
    """The same, moved off its start, where some gradients are zero."""

    def predictor(self, method: Method, model: DualEncoder, seed: int) -> Classifier:
        classifier = super().predictor(method, model, seed)
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for parameter in classifier.prompt.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        return classifier


class Recorder(Callback):
    """What the plain version keeps too; of the terms those of the first step, before they are means over an epoch."""

    def __init__(self) -> None:
        self.start: list[Tensor] = []
        self.terms: dict[str, float] = {}
        self.gradients: list[list[Tensor]] = []
        self.places: list[list[Tensor]] = []

    def on_train_begin(self, run: Run) -> None:
        self.start = [value.detach().clone() for value in run.problem.module.parameters()]

    def on_step_end(self, run: Run, step: int, logs: Mapping[str, float]) -> None:
        parameters = list(run.problem.module.parameters())
        self.terms = self.terms or dict(logs)
        self.gradients.append([value.grad.clone() for value in parameters if value.grad is not None])
        self.places.append([value.detach().clone() for value in parameters])


def batches_of(
    task: ClassificationTask, backbone: DualEncoder, n_epochs: int, size: int
) -> list[tuple[Tensor, Tensor]]:
    """The images and labels of every step, in the order in which the loop takes them."""
    images = torch.stack([backbone.preprocess(read_image(image)) for image in task.images]).double()
    labels = torch.tensor(task.labels)
    orders = [epoch_order(1, epoch, len(images)) for epoch in range(n_epochs)]
    return [(images[batch], labels[batch]) for order in orders for batch in batches(order, size)]


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor], origin: Sequence[Tensor] | None = None) -> None:
    """Within the tolerance, relative to how far each lies from its origin."""
    assert len(found) == len(expected)
    for place, (one, plain) in enumerate(zip(found, expected, strict=True)):
        length = (plain - (0 if origin is None else origin[place])).norm()
        assert length > 0, f"{place} is where it was"
        assert ((one - plain).norm() / length).item() < TOLERANCE, f"{place}: {(one - plain).norm() / length:.1e}"
