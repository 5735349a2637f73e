"""Reading the slots that are there alone, where a decoder is built like a Llama."""

from __future__ import annotations

import pytest
import torch

from mmprompt.models.decoder.packing import Question
from mmprompt.models.decoder.reader import CausalReader, can_read_flat
from mmprompt.models.sites import LM_INPUT, Bottleneck, LowRank, Site, Vectors
from tests.language_models import frozen_model

LIKE_LLAMA, OTHERS = ("llama", "qwen2", "qwen3"), ("gpt2", "opt", "gpt_neox", "bloom", "mistral")
QUESTIONS = [
    Question((-1, -2, 5, 6, 7), ((8, 9), (8, 10, 11))),
    Question((-1, -2, 5), ((12,),)),
    Question((-1, -2, 13, 14, 15, 16, 17), ((18, 19, 20, 21),)),
]
TEXTS = [Question((5, 6, 7), ((8, 9), (8, 10, 11))), Question((13,), ((12,),))]


def reader_of(kind: str, dtype: torch.dtype) -> CausalReader:
    reader = frozen_model(kind, dtype).reader
    assert isinstance(reader, CausalReader)
    return reader


@pytest.mark.parametrize("kind", LIKE_LLAMA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_families_like_llama_are_read_so(kind: str, dtype: torch.dtype) -> None:
    assert reader_of(kind, dtype)._reads_flat


@pytest.mark.parametrize("kind", OTHERS)
def test_others_are_read_by_their_own_forward(kind: str) -> None:
    assert not reader_of(kind, torch.float64)._reads_flat


@pytest.mark.parametrize("kind", LIKE_LLAMA)
@pytest.mark.parametrize("row_slots", [1, 256])
def test_it_gives_what_the_model_s_own_forward_gives(
    kind: str, row_slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmprompt.models.decoder.packing.ROW_SLOTS", row_slots)
    model = frozen_model(kind)
    values = torch.randn(2, model.width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for is_flat in (True, False):
        vectors = values.clone().requires_grad_()
        if not is_flat:
            model.reader._reads_flat = False
        scores = model.predict({LM_INPUT: Vectors(vectors)}, QUESTIONS).token_log_probs()
        found.append((scores.detach(), torch.autograd.grad(scores.sum(), vectors)[0]))
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-7)  # its norms are single precision


def test_a_model_whose_blocks_are_listened_to_is_not_read_so() -> None:
    model = frozen_model("llama")
    assert can_read_flat(model.lm.base_model)
    numbers = [torch.randn(*size, dtype=torch.float64) for size in ((4, 32), (4,), (32, 4), (32,))]
    network = Bottleneck(*(part.requires_grad_() for part in numbers))
    inserts = {Site("lm", part="model.layers.0"): network}
    with model.changed(inserts):
        assert not can_read_flat(model.lm.base_model)
    assert can_read_flat(model.lm.base_model)
    question = [Question((5, 6), ((7,),))]
    scores = model.predict(inserts, question).token_log_probs()
    scores.sum().backward()
    assert all(part.grad is not None and part.grad.any() for part in numbers)
    assert not torch.allclose(scores, model.predict({}, question).token_log_probs())


def test_terms_beside_layers_are_read_flat_too() -> None:
    model = frozen_model("llama")
    torch.manual_seed(1)
    term = LowRank(torch.randn(2, 32, dtype=torch.float64), torch.randn(32, 2, dtype=torch.float64))
    inserts = {Site("lm", part="model.layers.1.self_attn.q_proj"): term}
    found = []
    for is_flat in (True, False):
        model.reader._reads_flat = is_flat
        found.append(model.predict(inserts, TEXTS).token_log_probs())
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "part",
    ["layers.0", "layers.1.self_attn", "layers.0.mlp", "layers.0.input_layernorm", "layers.1.self_attn.q_norm", "norm"],
)
def test_a_network_behind_any_part_gives_what_the_model_s_own_forward_gives(part: str) -> None:
    model = frozen_model("qwen3", torch.float32)
    torch.manual_seed(1)
    width = 8 if part.endswith("q_norm") else 32
    network = Bottleneck(torch.randn(4, width), torch.randn(4), torch.randn(width, 4), torch.randn(width))
    inserts = {Site("lm", part=f"model.{part}"): network}
    found = model.predict(inserts, TEXTS).token_log_probs()
    model.reader._reads_flat = False
    torch.testing.assert_close(found, model.predict(inserts, TEXTS).token_log_probs(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, model.predict({}, TEXTS).token_log_probs())


def test_where_a_norm_rounds_otherwise_the_own_forward_is_kept() -> None:
    assert not reader_of("gemma", torch.float32)._reads_flat  # whose norms multiply by one more than the weight
