"""A causal language model read piece by piece gives what it gives as a whole; others are refused."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GPTJConfig, GPTJForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

from mmprompt.errors import UserError
from mmprompt.models.decoder.kv_cache import KVCache
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.decoder.packing import Question
from mmprompt.models.decoder.reader import CausalReader, embed_slots, window_of
from mmprompt.models.sites import LowRank, Site, Vectors
from tests.language_models import CAUSAL, OTHER_CAUSAL, family_model, family_tokenizer, frozen_model, tolerance_of

DECODERS = (*CAUSAL, *OTHER_CAUSAL)
NARROW = ("bloom", "gemma2", "gpt_neo", "mistral", "mpt")
IDS = torch.tensor([[5, 6, 7, 80, 260, 9, 10, 11], [12, 5, 14, 15, 16, 17, 18, 19]])


@pytest.fixture(params=DECODERS)
def model(request: pytest.FixtureRequest) -> FrozenLanguageModel:
    return frozen_model(request.param)


def test_pieces_of_any_length_give_the_logits_of_the_whole(model: FrozenLanguageModel) -> None:
    reader: Any = model.reader
    expected = model.lm(IDS).logits
    x, cache, found = model.embed(IDS), KVCache(), []
    for start, end in ((0, 3), (3, 4), (4, 8)):
        hidden, cache = reader.run(cache, x[:, start:end])
        found.append(reader.head(hidden))
    assert cache.n_read == 8
    tolerance = tolerance_of(model.name).value * expected.abs().max().item()
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=0, atol=tolerance)


def test_what_was_read_is_gone_on_from_more_than_once(model: FrozenLanguageModel) -> None:
    reader: Any = model.reader
    x = model.embed(IDS)
    _, cache = reader.run(KVCache(), x[:, :4])
    before = [part.clone() for pair in cache.own for part in pair]
    first, _ = reader.run(cache, x[:, 4:])
    again, _ = reader.run(cache, x[:, 4:])
    assert torch.equal(first, again)
    assert all(torch.equal(old, new) for old, new in zip(before, [p for pair in cache.own for p in pair], strict=True))


def test_a_model_says_what_it_takes(model: FrozenLanguageModel) -> None:
    n_kv = 2 if model.name in ("gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3") else 4
    assert model.kv_shape == (2, n_kv, 8)
    assert model.budget == (1024 if model.name == "bloom" else 48)
    assert model.width == (16 if model.name == "opt_narrow" else 32)
    assert isinstance(model.reader, CausalReader)
    assert model.reader.packs is (model.name not in NARROW)
    assert model.reader.takes_places is (model.name not in ("bloom", "mpt"))


def test_few_words_have_the_logits_that_all_have(model: FrozenLanguageModel) -> None:
    reader: Any = model.reader
    hidden, _ = reader.run(KVCache(), model.embed(IDS))
    words = torch.tensor([7, 3, 200])
    torch.testing.assert_close(reader.head_of(words, hidden), reader.head(hidden)[..., words], rtol=1e-12, atol=1e-12)


def test_few_words_have_the_logits_that_all_have_beside_a_term_at_the_head() -> None:
    model = frozen_model("llama")
    torch.manual_seed(1)
    term = LowRank(torch.randn(2, 32, dtype=torch.float64), torch.randn(model.vocabulary_size, 2, dtype=torch.float64))
    inserts, words = {Site("lm", part="lm_head"): term}, torch.tensor([7, 3, 200])
    question = [Question((5, 6), ((7,),))]
    few, every = model.predict(inserts, question, words).logits, model.predict(inserts, question).logits
    torch.testing.assert_close(few, every[:, words], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(few, model.predict({}, question, words).logits)


def test_a_head_with_a_bias_keeps_it() -> None:
    tokenizer = family_tokenizer("gpt2")
    torch.manual_seed(0)
    config = GPTJConfig(vocab_size=len(tokenizer), n_positions=48, n_embd=32, n_layer=2, n_head=4, rotary_dim=4)
    lm = GPTJForCausalLM(config).double().eval().requires_grad_(False)
    lm.lm_head.bias.normal_()
    lm.lm_head.weight.normal_()
    reader: Any = FrozenLanguageModel("gptj", lm, tokenizer).reader
    hidden, _ = reader.run(KVCache(), reader.embed(IDS))
    torch.testing.assert_close(reader.head(hidden), lm(IDS).logits, rtol=1e-9, atol=1e-9)
    words = torch.tensor([7, 3, 200])
    torch.testing.assert_close(reader.head_of(words, hidden), lm(IDS).logits[..., words], rtol=1e-9, atol=1e-9)


def refusal(lm: Any) -> str:
    with pytest.raises(UserError) as caught:
        FrozenLanguageModel("odd", lm.eval().requires_grad_(False), family_tokenizer("gpt2"))
    return str(caught.value)


def test_a_model_that_takes_embeddings_of_tokens_alone_is_refused() -> None:
    lm = family_model("llama", len(family_tokenizer("llama")))
    forward, table = lm.model.forward, lm.get_input_embeddings().weight

    @functools.wraps(forward)
    def only_tokens(*args: Any, inputs_embeds: torch.Tensor, **given: Any) -> Any:
        if torch.cdist(inputs_embeds[0], table).amin(1).max() > 0.1:
            raise RuntimeError("these are no tokens")
        return forward(*args, inputs_embeds=inputs_embeds, **given)

    lm.model.forward = only_tokens
    assert refusal(lm) == (
        "the language model, a LlamaForCausalLM, reads no vectors in place of tokens (these are no tokens). "
        "Use a model such as hf:gpt2, or of the OPT or Llama families."
    )


def test_a_model_that_looks_ahead_is_refused() -> None:
    lm = family_model("llama", len(family_tokenizer("llama")))
    forward = lm.model.forward

    @functools.wraps(forward)
    def both_ways(*args: Any, inputs_embeds: torch.Tensor, **given: Any) -> Any:
        return forward(*args, inputs_embeds=inputs_embeds + inputs_embeds.mean(1, keepdim=True), **given)

    lm.model.forward = both_ways
    assert refusal(lm).startswith("the language model, a LlamaForCausalLM, looks ahead, but a causal language model")


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
def test_texts_share_no_row_where_a_model_does_not_keep_them_apart(ignored: str) -> None:
    lm = family_model("llama", len(family_tokenizer("llama"))).double().eval().requires_grad_(False)
    forward = lm.model.forward

    @functools.wraps(forward)
    def without(*args: Any, **given: Any) -> Any:
        return forward(*args, **given | {ignored: None})

    lm.model.forward = without
    reader = FrozenLanguageModel("deaf", lm, family_tokenizer("llama")).reader
    assert isinstance(reader, CausalReader)
    assert reader.packs is False


def test_blocks_of_different_shapes_take_vectors_among_the_tokens_alone() -> None:
    lm = family_model("llama", len(family_tokenizer("llama")))
    other = lm.config.__class__(**(lm.config.to_dict() | {"num_key_value_heads": 4}))
    other._attn_implementation = lm.config._attn_implementation
    lm.model.layers[1].self_attn = LlamaAttention(other, 1)
    model = FrozenLanguageModel("uneven", lm.double().eval().requires_grad_(False), family_tokenizer("llama"))
    assert model.kv_shape is None
    questions = [Question((-1, 5), ((6, 7), (8,)))]
    soft = {Site("lm"): Vectors(model.embed(torch.tensor([9])))}
    found = model.predict(soft, questions).token_log_probs()
    words = model.predict({}, [Question((9, 5), ((6, 7), (8,)))]).token_log_probs()
    torch.testing.assert_close(found, words, rtol=1e-10, atol=1e-10)
    with pytest.raises(UserError, match="keys and values were given, but the decoder of uneven takes none"):
        model.predict({Site("lm.kv", 0): Vectors(torch.ones(2, 32))}, questions)


def test_vectors_stand_where_slots_are_negative() -> None:
    embedded, soft = torch.zeros(2, 3, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    slots = torch.tensor([[5, -2, 6], [-1, 7, -2]])
    shared = embed_slots(embedded, slots, Vectors(soft))
    assert shared.tolist() == [[[0, 0], [3, 4], [0, 0]], [[1, 2], [0, 0], [3, 4]]]
    of_each = embed_slots(embedded, slots, Vectors(torch.stack([soft, 10 * soft]), "sample"))
    assert of_each.tolist() == [[[0, 0], [3, 4], [0, 0]], [[10, 20], [0, 0], [30, 40]]]
    assert not bool(embedded.any()), "what was given is left as it was"
    assert embed_slots(embedded.bfloat16(), slots, Vectors(soft)).dtype == torch.bfloat16
    with pytest.raises(AssertionError, match="no vectors"):
        embed_slots(embedded, slots, None)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, float("inf")),
        ({"sliding_window": None}, float("inf")),
        ({"sliding_window": 16}, 16),
        ({"sliding_window": 16, "layer_types": ["full_attention", "full_attention"]}, float("inf")),
        ({"sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]}, 16),
        ({"attention_chunk_size": 8, "layer_types": ["chunked_attention", "full_attention"]}, 8),
        ({"layer_types": ["linear_attention", "full_attention"]}, 0),
        ({"window_size": 32, "attention_layers": ["global", "local"]}, 32),
        ({"window_size": 32, "attention_layers": ["global", "global"]}, float("inf")),
    ],
)
def test_the_window_is_that_of_the_narrowest_blocks(settings: dict[str, Any], expected: float) -> None:
    assert window_of(SimpleNamespace(**settings)) == expected
