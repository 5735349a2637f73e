"""What joins any method: loss terms, a gradient rule, an average of weights; and settings that cannot be."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmprompt.classification.methods import (
    GDA,
    IVLP,
    VPT,
    AlignedGradient,
    CLIPLoRA,
    CoCoOp,
    Consistency,
    CoOp,
    DeepText,
    GaussianAverage,
    KgCoOp,
    KnowledgeGuided,
    MaPLe,
    NearestClassMean,
    ProGrad,
    PromptSRC,
    make_method,
)
from mmprompt.classification.predictor import Classifier
from mmprompt.classification.task import ClassificationProblem, ClassificationTask
from mmprompt.core.fit import fit
from mmprompt.core.learned import Outputs
from mmprompt.core.method import Method
from mmprompt.errors import UserError
from mmprompt.files import read_json, read_tensors, tensor_bytes
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.training.callbacks import Callback
from mmprompt.training.problem import Run
from mmprompt.training.recipe import Recipe

NAMES = ["cat", "red car", "dog"]
LABELS = [0, 1, 2] * 2
QUICK = {"epochs": 3, "batch_size": 3, "lr": 0.05, "checkpoint_seconds": 0, "progress": False}


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return list(np.random.default_rng(3).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8))


@pytest.fixture
def task(images: list[np.ndarray]) -> ClassificationTask:
    return ClassificationTask("random", NAMES, images, LABELS, template="the {}.", augment="none")


def bytes_of(result: Any) -> bytes:
    return tensor_bytes(result.predictor.prompt.state_dict())


class Weights(Callback):
    """What is learned at the end of every epoch."""

    def __init__(self) -> None:
        self.seen: list[list[Tensor]] = []

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        self.seen.append([value.detach().clone() for value in run.problem.module.parameters()])


class Interrupted(Callback):
    """Breaks off at the end of the third epoch."""

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        if epoch == 2:
            raise InterruptedError


def test_a_loss_term_is_joined_by_a_sum_or_by_a_setting(
    tiny_clip_backbone: DualEncoder, task: ClassificationTask
) -> None:
    ways = [
        CoOp(n_ctx=2) + KnowledgeGuided(3.0),
        CoOp(n_ctx=2, losses=[KnowledgeGuided(3.0)]),
        KgCoOp(n_ctx=2, ctx_init=None, knowledge_weight=3.0),
        make_method("coop+knowledge-guided", {"n_ctx": 2, "knowledge_weight": 3.0}),
    ]
    found = [fit(method, tiny_clip_backbone, task, **QUICK) for method in ways]
    assert {bytes_of(result) for result in found} == {bytes_of(found[0])}
    assert found[0].history[0]["knowledge"] > 0
    assert bytes_of(fit(CoOp(n_ctx=2), tiny_clip_backbone, task, **QUICK)) != bytes_of(found[0])


def test_several_parts_are_joined_at_once(tiny_clip_backbone: DualEncoder, task: ClassificationTask) -> None:
    summed = CoOp(n_ctx=2) + VPT(2) + Consistency() + GaussianAverage(2.0)
    given = CoOp(n_ctx=2, losses=[Consistency(), GaussianAverage(2.0)]) + VPT(2)
    one, other = (fit(method, tiny_clip_backbone, task, **QUICK) for method in (summed, given))
    assert bytes_of(one) == bytes_of(other)
    assert {"cross_entropy", "text", "image", "logits"} < one.history[0].keys()


def test_the_templates_of_a_short_text_tower_fit_every_name_as_it_is_read(tiny_clip_backbone: DualEncoder) -> None:
    names = ["_".join("a" * 7), " ".join("a" * 9)]
    assert Consistency().teacher(tiny_clip_backbone, names, "{}").shape == (2, tiny_clip_backbone.embed_dim)


def test_an_aligned_gradient_never_runs_against_what_is_known_at_any_site(
    tiny_clip_backbone: DualEncoder, images: list[np.ndarray]
) -> None:
    method = VPT(n_visual=2, depth=2) + AlignedGradient()
    classifier = method.build(tiny_clip_backbone, NAMES)
    generator = torch.Generator().manual_seed(0)
    for parameter in classifier.parameters():
        parameter.data.normal_(0, 0.5, generator=generator)
    seen = set()
    for labels in (LABELS, [1, 2, 0] * 2, [0] * 6, [1] * 6, [2] * 6):
        problem = ClassificationProblem(method, classifier, images, labels, Recipe(augment="none"))
        step = problem.step(list(range(6)), 0)
        parameters = list(problem.module.parameters())
        gradients = {
            name: torch.autograd.grad(loss, parameters, retain_graph=True) for name, loss in step.losses.items()
        }
        assert step.gradient_rule is not None
        for own, general, used in zip(
            gradients["cross_entropy"], gradients["general"], step.gradient_rule(gradients), strict=True
        ):
            is_against = bool((own * general).sum() < 0)
            seen.add(is_against)
            assert torch.equal(used, own) != is_against
            cosine = (used * general).sum() / used.norm() / general.norm()
            assert cosine.item() == pytest.approx(0, abs=1e-5) if is_against else cosine > 0
    assert seen == {True, False}


def test_an_aligned_gradient_trains_visual_prompts(tiny_clip_backbone: DualEncoder, task: ClassificationTask) -> None:
    task.labels = [(label + 1) % 3 for label in LABELS]  # against what the model knows
    plain, none, whole = (
        fit(method, tiny_clip_backbone, task, **QUICK)
        for method in (VPT(2), VPT(2) + AlignedGradient(0.0), VPT(2) + AlignedGradient())
    )
    values = [result.predictor.prompt.sources[0].values for result in (plain, none, whole)]
    torch.testing.assert_close(values[1], values[0])
    assert (values[2] - values[0]).abs().max() > 1e-4


@pytest.mark.parametrize(("mean", "std"), [(2.0, 1.0), (6.0, 1.5), (1000.0, 1.0), (-1000.0, 3.0)])
def test_an_average_is_the_exact_mean_of_the_epochs_there_were(
    mean: float, std: float, tiny_clip_backbone: DualEncoder, task: ClassificationTask
) -> None:
    weights = Weights()
    method = CoOp(n_ctx=2) + VPT(2) + GaussianAverage(mean, std)
    result = fit(method, tiny_clip_backbone, task, callbacks=[weights], **(QUICK | {"epochs": 4}))
    shares = torch.tensor([-0.5 * ((epoch - mean) / std) ** 2 for epoch in (1, 2, 3, 4)], dtype=torch.float64)
    for found, *seen in zip(result.predictor.prompt.parameters(), *weights.seen, strict=True):
        expected = (shares.softmax(0) @ torch.stack(seen).double().flatten(1)).view_as(found)
        assert found.isfinite().all()
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-8)


def test_an_average_goes_on_after_a_run_was_broken_off(
    tiny_clip_backbone: DualEncoder, task: ClassificationTask, tmp_path: Path
) -> None:
    method, settings = CoOp(n_ctx=2) + GaussianAverage(2.0, 1.5), QUICK | {"epochs": 5}
    whole = fit(method, tiny_clip_backbone, task, **settings)
    with pytest.raises(InterruptedError):
        fit(method, tiny_clip_backbone, task, tmp_path / "run", callbacks=[Interrupted()], **settings)
    assert bytes_of(fit(method, tiny_clip_backbone, task, tmp_path / "run", resume=True, **settings)) == bytes_of(whole)


def test_an_average_is_of_what_learns_alone(tiny_clip_backbone: DualEncoder, task: ClassificationTask) -> None:
    class Checked(Callback):
        def on_train_begin(self, run: Run) -> None:
            run.problem.module.sources[1].requires_grad_(False)  # type: ignore[union-attr,index]

    method = CoOp(n_ctx=2) + VPT(2) + GaussianAverage(2.0)
    start = method.build(tiny_clip_backbone, NAMES).prompt.sources[1].values
    found = fit(method, tiny_clip_backbone, task, callbacks=[Checked()], **QUICK).predictor.prompt.sources[1].values
    assert math.isclose((found - start).abs().max().item(), 0, abs_tol=0)


def test_class_features_of_an_average_are_its_own_whoever_looked_at_them_before(
    tiny_clip_backbone: DualEncoder, task: ClassificationTask, tmp_path: Path
) -> None:
    class Looking(Callback):
        def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
            run.problem.classifier.predict(task.images)  # type: ignore[attr-defined]

    method = CoOp(n_ctx=2) + GaussianAverage(1.0)
    result = fit(method, tiny_clip_backbone, task, tmp_path / "run", callbacks=[Looking()], **QUICK)
    saved = read_tensors(tmp_path / "run" / "prompt.safetensors")["class_features"]
    again = Classifier(tiny_clip_backbone, result.predictor.prompt, NAMES)
    torch.testing.assert_close(saved, again.class_features())


@pytest.mark.parametrize("part", ["knowledge-guided", "consistency", "aligned-gradient", "gaussian-average"])
def test_a_part_alone_learns_nothing(part: str, tiny_clip_backbone: DualEncoder, task: ClassificationTask) -> None:
    with pytest.raises(UserError, match=r"^\w+ learns nothing alone\. Join it to a method: CoOp\(\) \+ \.\.\.$"):
        fit(part, tiny_clip_backbone, task, **QUICK)


def test_a_text_for_each_image_is_held_to_the_frozen_one_without_a_warning(
    tiny_clip_backbone: DualEncoder, task: ClassificationTask
) -> None:
    draw = torch.Generator().manual_seed(3)
    own, written = torch.randn(2, 3, 4, generator=draw), torch.randn(3, 4, generator=draw)
    images, logits = torch.randn(2, 4, generator=draw), torch.randn(2, 3, generator=draw)
    outputs = Outputs(logits, None, images, own, Outputs(logits, None, images, written))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        terms = Consistency(text_weight=2.0).loss_terms(outputs)
        result = fit(CoCoOp() + Consistency(), tiny_clip_backbone, task, **(QUICK | {"epochs": 1}))
    expected = sum(abs(own[image] - written).sum() for image in range(2)) / own.numel()
    torch.testing.assert_close(terms["text"], 2.0 * expected)
    assert (terms["image"], terms["logits"]) == (0, 0)
    assert all(math.isfinite(row["loss"]) for row in result.history)


def test_two_parts_without_a_method_are_refused(tiny_clip_backbone: DualEncoder) -> None:
    with pytest.raises(UserError, match=r"^a combination needs two methods, one of which learns\."):
        (KnowledgeGuided() + GaussianAverage()).build(tiny_clip_backbone, NAMES)


@pytest.mark.parametrize("part", [KnowledgeGuided(), AlignedGradient(), GaussianAverage()], ids=str)
def test_a_part_beside_what_takes_no_steps_is_refused(
    part: Any, tiny_clip_backbone: DualEncoder, tiny_timm_backbone: DualEncoder, task: ClassificationTask
) -> None:
    for method, backbone in ((part + GDA(), tiny_clip_backbone), (NearestClassMean() + part, tiny_timm_backbone)):
        assert not method.is_trained
        with pytest.raises(UserError, match=r"^\w+ joins what is learned in steps, but \w+ takes none\. Join it to"):
            fit(method, backbone, task, **QUICK)
    assert (CoOp(n_ctx=2) + GDA() + part).is_trained


@pytest.mark.parametrize("average", [CoOp(n_ctx=2) + GaussianAverage(1.0), PromptSRC()], ids=["joined", "built in"])
def test_a_second_average_is_refused(average: Any, tiny_clip_backbone: DualEncoder) -> None:
    with pytest.raises(UserError, match=r"^\w+ and GaussianAverage both average the weights, .* Leave one out\.$"):
        (average + GaussianAverage(4.0)).build(tiny_clip_backbone, NAMES)


def test_two_gradient_rules_are_refused(tiny_clip_backbone: DualEncoder, task: ClassificationTask) -> None:
    with pytest.raises(UserError, match=r"^2 of the methods bring a gradient_rule of their own, but one can be used\."):
        fit(ProGrad(n_ctx=8) + AlignedGradient(), tiny_clip_backbone, task, **QUICK)


def test_two_teachers_that_differ_are_refused(tiny_clip_backbone: DualEncoder, task: ClassificationTask) -> None:
    with pytest.raises(UserError, match=r"^2 of the methods bring a teacher of their own, but one can be used\."):
        fit(CoOp(n_ctx=2) + KnowledgeGuided() + Consistency(), tiny_clip_backbone, task, **QUICK)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("clip-lora", {"rank": 0}, "rank is 0, but it must be a whole number from 1 to 16384"),
        ("clip-lora", {"rank": 1.5}, "rank is 1.5, but it must be a whole number from 1 to 16384"),
        ("clip-lora", {"alpha": 0.0}, "alpha is 0.0, but"),
        ("clip-lora", {"lora_dropout": 1.0}, "lora_dropout is 1.0, but"),
        ("clip-lora", {"lora_towers": "image"}, "no lora_towers named 'image'"),
        ("kgcoop", {"knowledge_weight": -1.0}, "knowledge_weight is -1.0, but"),
        ("prograd", {"strength": -0.5}, "strength is -0.5, but"),
        ("promptsrc", {"gpa_std": 0.0}, "gpa_std is 0.0, but"),
        ("promptsrc", {"text_weight": -2.0}, "text_weight is -2.0, but"),
        ("promptsrc", {"gpa_mean": 1e300}, r"gpa_mean is 1e\+300, but"),
        ("gaussian-average", {"gpa_std": 1e-200}, "gpa_std is 1e-200, but"),
        ("coop", {"losses": KnowledgeGuided()}, "losses is of type KnowledgeGuided, but"),
        ("coop", {"losses": [VPT()]}, "losses is of type list, but"),
        ("maple", {"depth": 0}, "depth is 0, but"),
        ("ivlp", {"visual_depth": 0}, "visual_depth is 0, but"),
        ("deep-text", {"text_depth": 2.5}, "text_depth is 2.5, but"),
        ("aligned-gradient", {"temperature": 0.0}, "temperature is 0.0, but"),
        ("gaussian-average", {"gpa_std": -1.0}, "gpa_std is -1.0, but"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        make_method(name, settings)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (MaPLe(depth=3), r"depth is 3, but the image tower of .* has 2 layers\. Use `depth=2` or less\."),
        (DeepText(text_depth=3), r"text_depth is 3, but the text tower of .* has 2 layers\. Use `text_depth=2` or"),
        (IVLP(visual_depth=9), r"visual_depth is 9, but the image tower of .* has 2 layers"),
        (PromptSRC(text_depth=9), r"text_depth is 9, but the text tower of .* has 2 layers"),
        (CoCoOp(class_specific=True), r"CoCoOp learns one context for all classes\. Leave out `class_specific`"),
        (ProGrad(n_ctx=3), r"n_ctx is 3, but the words 'a photo of a' are 4 tokens\. Use `n_ctx=4` or more\."),
        (MaPLe(n_ctx=99), r"n_ctx is 99, but the text tower of .* has 16 slots"),
    ],
    ids=str,
)
def test_what_the_model_cannot_hold_is_refused_in_one_line(
    method: Any, message: str, tiny_clip_backbone: DualEncoder
) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        method.build(tiny_clip_backbone, NAMES)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("method", [IVLP(), MaPLe(), PromptSRC(), CLIPLoRA()], ids=str)
def test_visual_parts_on_a_resnet_are_refused_in_one_line(method: Any, tiny_resnet_backbone: DualEncoder) -> None:
    with pytest.raises(UserError, match=r"\(ModifiedResNet\) has no image tokens that a prompt can join") as refusal:
        method.build(tiny_resnet_backbone, NAMES)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("method", [DeepText(), CLIPLoRA(lora_towers="text")], ids=str)
def test_what_learns_in_the_text_tower_alone_takes_a_resnet(method: Any, tiny_resnet_backbone: DualEncoder) -> None:
    assert not method.build(tiny_resnet_backbone, NAMES).prompt.has("vision")


def test_steps_by_the_shot_are_counted_in_steps(
    tiny_clip_backbone: DualEncoder, task: ClassificationTask, tmp_path: Path
) -> None:
    method: Method = CLIPLoRA()
    fit(method, tiny_clip_backbone, task, tmp_path / "run", steps_per_shot=3, batch_size=4, progress=False)
    recipe = read_json(tmp_path / "run" / "run.json")["recipe"]
    assert [recipe[name] for name in ("steps_per_shot", "n_steps", "epochs")] == [None, 6, None]
    assert task.complete(CLIPLoRA.recipe).n_steps == 1000


def test_steps_by_the_shot_and_another_length_exclude_each_other() -> None:
    with pytest.raises(
        UserError, match=r"^steps_per_shot is 5, but epochs is given too \(3\)\. Leave one of them out\.$"
    ):
        Recipe(epochs=3, steps_per_shot=5)
