"""Small frozen models for every test: built once, saved as their libraries save them, loaded by our own loader."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any hub client is imported: tests never reach for the network
os.environ["MMPROMPT_CACHE_LIMIT"] = "0"  # no features on disk, but where a test asks for them

from pathlib import Path

import hypothesis
import pytest
import torch

from mmprompt import progress
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.dual_encoder.load import load_backbone
from tests import small_models

pytest_plugins = [
    f"tests.fixtures.{name}"
    for name in (
        "coloured_pictures",
        "plain_pictures",
        "blank_figures",
        "kept_features",
        "cli_run",
        "written_run",
        "served_prompts",
        "browsers",
        "local_hub",
    )
]

os.fsync = lambda descriptor: None  # a disk takes milliseconds for each, and no test pulls the plug
progress.PATIENCE_S = float("inf")  # how busy the machine is must not be in what a command says
# a busy machine is no failure; and the same examples in every run, as all randomness here
hypothesis.settings.register_profile("seeded", deadline=None, derandomize=True)
hypothesis.settings.load_profile("seeded")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with whole programs, which take longest: pages, scripts, examples."""
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.parent != here)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def tiny_open_clip_folder(model_folder: Path) -> Path:
    return small_models.save_open_clip(model_folder / "open_clip")


@pytest.fixture(scope="session")
def tiny_resnet_folder(model_folder: Path) -> Path:
    return small_models.save_open_clip_resnet(model_folder / "resnet")


@pytest.fixture(scope="session")
def tiny_hf_clip_folder(model_folder: Path) -> Path:
    return small_models.save_hf_clip(model_folder / "hf_clip")


@pytest.fixture(scope="session")
def tiny_siglip_folder(model_folder: Path) -> Path:
    return small_models.save_siglip(model_folder / "siglip")


@pytest.fixture(scope="session")
def tiny_timm_folder(model_folder: Path) -> Path:
    return small_models.save_timm(model_folder / "timm")


@pytest.fixture(scope="session")
def tiny_clip_backbone(tiny_open_clip_folder: Path) -> DualEncoder:
    """Width 32, two layers, images of 32 pixels, 16 text slots: open_clip's form of CLIP."""
    return load_backbone(str(tiny_open_clip_folder), device="cpu")


@pytest.fixture(scope="session")
def tiny_hf_clip_backbone(tiny_hf_clip_folder: Path) -> DualEncoder:
    return load_backbone(str(tiny_hf_clip_folder), device="cpu")


@pytest.fixture(scope="session")
def tiny_siglip_backbone(tiny_siglip_folder: Path) -> DualEncoder:
    """Bidirectional text with attended padding, no class token, attention pool, logit bias."""
    return load_backbone(str(tiny_siglip_folder), device="cpu")


@pytest.fixture(scope="session")
def tiny_resnet_backbone(tiny_resnet_folder: Path) -> DualEncoder:
    """No image tokens: text prompts only."""
    return load_backbone(str(tiny_resnet_folder), device="cpu")


@pytest.fixture(scope="session")
def tiny_timm_backbone(tiny_timm_folder: Path) -> DualEncoder:
    """A plain vision transformer alone: no text tower."""
    return load_backbone(str(tiny_timm_folder), device="cpu")


@pytest.fixture
def pixels() -> torch.Tensor:
    """Three images [3, 3, 32, 32] in 0..1."""
    return torch.rand(3, 3, small_models.IMAGE, small_models.IMAGE, generator=torch.Generator().manual_seed(7))
