"""The captioner `photo`: what ships of it, on an image tower that is built on the spot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import BertModel

from measure_photo_focus import NORM, Scenes, StandIns
from mmprompt import fit, load_backbone
from mmprompt.captioning.data import CaptionItem
from mmprompt.captioning.mapper import reopened, save_mapped
from mmprompt.captioning.predictor import Captioner
from mmprompt.captioning.readers.load import SHIPPED, load_captioner
from mmprompt.captioning.task import FocusTask
from mmprompt.cli.main import main
from mmprompt.core.soft import LoRA
from mmprompt.errors import UserError
from mmprompt.models.packaged import get_photo
from mmprompt.models.sites import LM_INPUT, Vectors
from tests.models.dual_encoder.test_photo import bert, pin_image_tower, pin_text_tower, weights  # noqa: F401 - fixtures

MOST_BYTES = 8_000_000


@pytest.fixture(scope="module")
def captioner(
    weights: dict[str, torch.Tensor],  # noqa: F811 - the fixture
    bert: BertModel,  # noqa: F811 - the fixture
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("photo")
    with pytest.MonkeyPatch.context() as patch:
        image_tower = pin_image_tower(weights, folder, patch)
        get_photo("photo", [image_tower, pin_text_tower(bert, folder, patch)])
        yield load_captioner("photo", device="cpu")


def test_it_is_refused_until_the_image_tower_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MMPROMPT_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="mmprompt backbones get photo"):
        load_captioner("photo")


def test_what_ships_is_small() -> None:
    assert sum(path.stat().st_size for path in SHIPPED["photo"].iterdir()) < MOST_BYTES


def test_it_reads_the_image_towers_own_features_and_writes_words(captioner: Any) -> None:
    assert captioner.image_shape == (1, 1280)
    features = captioner.encode_image(torch.rand(2, 3, 224, 224))
    assert features.norm(dim=-1).flatten().tolist() == pytest.approx([1, 1], abs=1e-5)
    said = Captioner(captioner).caption([Image.new("RGB", (300, 200), colour) for colour in ("red", "blue")])
    assert all(caption.text.replace(" ", "").isascii() and len(caption.text.split()) > 2 for caption in said)


def test_a_prompt_steers_it(captioner: Any) -> None:
    vectors = captioner.decoder.embed(torch.tensor(captioner.tokenizer.encode("two dogs")))
    assert captioner.tokenizer.decode(captioner.tokenizer.encode("Two dogs")) == "two dogs"
    kv_cache = captioner.open(torch.zeros(1, 1, 1280))
    plain = captioner.prefill(kv_cache, {}).logits
    steered = captioner.prefill(kv_cache, {LM_INPUT: Vectors(vectors)}).logits
    assert not torch.allclose(plain, steered)


def test_a_mapper_that_learned_on_is_a_folder_of_its_own(captioner: Any, tmp_path: Path) -> None:
    own: Any = reopened(captioner)
    own.decoder.mapper[3].bias.data += 1
    save_mapped(own, tmp_path / "own")
    again: Any = load_captioner(tmp_path / "own", device="cpu")
    assert torch.equal(again.decoder.mapper[3].bias, own.decoder.mapper[3].bias)
    assert not torch.equal(captioner.decoder.mapper[3].bias, own.decoder.mapper[3].bias)


def test_photographs_are_captioned_from_the_command_line(
    captioner: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 48), "green").save(tmp_path / "a.jpg")
    assert main(["caption", "write", str(tmp_path / "a.jpg"), "--backbone", "photo", "--device", "cpu"]) == 0
    said = Captioner(captioner).caption([Image.open(tmp_path / "a.jpg")])[0].text
    assert said in capsys.readouterr().out


def test_a_focus_is_learned_from_what_captions_name(captioner: Any) -> None:
    said = {"1": "a red dog on a sofa", "2": "a cat and a train"}
    items = [CaptionItem(Path(name), name, {"": (text,), "objects": (text,)}, "train") for name, text in said.items()]
    scenes = Scenes("captions", Path(), tuple(items))
    stand_ins = StandIns(scenes, load_backbone("photo", device="cpu"), captioner)
    assert torch.allclose(stand_ins.of([Path("1"), Path("2")]).norm(dim=-1), torch.tensor(NORM))
    result = fit(LoRA(), captioner, FocusTask(scenes, "objects", stand_ins), n_steps=1, progress=False)
    assert len(result.history) == 1
