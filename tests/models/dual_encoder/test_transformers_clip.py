"""transformers' CLIP and SigLIP as backbones: text features, tokens, transforms, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, SiglipModel

from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.dual_encoder.load import load_backbone
from tests import small_models

TEXTS = ["a photo of a cat", "the blue house!", "dog"]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
@pytest.mark.parametrize("family", ["clip", "clip_of_old", "siglip"])
def test_text_features_are_transformers_own(family: str, dtype: str, tolerance: float, model_folder: Path) -> None:
    place = model_folder / f"text_hf_{family}"
    if family == "siglip":
        folder, kind = small_models.save_siglip(place), SiglipModel
    else:
        old = {"eos_token_id": 2} if family == "clip_of_old" else {}
        folder, kind = small_models.save_hf_clip(place, **old), CLIPModel
    backbone = load_backbone(f"hf:{folder}", device="cpu", dtype=dtype)
    found = backbone.encode_text(backbone.text_slots([backbone.tokenize(text) for text in TEXTS]))
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        raw = kind.from_pretrained(folder, dtype=backbone.dtype).get_text_features(**tokens).pooler_output
    expected = raw / raw.norm(dim=-1, keepdim=True)
    assert (found - expected).norm() / expected.norm() < tolerance


def test_siglip_slots_are_full_length_and_the_library_s_ids(
    tiny_siglip_backbone: DualEncoder, tiny_siglip_folder: Path
) -> None:
    expected = AutoTokenizer.from_pretrained(tiny_siglip_folder)(TEXTS, padding="max_length", return_tensors="pt")
    slots = tiny_siglip_backbone.text_slots([tiny_siglip_backbone.tokenize(text) for text in TEXTS])
    assert torch.equal(slots.token_ids, expected["input_ids"])
    assert slots.token_ids.shape[1] == tiny_siglip_backbone.context_length


def test_siglip_scale_and_bias_are_read(tiny_siglip_backbone: DualEncoder) -> None:
    assert tiny_siglip_backbone.logit_scale == pytest.approx(np.exp(2.0))
    assert tiny_siglip_backbone.logit_bias == -3.0


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_pictures_go_through_the_model_s_own_processor(
    family: str, tiny_hf_clip_folder: Path, tiny_siglip_folder: Path
) -> None:
    folder = {"clip": tiny_hf_clip_folder, "siglip": tiny_siglip_folder}[family]
    backbone = load_backbone(str(folder), device="cpu")
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    expected = AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(backbone.preprocess(picture), expected)


@pytest.mark.parametrize("family", ["clip", "siglip", "open_clip"])
def test_normalize_does_to_pixels_what_preprocess_does_to_a_picture_of_that_size(
    family: str, request: pytest.FixtureRequest
) -> None:
    fixture = {"clip": "tiny_hf_clip", "siglip": "tiny_siglip", "open_clip": "tiny_clip"}[family]
    backbone: DualEncoder = request.getfixturevalue(f"{fixture}_backbone")
    noise = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pixels = torch.from_numpy(noise).permute(2, 0, 1).float() / 255
    found = backbone.normalize(pixels[None])[0]
    assert torch.allclose(found, backbone.preprocess(Image.fromarray(noise)), atol=1e-5)


def test_the_transform_is_said_in_one_line(tiny_siglip_backbone: DualEncoder) -> None:
    assert tiny_siglip_backbone.transform == (
        "resize height 32 width 32, bicubic, mean 0.5, 0.5, 0.5; std 0.5, 0.5, 0.5"
    )


def test_another_kind_of_model_is_refused_by_name(tiny_siglip_folder: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_siglip_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "siglip2"}))
    with pytest.raises(UserError, match="is a 'siglip2' model, but 'clip' or 'siglip' was expected"):
        load_backbone(str(tmp_path), device="cpu")


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    folder = small_models.save_hf_clip(tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights of its model, 'text_projection.weight' among them"):
        load_backbone(str(folder), device="cpu")


def test_a_tokenizer_with_another_end_token_is_refused(tmp_path: Path) -> None:
    folder = small_models.save_hf_clip(tmp_path / "clip", eos_token_id=5)
    with pytest.raises(UserError, match="reads its features at token 5, but its tokenizer ends texts with 572"):
        load_backbone(str(folder), device="cpu")


def test_siglip_without_a_pooling_head_is_refused(tmp_path: Path) -> None:
    folder = small_models.save_siglip(tmp_path / "siglip", vision_use_head=False)
    with pytest.raises(UserError, match="no SiglipMultiheadAttentionPoolingHead"):
        load_backbone(str(folder), device="cpu")
