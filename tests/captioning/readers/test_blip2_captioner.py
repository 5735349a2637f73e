"""What is BLIP-2's own; what it shares with the other large captioners is in test_multimodal_captioners.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import InstructBlipConfig, MT5Config

from mmprompt.captioning.readers.load import load_captioner
from mmprompt.captioning.readers.transformers_captioners import load_blip2
from mmprompt.errors import UserError
from mmprompt.models.frozen import LoadOptions
from tests import small_multimodal as small

CPU = LoadOptions(torch.device("cpu"), torch.float32)


def test_opt_takes_a_prompt_after_the_start_token_and_t5_in_its_encoder(tmp_path: Path) -> None:
    opt = load_blip2("opt", str(small.save_blip2_opt(tmp_path / "opt")), CPU).decoder
    t5 = load_blip2("t5", str(small.save_blip2_t5(tmp_path / "t5")), CPU).decoder
    assert (opt.slot, opt.start_ids, opt.end_id) == ("decoder", (small.BOS,), small.EOS)
    assert (t5.slot, t5.start_ids, t5.end_id) == ("encoder", (small.PAD,), small.EOS)
    assert opt.budget == 40 - 3 - 1  # positions, without queries and start


def test_image_features_are_the_projected_queries(tmp_path: Path, pixels: torch.Tensor) -> None:
    captioner = load_blip2("opt", str(small.save_blip2_opt(tmp_path)), CPU)
    model = captioner.model
    states = model.vision_model(pixels).last_hidden_state
    queries = model.qformer(query_embeds=model.query_tokens.expand(3, -1, -1), encoder_hidden_states=states)
    expected = model.language_projection(queries.last_hidden_state)
    assert torch.allclose(captioner.encode_image(pixels), expected, atol=1e-6)
    assert captioner.image_shape == (3, small.WIDTH)


def test_instructblip_is_refused_by_name(tmp_path: Path) -> None:
    InstructBlipConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a 'instructblip' model, but 'blip-2' was expected"):
        load_captioner(str(tmp_path), device="cpu")


def test_another_language_model_with_an_encoder_is_refused_by_name(tmp_path: Path) -> None:
    lm = MT5Config(d_model=small.WIDTH, d_kv=8, d_ff=8, num_layers=1, num_heads=4, vocab_size=small.VOCABULARY)
    small.save_blip2(tmp_path, lm, ends=True)
    with pytest.raises(UserError, match="language model of type 'mt5', but 't5' or a decoder-only one"):
        load_blip2("it", str(tmp_path), CPU)
