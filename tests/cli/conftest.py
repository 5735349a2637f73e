"""One quick run on a small model and pictures of plain colours, trained once through the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmprompt.cli.main import main

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 200)}


def write_pictures(folder: Path, names: dict[str, tuple[int, int, int]], n: int = 6) -> Path:
    """A folder of class folders with `n` noisy plain pictures each."""
    rng = np.random.default_rng(3)
    for name, colour in names.items():
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = np.clip(np.array(colour) + rng.normal(0, 20, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("own") / "colours", COLOURS)


@pytest.fixture(scope="session")
def train_words(tiny_open_clip_folder: Path, pictures: Path) -> Callable[..., list[str]]:
    """The words of a quick training call into a folder, with more options behind."""

    def words(out: Path, *more: str) -> list[str]:
        quick = ["--n-ctx", "2", "--shots", "2", "--epochs", "3", "--device", "cpu"]
        place = ["--data", str(pictures), "--backbone", str(tiny_open_clip_folder), "--out", str(out)]
        return ["train", *place, *quick, *more]

    return words


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, train_words: Callable[..., list[str]]) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "colours"
    assert main(train_words(folder)) == 0
    return folder
