from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tvf

from mmprompt.data import transforms
from mmprompt.data.transforms import augment_augmix, augment_coop, to_tensor


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))


def test_the_result_is_a_square_of_floats_from_zero_to_one(picture: Image.Image) -> None:
    result = augment_coop(picture, 32, seed=1, epoch=0, index=0)
    assert (result.shape, result.dtype) == ((3, 32, 32), torch.float32)
    assert result.min() >= 0
    assert 0.5 < result.max() <= 1


def test_augmentation_is_the_same_in_any_order(picture: Image.Image) -> None:
    triples = [(seed, epoch, index) for seed in (1, 2) for epoch in (0, 1) for index in (0, 1, 2)]
    forth = {triple: augment_coop(picture, 16, *triple) for triple in triples}
    torch.manual_seed(7)
    back = {triple: augment_coop(picture, 16, *triple) for triple in reversed(triples)}
    assert all(torch.equal(forth[triple], back[triple]) for triple in triples)


def test_seed_epoch_and_index_each_change_the_crop(picture: Image.Image) -> None:
    results = [augment_coop(picture, 16, *triple) for triple in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (3, 2, 1)]]
    assert all(not torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])


def test_global_random_state_is_neither_read_nor_changed(picture: Image.Image) -> None:
    before = torch.random.get_rng_state()
    first = augment_coop(picture, 16, 1, 1, 1)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(first, augment_coop(picture, 16, 1, 1, 1))


def test_crops_cover_the_papers_range_of_areas_and_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = []
    crop = Image.Image.crop

    def spy(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
        boxes.append(box)
        return crop(image, box)

    monkeypatch.setattr(Image.Image, "crop", spy)
    for index in range(400):
        augment_coop(Image.new("RGB", (200, 200)), 8, 1, 0, index)
    widths = np.array([right - left for left, _, right, _ in boxes])
    heights = np.array([bottom - top for _, top, _, bottom in boxes])
    areas = widths * heights / 200**2
    assert 0.07 < areas.min() < 0.12
    assert 0.9 < areas.max() <= 1
    assert 0.72 < (widths / heights).min() < 0.8
    assert 1.25 < (widths / heights).max() < 1.37
    torch.manual_seed(0)
    drawn = [RandomResizedCrop.get_params(torch.zeros(3, 200, 200), [0.08, 1], [3 / 4, 4 / 3]) for _ in range(400)]
    assert abs(areas.mean() - np.mean([h * w / 200**2 for _, _, h, w in drawn])) < 0.04


def test_half_of_the_pictures_are_mirrored() -> None:
    ramp = Image.linear_gradient("L").rotate(90).convert("RGB")  # dark left or dark right
    rising = [
        bool(result[0, 0, -1] > result[0, 0, 0]) for result in (augment_coop(ramp, 8, 1, 0, i) for i in range(400))
    ]
    assert 160 < sum(rising) < 240


def test_crop_and_resize_are_those_of_torchvision(picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "_crop_box", lambda width, height, rng: (10, 5, 70, 50))
    expected = tvf.to_tensor(tvf.resized_crop(picture, 5, 10, 45, 60, [24, 24], tvf.InterpolationMode.BICUBIC))
    results = [augment_coop(picture, 24, 1, 0, index) for index in range(8)]
    assert all(torch.equal(result, expected) or torch.equal(result, expected.flip(2)) for result in results)
    assert any(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_pictures_too_thin_for_any_crop_are_cropped_in_the_middle(size: tuple[int, int]) -> None:
    assert augment_coop(Image.new("RGB", size, "white"), 8, 1, 0, 0).min() == 1


def test_augmix_is_drawn_from_its_arguments_alone_and_stays_in_range() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))
    views = [augment_augmix(image, 32, 1, view, 0) for view in range(50)]
    assert torch.equal(views[7], augment_augmix(image, 32, 1, 7, 0))
    assert all(view.shape == (3, 32, 32) and view.min() >= 0 and view.max() <= 1 for view in views)
    assert len({view.numpy().tobytes() for view in views}) == 50


def test_augmix_of_copies_that_are_not_changed_is_the_crop(
    picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    crop = to_tensor(transforms._crop_and_mirror(picture, 32, random.Random("augmix 1 3 0")))
    changed = augment_augmix(picture, 32, 1, 3, 0)
    assert 0 < (changed - crop).abs().mean() < 0.2
    monkeypatch.setattr(transforms, "_changed", lambda image, rng: image)
    torch.testing.assert_close(augment_augmix(picture, 32, 1, 3, 0), crop)


def test_augmix_changes_a_copy_a_little_and_in_nine_ways(picture: Image.Image) -> None:
    square, drawn = picture.resize((64, 64)), random.Random(0)
    changed = {transforms._changed(square, drawn).tobytes() for _ in range(300)}
    assert {ImageOps.autocontrast(square).tobytes(), ImageOps.equalize(square).tobytes()} <= changed
    assert {square.rotate(angle, Image.Resampling.BILINEAR).tobytes() for angle in (-2, -1, 1, 2)} <= changed
    assert square.rotate(3, Image.Resampling.BILINEAR).tobytes() not in changed
    assert {ImageOps.solarize(square, 256 - step).tobytes() for step in range(2, 26)} & changed
    assert ImageOps.posterize(square, 4).tobytes() in changed
    moved = square.transform((64, 64), Image.Transform.AFFINE, (1, 0, 1, 0, 1, 0), Image.Resampling.BILINEAR)
    assert moved.tobytes() in changed
