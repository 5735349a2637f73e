from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def save_picture() -> Callable[..., Path]:
    """Writes a small picture whose colour follows from `shade`, and gives its path back."""

    def save(path: Path, shade: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (shade % 256, 40, 255 - shade % 256)).save(path)
        return path

    return save


@pytest.fixture
def class_folder(tmp_path: Path, save_picture: Callable[..., Path]) -> Callable[..., Path]:
    """Makes `tmp_path/pictures/CLASS/00.png ...` from `{class: number of pictures}`."""

    def make(counts: dict[str, int], below: str = "") -> Path:
        root = tmp_path / "pictures"
        for kind, (name, count) in enumerate(counts.items()):
            (root / below / name).mkdir(parents=True)
            for index in range(count):
                save_picture(root / below / name / f"{index:02d}.png", 50 * kind + index)
        return root

    return make
