"""2SFS held to a plain one: the library's own model, its norms, then a classifier, by torch's optimiser and cosine."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmprompt as mp
from mmprompt.classification.methods import CLIPLoRA, CoCoOp, CoOp, GaussianAverage, PromptSRC, TwoStage
from mmprompt.core.heads import TextStarted
from mmprompt.data.images import read_image
from mmprompt.data.splits import Dataset
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.training.callbacks import Callback
from mmprompt.training.problem import Run
from mmprompt.training.recipe import Recipe
from tests.classification.side_by_side import TOLERANCE, InDouble, assert_close

RECIPE = Recipe(lr=0.01, weight_decay=0.0, n_steps=10, epochs=None, augment="none", batch_size=1000)


@pytest.fixture(scope="module")
def exact(tiny_hf_clip_folder: Path) -> FrozenDualEncoder:
    return load_backbone(str(tiny_hf_clip_folder), device="cpu", dtype="float64")


def unit(found: Any) -> Tensor:
    return F.normalize(getattr(found, "pooler_output", found), dim=-1)


def plain_training(backbone: FrozenDualEncoder, data: Dataset) -> tuple[list[float], Tensor]:
    """Six steps of all layer norms, four of a classifier that starts from the text; every batch is all images.

    It gives the losses and the classifier.
    """
    model: Any = copy.deepcopy(backbone.model)
    words = [data.template.format(name) for name in data.class_names]
    slots = backbone.text_slots([backbone.tokenize(text) for text in words])
    images = torch.stack([backbone.preprocess(read_image(item.path)) for item in data.train]).double()
    labels = torch.tensor([item.label for item in data.train])
    norms = [one for module in model.modules() if isinstance(module, nn.LayerNorm) for one in module.parameters()]
    losses = []

    def learn(parameters: list[nn.Parameter], n_steps: int, classifier: nn.Parameter | None) -> None:
        optimizer = torch.optim.AdamW([one.requires_grad_() for one in parameters], lr=0.01, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps, eta_min=1e-6)
        for _ in range(n_steps):
            classes = model.get_text_features(input_ids=slots.token_ids) if classifier is None else classifier
            logits = backbone.logit_scale * unit(model.get_image_features(pixel_values=images)) @ unit(classes).T
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())

    learn(norms, 6, None)
    model.requires_grad_(False)
    start = nn.Parameter(unit(model.get_text_features(input_ids=slots.token_ids)).detach())
    learn([start], 4, start)
    return losses, start.detach()


def test_both_stages_lose_and_learn_what_a_plain_training_does(exact: FrozenDualEncoder, data: Dataset) -> None:
    result = mp.fit(TwoStage(), exact, InDouble.of(data), recipe=RECIPE, progress=False)
    found, (losses, classifier) = [record["loss"] for record in result.history], plain_training(exact, data)
    assert found == pytest.approx(losses, rel=TOLERANCE)
    assert len(set(found)) == 10
    assert_close([result.predictor.prompt.head.weight], [classifier])
    assert exact.compute_fingerprint() == exact.fingerprint


class Watch(Callback):
    """What is as it was at the end of each epoch: the norms, and the classifier."""

    def __init__(self) -> None:
        self.sums: list[tuple[float, float]] = []

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        prompt = run.problem.classifier.prompt  # type: ignore[attr-defined]
        norms = sum(float(one.abs().sum()) for source in prompt.sources for one in source.parameters())
        self.sums.append((norms, float(prompt.head.weight.abs().sum())))


class Start(Callback):
    """The classifier before its first step."""

    start: Tensor | None = None

    def on_epoch_begin(self, run: Run, epoch: int) -> None:
        head = run.problem.classifier.prompt.head  # type: ignore[attr-defined]
        if self.start is None and head.is_learned.any():
            self.start = head.weight.detach().clone()


def test_only_norms_learn_in_the_first_stage_and_only_the_classifier_in_the_second(
    tiny_clip_backbone: FrozenDualEncoder, data: Dataset
) -> None:
    watch = Watch()
    mp.fit(TwoStage(), tiny_clip_backbone, data, recipe=RECIPE, callbacks=[watch], progress=False)
    norms, classifier = zip(*watch.sums, strict=True)
    assert len(set(norms[:6])) == 6
    assert len(set(norms[5:])) == 1
    assert set(classifier[:5]) == {0.0}  # the second stage starts after the sixth step
    assert len(set(classifier[5:])) == 5


def test_the_classifier_starts_from_the_text_without_dropout(
    tiny_clip_backbone: FrozenDualEncoder, data: Dataset
) -> None:
    method = TwoStage() + CLIPLoRA(lora_dropout=0.9)
    watch = Start()
    found = mp.fit(method, tiny_clip_backbone, data, recipe=RECIPE, callbacks=[watch], progress=False).predictor
    torch.testing.assert_close(watch.start, found.class_features())


def test_another_share_moves_the_second_stage(tiny_clip_backbone: FrozenDualEncoder, data: Dataset) -> None:
    watch = Watch()
    settings = RECIPE.given | {"restart_after": 0.3}
    mp.fit(TwoStage(), tiny_clip_backbone, data, callbacks=[watch], progress=False, **settings)
    assert [norms for norms, _ in watch.sums[2:]] == [watch.sums[2][0]] * 8


def test_new_class_names_are_told_apart_by_their_text_and_learned_ones_by_the_classifier(
    tiny_clip_backbone: FrozenDualEncoder, data: Dataset, tmp_path: Path
) -> None:
    classifier = mp.fit(TwoStage(), tiny_clip_backbone, data, tmp_path / "run", RECIPE, progress=False).predictor
    head = classifier.prompt.head
    assert isinstance(head, TextStarted)
    images = tiny_clip_backbone.normalize(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    mixed = classifier.with_class_names(["a fish", data.class_names[1]])
    logits, features = mixed(images), classifier.image_features(images)
    torch.testing.assert_close(logits[:, 1], classifier(images)[:, 1])
    torch.testing.assert_close(logits[:, 0], tiny_clip_backbone.logit_scale * features @ mixed.class_features()[0])
    mp.save(mixed, tmp_path / "mixed")
    torch.testing.assert_close(mp.load(tmp_path / "mixed", tiny_clip_backbone)(images), logits)
    assert classifier.class_names == data.class_names


def test_towers_without_layer_norms_are_refused_with_what_to_use(tiny_resnet_backbone: FrozenDualEncoder) -> None:
    with pytest.raises(UserError, match=r"\(ModifiedResNet\).* Use `norm_towers='text'`, or a backbone"):
        TwoStage().build(tiny_resnet_backbone, ["cat", "dog"])
    prompt = TwoStage(norm_towers="text").build(tiny_resnet_backbone, ["cat", "dog"]).prompt
    assert not prompt.has("vision")


def test_its_recipe_has_to_lead(exact: FrozenDualEncoder) -> None:
    with pytest.raises(UserError, match="Name it first, as in two-stage\\+coop"):
        (CoOp(n_ctx=2) + TwoStage()).build(exact, ["cat", "dog"])
    assert (TwoStage() + CoOp(n_ctx=2)).build(exact, ["cat", "dog"]).prompt.has("text")


@pytest.mark.parametrize("average", [GaussianAverage(), PromptSRC()], ids=str)
def test_an_average_over_both_stages_is_refused(average: Any, exact: FrozenDualEncoder) -> None:
    with pytest.raises(UserError, match=r"^two-stage learns one thing after the other, .* Leave out \w+\.$"):
        (TwoStage() + average).build(exact, ["cat", "dog"])


def test_a_text_that_is_another_for_each_image_is_refused(exact: FrozenDualEncoder) -> None:
    with pytest.raises(UserError, match="this head needs one text"):
        (TwoStage() + CoCoOp()).build(exact, ["cat", "dog"])
