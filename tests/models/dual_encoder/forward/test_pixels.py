"""Pixels added to the image, held to the libraries' own towers on images that were changed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmprompt.classification.methods import PaddingPrompt, PatchPrompt
from mmprompt.core.learned import Given
from mmprompt.core.sources import PixelFrame, PixelPatch
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.sites import PixelTerm, Site
from tests import small_models
from tests.models.dual_encoder.forward.test_vision import library_features, relative_error

PIXELS = Site("vision", part="pixels")
SIZE = small_models.IMAGE
CLASS_NAMES = ["cat", "dog", "bird"]


def save_without_tokens(folder: Path) -> Path:
    return small_models.save_open_clip(folder, {"timm_model_name": "test_efficientnet", "timm_pool": "avg"})


SAVES = {
    "open_clip": small_models.save_open_clip,
    "hf_clip": small_models.save_hf_clip,
    "siglip": small_models.save_siglip,
    "resnet": small_models.save_open_clip_resnet,
    "efficientnet": save_without_tokens,
}


@pytest.fixture(scope="module", params=list(SAVES))
def backbone(request: pytest.FixtureRequest, model_folder: Path) -> FrozenDualEncoder:
    folder = SAVES[request.param](model_folder / f"pixels_{request.param}")
    return load_backbone(str(folder), device="cpu", dtype="float64")


def drawn(source: PixelFrame | PixelPatch) -> PixelFrame | PixelPatch:
    generator = torch.Generator().manual_seed(3)
    for parameter in source.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return source


def framed_plainly(images: Tensor, frame: PixelFrame) -> Tensor:
    """The four parts of the frame added one after the other."""
    width, changed = frame.width, images.clone()
    changed[:, :, :width] += frame.top
    changed[:, :, -width:] += frame.bottom
    changed[:, :, width:-width, :width] += frame.left
    changed[:, :, width:-width, -width:] += frame.right
    return changed


def cross_entropy(backbone: FrozenDualEncoder, features: Tensor) -> Tensor:
    classes = backbone.encode_text(backbone.text_slots([backbone.tokenize(name) for name in CLASS_NAMES]))
    logits = backbone.logit_scale * features @ classes.T
    return torch.nn.functional.cross_entropy(logits, torch.arange(len(features)) % len(CLASS_NAMES))


@pytest.mark.parametrize("make", [lambda: PixelFrame(SIZE, 5), lambda: PixelPatch(SIZE, 7)], ids=["frame", "patch"])
def test_loss_and_gradient_are_those_of_images_changed_by_hand(backbone: FrozenDualEncoder, pixels: Tensor, make):
    source, images = drawn(make()), backbone.normalize(pixels).double()
    found = cross_entropy(backbone, backbone.encode_image(images, source(Given())))
    if isinstance(source, PixelFrame):
        changed = framed_plainly(images, source)
    else:
        changed = images.clone()
        changed[:, :, :7, :7] += source.values
    expected = cross_entropy(backbone, library_features(backbone, changed))
    leaves = list(source.parameters())
    pairs = zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True)
    assert relative_error(found, expected) < 1e-10
    assert max(relative_error(gradient, plain) for gradient, plain in pairs) < 1e-8
    assert relative_error(found, cross_entropy(backbone, backbone.encode_image(images))) > 1e-4
    assert backbone.compute_fingerprint() == backbone.fingerprint


def test_a_random_patch_moves_in_training_and_stands_in_the_middle_outside_of_it() -> None:
    source = drawn(PixelPatch(SIZE, 8, is_random=True))
    torch.manual_seed(0)
    places = set()
    for _ in range(20):
        (term,) = source(Given()).values()
        (rows,), (columns,) = (term.values[0].any(axis).nonzero(as_tuple=True) for axis in (1, 0))
        assert torch.equal(term.values[:, rows[0] : rows[0] + 8, columns[0] : columns[0] + 8], source.values)
        assert int((term.values != 0).sum()) == 3 * 8 * 8
        places.add((int(rows[0]), int(columns[0])))
    assert len(places) > 10
    (term,) = source.eval()(Given()).values()
    assert torch.equal(term.values[:, 12:20, 12:20], source.values)
    assert int((term.values != 0).sum()) == 3 * 8 * 8


def test_the_published_frame_of_a_224_pixel_image_has_69840_numbers() -> None:
    assert sum(parameter.numel() for parameter in PixelFrame(224, 30).parameters()) == 69_840


def test_features_with_pixels_are_never_those_of_the_cache(tiny_resnet_backbone: FrozenDualEncoder) -> None:
    classifier = PaddingPrompt().build(tiny_resnet_backbone, CLASS_NAMES)
    assert classifier.prompt.has("vision")
    assert [tuple(part.shape) for part in classifier.parameters()] == [(3, 4, 32)] * 2 + [(3, 24, 4)] * 2


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (PaddingPrompt(pad_size=16), r"pad_size is 16, but .* takes images of 32 pixels\. Use 15 or less"),
        (PatchPrompt(patch_size=33), r"patch_size is 33, but .* takes images of 32 pixels\. Use 32 or less"),
    ],
)
def test_pixels_that_the_image_has_no_room_for_are_refused(tiny_clip_backbone, method, message) -> None:
    with pytest.raises(UserError, match=message):
        method.build(tiny_clip_backbone, CLASS_NAMES)


def test_pixels_of_another_size_are_refused(tiny_clip_backbone: FrozenDualEncoder, pixels: Tensor) -> None:
    with pytest.raises(UserError, match=r"added to the image is \[\[3, 16, 16\]\], but .* takes one of \[3, 32, 32\]"):
        tiny_clip_backbone.encode_image(pixels, {PIXELS: PixelTerm(torch.zeros(3, 16, 16))})
