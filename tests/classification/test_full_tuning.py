"""Full fine-tuning held to a plain one: the library's own model, its own parameters, torch's AdamW."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from transformers import CLIPTokenizer

import mmprompt as mp
from mmprompt.classification.methods import FullTuning
from mmprompt.classification.task import ClassificationTask
from mmprompt.data.splits import Dataset
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.sites import Site, Weight
from tests import small_models
from tests.classification.side_by_side import TOLERANCE, DoubleTask, Recorder, assert_close, batches_of
from tests.reference.plain_methods import Frozen, cross_entropy, unit

NAMES = ["cat", "red_car", "a dog house", "sad bird"]
TEMPLATE = "the photo of the {}."
N_EPOCHS, BATCH = 5, 4
IMAGE = {"open_clip": "visual.", "transformers": "vis"}


@pytest.fixture(scope="module")
def task() -> DoubleTask:
    images = list(np.random.default_rng(5).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8))
    return DoubleTask("random", NAMES, images, [0, 1, 2, 3] * 2, template=TEMPLATE, augment="none")


@pytest.fixture(scope="module", params=["open_clip", "transformers"])
def library(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(library: str, tiny_open_clip_folder: Path, tiny_hf_clip_folder: Path) -> Path:
    return tiny_open_clip_folder if library == "open_clip" else tiny_hf_clip_folder


@pytest.fixture(scope="module")
def backbone(folder: Path) -> FrozenDualEncoder:
    return load_backbone(str(folder), device="cpu", dtype="float64")  # type: ignore[return-value]


def named(clip: Frozen, library: str) -> list[str]:
    """The weights that learn, those of the text tower first, in the library's order."""
    own = [name for name, _ in clip.model.named_parameters() if "logit" not in name]
    in_image = [name.startswith(IMAGE[library]) for name in own]
    return [name for which in (False, True) for name, is_image in zip(own, in_image, strict=True) if is_image is which]


def logits_of(clip: Frozen, weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """By the library's own forward."""
    ids = torch.tensor([clip.row(clip.template.format(name))[0] for name in clip.names])
    if clip.is_open_clip:
        image, text, _ = functional_call(clip.model, weights, (images, ids))
    else:
        found = functional_call(clip.model, weights, (), {"input_ids": ids, "pixel_values": images})
        image, text = found.image_embeds, found.text_embeds
    return clip.logits(unit(image), unit(text))


def learn(clip: Frozen, names: list[str], start: list[Tensor], batches: list[tuple[Tensor, Tensor]]) -> Any:
    """The first loss and gradient, and the weights after each step."""
    leaves = [value.clone().requires_grad_() for value in start]
    optimizer = torch.optim.AdamW(leaves, lr=3e-5, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    losses, gradients, places = [], [], []
    for images, labels in batches:
        loss = cross_entropy(logits_of(clip, dict(zip(names, leaves, strict=True)), images), labels)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        gradients.append([leaf.grad.clone() for leaf in leaves if leaf.grad is not None])
        optimizer.step()
        schedule.step()
        places.append([leaf.detach().clone() for leaf in leaves])
    return losses, gradients, places


def joined(tensors: list[Tensor]) -> Tensor:
    """All numbers as one vector: alone, the gradient of a key's bias is rounding, for it changes no attention."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def test_loss_gradient_and_ten_steps_are_those_of_the_library_s_own_parameters(
    library: str, folder: Path, backbone: FrozenDualEncoder, task: DoubleTask
) -> None:
    ours = Recorder()
    mp.fit(FullTuning(), backbone, task, callbacks=[ours], batch_size=BATCH, n_steps=10, min_lr=0.0, progress=False)
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=small_models.CONTEXT)
    clip = Frozen(backbone.model, tokenizer, NAMES, TEMPLATE, 2, small_models.HEADS, length=small_models.CONTEXT)
    batches = batches_of(task, backbone, N_EPOCHS, BATCH)
    losses, gradients, places = learn(clip, named(clip, library), ours.start, batches)
    assert ours.terms["loss"] == pytest.approx(losses[0], rel=TOLERANCE)
    assert_close([joined(ours.gradients[0])], [joined(gradients[0])])
    assert len(ours.places) == len(places) == 10
    for one, expected in zip(ours.places, places, strict=True):
        assert_close([joined(one)], [joined(expected)], [joined(ours.start)])
    assert backbone.compute_fingerprint() == backbone.fingerprint


def test_before_the_first_step_it_is_the_frozen_model(
    tiny_siglip_backbone: DualEncoder, tiny_resnet_backbone: DualEncoder, pixels: Tensor
) -> None:
    for backbone in (tiny_siglip_backbone, tiny_resnet_backbone):
        images = backbone.normalize(pixels)
        frozen = mp.zero_shot(backbone, ["cat", "dog"])(images)
        torch.testing.assert_close(FullTuning().build(backbone, ["cat", "dog"])(images), frozen)


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_one_tower_alone_learns_and_the_other_is_computed_once(
    tower: str, tiny_clip_backbone: FrozenDualEncoder, data: Dataset
) -> None:
    method = FullTuning(tuned_towers=tower)  # type: ignore[arg-type]
    classifier = mp.fit(method, tiny_clip_backbone, data, epochs=1, batch_size=6, progress=False).predictor
    assert {site.tower for site in classifier.prompt.sites} == {tower}
    bare = mp.zero_shot(tiny_clip_backbone, data.class_names, data.template)
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    same_text = torch.equal(classifier.class_features(), bare.class_features())
    same_image = torch.equal(classifier.image_features(image), bare.image_features(image))
    assert (same_text, same_image) == (tower == "vision", tower == "text")


def test_an_image_tower_alone_learns_with_its_classifier(tiny_timm_backbone: DualEncoder, data: Dataset) -> None:
    method = FullTuning(tuned_towers="vision")
    prompt = mp.fit(method, tiny_timm_backbone, data, epochs=1, batch_size=6, progress=False).predictor.prompt
    assert prompt.has("vision")
    assert prompt.head is not None
    with pytest.raises(UserError, match=r"has no text tower\. Use `tuned_towers='vision'`"):
        FullTuning().build(tiny_timm_backbone, ["cat", "dog"])


def test_little_memory_changes_nothing_that_is_learned(
    tiny_open_clip_folder: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is computed again in the backward pass would be computed with the frozen weights."""
    found = []
    for limit in ("1GB", "0"):
        monkeypatch.setenv("MMPROMPT_MEMORY_LIMIT", limit)
        backbone = load_backbone(str(tiny_open_clip_folder), device="cpu")
        recorder = Recorder()
        task = ClassificationTask.of(data)
        mp.fit(FullTuning(), backbone, task, callbacks=[recorder], epochs=1, batch_size=6, progress=False)
        found.append(recorder.gradients[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_threads_see_with_their_own_weights_and_leave_the_frozen_ones(
    tiny_open_clip_folder: Path, pixels: Tensor
) -> None:
    backbone: Any = load_backbone(str(tiny_open_clip_folder), device="cpu")
    own = {Site("vision", part=name): value.detach() for name, value in backbone.weights_of("vision").items()}
    each = [{site: Weight(value * size) for site, value in own.items()} for size in (0.5, 2.0)] * 20
    expected = [backbone.encode_image(pixels, inserts) for inserts in each[:2]] * 20
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(partial(backbone.encode_image, pixels), each))
    for one, alone in zip(found, expected, strict=True):
        torch.testing.assert_close(one, alone)
    assert backbone.compute_fingerprint() == backbone.fingerprint


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [("ln_final.weight", (3,), r"is \[3\], but .* has \[32\]"), ("ln_nowhere.bias", (32,), "has no such weight")],
)
def test_a_weight_that_does_not_fit_is_refused(
    name: str, shape: tuple[int, ...], expected: str, tiny_clip_backbone: FrozenDualEncoder
) -> None:
    slots: Callable[..., Any] = tiny_clip_backbone.text_slots
    with pytest.raises(UserError, match=expected):
        tiny_clip_backbone.encode_text(slots([[5]]), {Site("text", part=name): Weight(torch.zeros(shape))})
