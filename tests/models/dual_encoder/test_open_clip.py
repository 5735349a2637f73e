"""open_clip's models as backbones: text features, tokens, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from transformers import BertConfig, RobertaConfig

from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.sites import Site, Vectors
from tests import small_models

TEXTS = ["a photo of a cat", "the blue house!", "dog", ""]
SIGLIP_TEXT = {"pool_type": "last", "no_causal_mask": True, "proj_bias": True}
NORMS_AND_SCALES = {
    "qk_norm": True,
    "scale_heads": True,
    "scale_attn_inner": True,
    "scale_attn": True,
    "scale_fc": True,
}
FORMS: dict[str, dict[str, Any]] = {
    "flat": {},
    "flat_quick_gelu": {"quick_gelu": True},
    "flat_linear_projection": {"text": {"proj_type": "linear", "proj_bias": True}},
    "custom": {"custom_text": True},
    "custom_eos": {
        "custom_text": True,
        "text": {"pool_type": "eos", "eos_id": len(small_models.clip_vocabulary()) - 1},
    },
    "custom_without_projection": {"custom_text": True, "text": {"proj_type": "none"}, "embed_dim": small_models.WIDTH},
    "custom_blocks": {"text": {"block_type": "custom"}},
    "norms_and_scales": {"text": NORMS_AND_SCALES},
    "bidirectional_eos": {"custom_text": True, "text": {"no_causal_mask": True}},
    "causal_last": {"text": {"pool_type": "last"}},
    "siglip": {
        "custom_text": True,
        "text": SIGLIP_TEXT,
        "save_tokenizer": small_models.save_siglip_tokenizer,
        "init_logit_bias": -3.0,
    },
}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
@pytest.mark.parametrize("form", FORMS)
def test_text_features_are_open_clip_s_own(form: str, dtype: str, tolerance: float, model_folder: Path) -> None:
    folder = small_models.save_open_clip(model_folder / f"text_{form}", **FORMS[form])
    backbone = load_backbone(str(folder), device="cpu", dtype=dtype)
    found = backbone.encode_text(backbone.text_slots([backbone.tokenize(text) for text in TEXTS]))
    model = open_clip.create_model_from_pretrained(f"local-dir:{folder}", return_transform=False).to(backbone.dtype)
    with torch.no_grad():
        tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
        expected = model.eval().encode_text(tokens, normalize=True)
    assert (found - expected).norm() / expected.norm() < tolerance
    assert backbone.embed_dim == expected.shape[1]


def test_slots_are_the_ids_of_open_clip(tiny_clip_backbone: DualEncoder, tiny_open_clip_folder: Path) -> None:
    expected = open_clip.get_tokenizer(f"local-dir:{tiny_open_clip_folder}")(TEXTS)
    slots = tiny_clip_backbone.text_slots([tiny_clip_backbone.tokenize(text) for text in TEXTS])
    assert torch.equal(slots.token_ids, expected[:, : slots.token_ids.shape[1]])
    assert slots.lengths.tolist() == [7, 6, 3, 2]


def test_context_slots_are_indexed_and_hold_no_word(tiny_clip_backbone: DualEncoder) -> None:
    slots = tiny_clip_backbone.text_slots([[-1, 320, -2], [-1]])
    start, end = tiny_clip_backbone.vocabulary_size - 2, tiny_clip_backbone.vocabulary_size - 1
    assert slots.ctx_index.tolist() == [[-1, 0, -1, 1, -1], [-1, 0, -1, -1, -1]]
    assert slots.token_ids.tolist() == [[start, end, 320, end, end], [start, end, end, end, end]]
    assert slots.lengths.tolist() == [5, 3]


def test_image_size_transform_and_scale_come_from_the_model(tiny_clip_backbone: DualEncoder) -> None:
    assert tiny_clip_backbone.image_size == 32
    assert tiny_clip_backbone.logit_scale == pytest.approx(1 / 0.07)
    assert tiny_clip_backbone.logit_bias == 0.0
    assert tiny_clip_backbone.transform == (
        "shorter side to 32, centre crop, bicubic, mean 0.48, 0.46, 0.41; std 0.27, 0.26, 0.28"
    )


def test_published_quick_gelu_weights_get_quick_gelu(
    monkeypatch: pytest.MonkeyPatch, model_folder: Path, tmp_path: Path
) -> None:
    """The names ViT-B-16/openai and the like mean an architecture with GELU and weights for QuickGELU."""
    folder = small_models.save_open_clip(
        tmp_path / "model", text={"hf_tokenizer_name": None}, save_tokenizer=lambda _: 49408
    )
    architecture = tmp_path / "tiny-arch.json"
    architecture.write_text(json.dumps(json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]))
    open_clip.add_model_config(architecture)
    published = {"quick": {"file": str(folder / "open_clip_model.safetensors"), "quick_gelu": True}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-arch", published)
    backbone = load_backbone("open_clip:tiny-arch/quick", device="cpu")
    kinds = {type(block.mlp.gelu).__name__ for block in backbone.model.transformer.resblocks}
    assert kinds == {"QuickGELU"}


def test_attention_pooler_is_run_by_open_clip_and_takes_no_prompts(tmp_path: Path, pixels: torch.Tensor) -> None:
    vision = {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 4}
    backbone = load_backbone(str(small_models.save_open_clip(tmp_path / "pooler", vision)), device="cpu")
    images = backbone.normalize(pixels)
    assert torch.equal(backbone.encode_image(images), backbone.model.encode_image(images, normalize=True))
    assert (backbone.vision_width, backbone.vision_layers) == (None, 0)
    with pytest.raises(UserError, match=r"this image tower \(AttentionalPooler\) has no image tokens"):
        backbone.encode_image(images, {Site("vision"): Vectors(torch.zeros(2, small_models.WIDTH))})


def test_scaled_cosine_attention_is_no_known_block(tmp_path: Path) -> None:
    """Its scores are others than those of the views."""
    form = {"scaled_cosine_attn": True}
    backbone = load_backbone(str(small_models.save_open_clip(tmp_path / "cosine", form, form)), device="cpu")
    assert backbone.text.block_views == ()
    assert backbone.unprompted_part == "CustomResidualAttentionBlock"


@pytest.mark.parametrize(
    ("form", "part"),
    [
        ({"text": {"embed_cls": True}, "custom_text": True}, "TextTransformer"),
    ],
)
def test_unknown_text_towers_are_refused_by_name(form: dict[str, Any], part: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"the model has a {part}"):
        load_backbone(str(small_models.save_open_clip(tmp_path / "strange", **form)), device="cpu")


@pytest.mark.parametrize(
    "text", [{"pool_type": "first"}, {"pool_type": "eos", "eos_id": 2}], ids=["first slot", "another end token"]
)
def test_features_read_elsewhere_than_at_the_end_token_are_refused(text: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"reads its features by '{text['pool_type']}'"):
        load_backbone(str(small_models.save_open_clip(tmp_path / "pooling", text=text)), device="cpu")


def test_a_model_folder_cannot_ask_for_remote_code(tmp_path: Path) -> None:
    text = {"tokenizer_kwargs": {"trust_remote_code": True}}
    folder = small_models.save_open_clip(tmp_path / "hostile", text=text)
    witness = tmp_path / "ran"
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(witness)!r}).touch()\nclass Evil: pass\n")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="contains custom code"):
        load_backbone(str(folder), device="cpu")
    assert not witness.exists()


def test_settings_of_a_text_tower_that_are_null_are_none(tmp_path: Path) -> None:
    folder = small_models.save_open_clip(tmp_path / "null")
    settings = json.loads((folder / "open_clip_config.json").read_text())
    settings["model_cfg"]["text_cfg"] |= {"hf_model_name": None, "hf_proj_type": None}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    assert load_backbone(str(folder), device="cpu").embed_dim == small_models.EMBED


@pytest.mark.parametrize("config", [BertConfig, RobertaConfig])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
def test_a_bert_s_features_are_open_clip_s_own(
    config: type, dtype: str, tolerance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_models.save_bert(tmp_path / "model", config, max_position_embeddings=40)
    backbone = load_backbone(str(folder), device="cpu", dtype=dtype)
    found = backbone.encode_text(backbone.text_slots([backbone.tokenize(text) for text in TEXTS]))
    monkeypatch.chdir(folder)  # where open_clip looks for the text tower's configuration
    model = open_clip.create_model_from_pretrained(f"local-dir:{folder}", return_transform=False).to(backbone.dtype)
    with torch.no_grad():
        expected = model.eval().encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS), normalize=True)
    assert (found - expected).norm() / expected.norm() < tolerance
    assert len(backbone.text.block_views) == small_models.LAYERS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooler": "cls_pooler"}, "has a ClsPooler, but a MeanPooler was expected"),
        ({"is_decoder": True}, "has a BertModel, but a BertModel, RobertaModel or XLMRobertaModel"),
        ({"pad_token_id": 2}, "masks token 2, but its tokenizer pads with 1"),
    ],
)
def test_a_bert_of_another_kind_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = small_models.save_bert(tmp_path / "model", **settings)
    with pytest.raises(UserError, match=message):
        load_backbone(str(folder), device="cpu")
