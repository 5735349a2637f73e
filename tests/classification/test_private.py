"""Differentially private training: what is clipped, how much noise there is, and what it cannot join."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch

import mmprompt as mp
from mmprompt.classification.methods import DPSGD, VPT, CoOp, GaussianAverage, make_method
from mmprompt.classification.task import ClassificationProblem, ClassificationTask
from mmprompt.core.fit import fit
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.training.recipe import Recipe
from mmprompt.training.update import WeightUpdate

NAMES, LABELS = ["cat", "red car", "dog"], [0, 1, 2] * 2
QUICK: dict[str, Any] = {"epochs": 3, "batch_size": 6, "lr": 0.05, "progress": False}
PLAIN = Recipe(momentum=0, weight_decay=0, augment="none", epochs=3)


@pytest.fixture(scope="module")
def task() -> ClassificationTask:
    images = list(np.random.default_rng(3).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8))
    return ClassificationTask("random", NAMES, images, LABELS, template="the {}.", augment="none")


@pytest.mark.parametrize("name", ["coop+vpt+dp-sgd", "dp-sgd+cocoop", "clip-lora+dp-sgd"])
def test_the_gradient_of_each_image_is_clipped_as_one_backward_alone_gives_it(
    name: str, tiny_clip_backbone: DualEncoder, task: ClassificationTask
) -> None:
    method = make_method(name, {"epsilon": 1e9, "max_norm": 0.05} | ({"n_ctx": 2} if "coop+vpt" in name else {}))
    classifier = method.build(tiny_clip_backbone, NAMES).eval()
    for parameter in classifier.prompt.parameters():
        parameter.data += 0.02
    problem = ClassificationProblem(method, classifier, task.images, LABELS, PLAIN)
    parameters = [parameter for parameter in problem.module.parameters() if parameter.requires_grad]
    before, expected, norms = [each.detach().clone() for each in parameters], [0.0] * len(parameters), []
    for index in range(len(LABELS)):
        (loss,) = problem.step([index], 0).losses["cross_entropy"]
        own = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        norms.append(torch.cat([each.flatten() for each in own]).norm().item())
        expected = [sum_ + each * min(1, 0.05 / norms[-1]) for sum_, each in zip(expected, own, strict=True)]
    step = problem.step(list(range(len(LABELS))), 0)
    values = WeightUpdate(problem.module, PLAIN).apply(step.losses, 1.0, step.gradient_rule)
    assert values["loss"] == values["cross_entropy"] == pytest.approx(step.losses["cross_entropy"].mean().item())
    assert max(norms) > 0.05
    for old, new, total in zip(before, parameters, expected, strict=True):
        torch.testing.assert_close(old - new.detach(), total / len(LABELS), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("epsilon", "delta", "n_epochs"), [(1.0, 1e-5, 50), (8.0, 1e-5, 200), (3.0, 1e-3, 1)])
def test_the_noise_keeps_to_epsilon(epsilon: float, delta: float, n_epochs: int) -> None:
    from opacus.accountants import RDPAccountant

    noise, accountant = DPSGD(epsilon, delta).noise_multiplier(n_epochs), RDPAccountant()
    for _ in range(n_epochs):
        accountant.step(noise_multiplier=noise, sample_rate=1.0)
    assert accountant.get_epsilon(delta) == pytest.approx(epsilon, abs=0.01)
    # what n Gaussian mechanisms cost exactly (Balle and Wang 2018, theorem 8): no more than was asked for
    mu, below = math.sqrt(n_epochs) / noise, NormalDist().cdf
    exact = below(mu / 2 - epsilon / mu) - math.exp(epsilon) * below(-mu / 2 - epsilon / mu)
    assert delta / 100 < exact <= delta


def test_as_much_noise_is_added_and_other_noise_each_time() -> None:
    method = DPSGD(epsilon=2.0, max_norm=0.5)
    one, other = (
        method.gradient_rule(10)({"cross_entropy": [torch.zeros(4, 100, 100), torch.zeros(4, 10000)]}) for _ in range(2)
    )
    spread = torch.cat([each.flatten() for each in one]).std().item()
    assert spread == pytest.approx(method.noise_multiplier(10) * 0.5 / 4, rel=0.03)
    assert [each.shape for each in one] == [(100, 100), (10000,)]
    assert not torch.equal(one[0], other[0])


def test_a_private_prompt_is_trained_saved_and_read_like_any_other(
    tiny_clip_backbone: DualEncoder, task: ClassificationTask, tmp_path: Path
) -> None:
    method = CoOp(n_ctx=2, losses=[DPSGD(epsilon=4.0)])
    result = fit(method, tiny_clip_backbone, task, tmp_path / "run", **QUICK)
    read = mp.load(tmp_path / "run", tiny_clip_backbone)
    assert read.prompt.sources[0].values.equal(result.predictor.prompt.sources[0].values)
    assert set(result.history[0]) == {"epoch", "lr", "loss", "cross_entropy", "accuracy", "seconds"}
    again = fit(method, tiny_clip_backbone, task, **QUICK)
    assert not again.predictor.prompt.sources[0].values.equal(read.prompt.sources[0].values)


@pytest.mark.parametrize(
    "other", ["kgcoop", "prograd", "text-probe", "tip-adapter-f", "vpt+linear-probe", "coop+tpt", "coop+consistency"]
)
def test_what_looks_at_images_in_other_ways_is_refused_with_nothing_written(
    other: str, tiny_clip_backbone: DualEncoder, task: ClassificationTask, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"^\w+ looks at images in a way that dp-sgd does not make private\. Join it"):
        fit(f"{other}+dp-sgd", tiny_clip_backbone, task, tmp_path / "run", **QUICK)
    with pytest.raises(UserError, match="does not make private"):
        fit(make_method(other) + DPSGD(), tiny_clip_backbone, task, tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_a_part_that_comes_after_is_refused_too(tiny_clip_backbone: DualEncoder) -> None:
    with pytest.raises(UserError, match=r"^GaussianAverage looks at images"):
        ((CoOp(n_ctx=2) + DPSGD()) + (VPT(2) + GaussianAverage())).build(tiny_clip_backbone, NAMES)


def test_what_cannot_be_is_refused_before_a_run_begins(
    tiny_clip_backbone: DualEncoder, task: ClassificationTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(method: Any) -> str:
        with pytest.raises(UserError) as refused:
            fit(method, tiny_clip_backbone, task, tmp_path / "run", **QUICK)
        assert not (tmp_path / "run").exists()
        return str(refused.value)

    assert refusal("dp-sgd").startswith("DPSGD learns nothing alone. Join it to a method")
    assert refusal(CoOp(n_ctx=2) + DPSGD(epsilon=0.01)).startswith("epsilon is 0.01, but no noise is enough")
    monkeypatch.setitem(sys.modules, "opacus.accountants.utils", None)
    asked = "dp-sgd needs opacus, which is not installed. Use pip install"
    assert refusal(CoOp(n_ctx=2) + DPSGD()).startswith(asked)


def test_a_draw_that_repeats_images_is_refused(tiny_clip_backbone: DualEncoder, picture_folder: Path) -> None:
    image, array = next(picture_folder.rglob("*.png")), np.zeros((32, 32, 3), np.uint8)
    again = image.parent / ".." / image.parent.name / image.name
    for images in ([image, image], [str(image), str(image)], [image, str(again)], [array, array]):
        task = ClassificationTask("twice", NAMES, images, [0, 1])
        with pytest.raises(UserError, match="an image is there more than once"):
            fit(CoOp(n_ctx=2) + DPSGD(), tiny_clip_backbone, task, **QUICK)


def test_rows_of_one_array_are_images_of_their_own(tiny_clip_backbone: DualEncoder) -> None:
    task = ClassificationTask("rows", NAMES, np.zeros((6, 32, 32, 3), np.uint8), LABELS, augment="none")
    assert len(fit(CoOp(n_ctx=2) + DPSGD(), tiny_clip_backbone, task, **QUICK).history) == 3
