from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmprompt.data.folder import ImageFolder
from mmprompt.data.splits import Dataset
from mmprompt.models.dual_encoder.interface import DualEncoder

COLOURS = {"red car": (200, 40, 40), "green tree": (40, 180, 60), "blue house": (50, 60, 200)}


def draw_pictures(root: Path, per_class: int = 8) -> Path:
    """A folder of noisy pictures of one colour a class."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            noise = rng.integers(-40, 40, (36, 36, 3)) + np.array(colour)
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.fixture(autouse=True)
def feature_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new default store for every test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MMPROMPT_CACHE", str(folder))
    monkeypatch.delenv("MMPROMPT_CACHE_LIMIT")
    return folder / "features"


@contextlib.contextmanager
def pictures_through(backbone: DualEncoder) -> Iterator[list[torch.Tensor]]:
    """The pictures that the image tower meets, without the copies that fill up a batch."""
    met: list[torch.Tensor] = []

    def look(_: object, inputs: tuple[torch.Tensor]) -> None:
        batch = list(inputs[0])
        while len(batch) > 1 and torch.equal(batch[-1], batch[-2]):
            batch.pop()
        met.extend(batch)

    hook = backbone.model.visual.conv1.register_forward_pre_hook(look)
    yield met
    hook.remove()


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("pictures") / "colours")


@pytest.fixture
def data(picture_folder: Path) -> Dataset:
    return ImageFolder(picture_folder, shots=4, seed=1, augment="none")
