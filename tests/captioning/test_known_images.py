"""A captioner of drawn scenes says once that what it is shown is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from mmprompt.captioning.data import load_captions
from mmprompt.captioning.predictor import Captioner
from mmprompt.captioning.readers.captioner import FrozenCaptioner, KnownImages
from mmprompt.captioning.readers.load import load_captioner
from pretrain_tiny_captioner import known_images, save_known
from tests.small_captioners import small_captioner

WARNING = "unlike any that tiny was trained on: this captioner was trained on drawn scenes; for photographs: "


@pytest.fixture
def captioner() -> FrozenCaptioner:
    return load_captioner("tiny", device="cpu")


def noise(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (96, 96, 3))


def gradient(rng: np.random.Generator) -> np.ndarray:
    one, other = rng.integers(0, 256, (2, 3))
    return one + (other - one) * np.linspace(0, 1, 96)[:, None, None] * np.ones((1, 96, 1))


def blobs(rng: np.random.Generator) -> np.ndarray:
    coarse = np.kron(rng.integers(0, 256, (6, 6, 3)), np.ones((16, 16, 1)))
    return np.asarray(Image.fromarray(coarse.astype(np.uint8)).filter(ImageFilter.GaussianBlur(8)))


@pytest.mark.parametrize("make", [noise, gradient, blobs])
def test_what_is_no_drawn_scene_is_said_once(captioner, caplog, make):
    rng = np.random.default_rng(1)
    images = [Image.fromarray(make(rng).astype(np.uint8)) for _ in range(3)]
    steered = Captioner(captioner)
    assert steered.caption(images)[0].text
    assert [record.getMessage()[:28] for record in caplog.records] == ["3 of the first 3 images are "]
    assert WARNING in caplog.text
    steered.caption(images)
    assert len(caplog.records) == 1


def test_drawn_scenes_are_captioned_without_a_word(captioner, caplog):
    Captioner(captioner).caption([item.image for item in load_captions("openart-scenes").test[:60]])
    assert not caplog.records


def test_a_captioner_that_knows_nothing_of_its_images_says_nothing(caplog):
    Captioner(small_captioner()).caption([Image.new("RGB", (8, 8), "red")])
    assert not caplog.records


def test_distances_are_those_of_mahalanobis_and_a_file_keeps_them(tmp_path: Path):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 3, 4, generator=generator) @ torch.randn(4, 4, generator=generator)
    known = known_images(features, features[:50])
    pooled = features.mean(1).double().numpy()
    covariance = np.cov(pooled.T)
    inverse = np.linalg.inv(covariance + 0.05 * np.diag(covariance).mean() * np.eye(4))
    difference = pooled - pooled.mean(0)
    expected = np.sqrt(np.einsum("ni,ij,nj->n", difference, inverse, difference))
    assert known.distances(features).numpy() == pytest.approx(expected, rel=1e-4)
    assert known.limit.item() == pytest.approx(1.2 * expected[:50].max(), rel=1e-4)
    save_known(known, tmp_path / "known.safetensors")
    again = KnownImages.load(tmp_path / "known.safetensors")
    assert again.distances(features).numpy() == pytest.approx(expected, rel=1e-2)
