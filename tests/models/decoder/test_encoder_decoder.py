"""A model with an encoder: prompt and text stand in the encoder, answers and learned keys and values in the decoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmprompt.errors import UserError
from mmprompt.models.decoder.encoder_decoder import EncoderDecoderReader, rows_for
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.decoder.packing import Question
from mmprompt.models.sites import Site, Vectors
from tests.language_models import family_model, family_tokenizer, frozen_model

KINDS = ("bart", "t5", "t5_wide")


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> FrozenLanguageModel:
    return frozen_model(request.param)


def test_texts_end_as_the_tokenizer_ends_them(model: FrozenLanguageModel) -> None:
    assert isinstance(model.reader, EncoderDecoderReader)
    ids = model.tokenizer("a red car")["input_ids"]
    states, is_there = model.reader.encode(None, [ids[:-1], ids[:-3]])
    assert is_there.tolist() == [[True] * len(ids), [True] * (len(ids) - 2) + [False] * 2]
    expected = model.lm.get_encoder()(torch.tensor([ids])).last_hidden_state
    torch.testing.assert_close(states[:1], expected, rtol=1e-6, atol=1e-6)


def test_a_question_is_what_the_model_itself_answers(model: FrozenLanguageModel) -> None:
    ids = model.tokenizer("a red car")["input_ids"]
    answer = (20, 21, 22)
    expected = model.lm(torch.tensor([ids]), labels=torch.tensor([answer])).loss
    predicted = model.predict({}, [Question(tuple(ids[:-1]), (answer,))])
    torch.testing.assert_close(-predicted.token_log_probs().mean(), expected, rtol=1e-6, atol=1e-6)


def test_a_model_says_what_its_decoder_takes(model: FrozenLanguageModel) -> None:
    assert model.kv_shape == (2, 4, 12 if model.name == "t5_wide" else 8)
    assert model.budget == (48 if model.name == "bart" else 1024)
    assert model.start_ids == ((0,) if model.name == "bart" else ())


def test_vectors_of_each_text_may_be_of_another_number(model: FrozenLanguageModel) -> None:
    reader: Any = model.reader
    softs = [Vectors(model.embed(torch.tensor([30, 31]))), None, Vectors(model.embed(torch.tensor([32])))]
    found, is_there = reader.encode(softs, [(-2, 5, -1), (6,), (-1, 7, 8, 9)])
    expected, is_there_too = reader.encode(None, [(31, 5, 30), (6,), (32, 7, 8, 9)])
    assert torch.equal(is_there, is_there_too)
    torch.testing.assert_close(found[is_there], expected[is_there], rtol=1e-6, atol=1e-6)


def test_keys_and_values_of_words_are_those_that_the_decoder_makes_of_them(model: FrozenLanguageModel) -> None:
    """With the encoder reading the same words; the decoder then goes on behind them."""
    reader: Any = model.reader
    words = torch.tensor([40, 41, 42])
    own = reader.keys_values_of(model.embed(words))
    states = model.lm.get_encoder()(words[None]).last_hidden_state
    decoder = model.lm.get_decoder()
    cache = decoder(words[None], encoder_hidden_states=states, use_cache=True).past_key_values.self_attention_cache
    for layer, (key, value) in zip(cache.layers, own, strict=True):
        torch.testing.assert_close(key, layer.keys, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(value, layer.values, rtol=1e-6, atol=1e-6)


def test_learned_keys_and_values_are_those_of_each_question_or_of_all() -> None:
    owner = torch.tensor([0, 0, 1])
    one = ((torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4)),)
    two = ((torch.randn(2, 2, 3, 4), torch.randn(2, 2, 3, 4)),)
    assert torch.equal(rows_for(one, owner)[0][1], one[0][1].expand(3, -1, -1, -1))
    assert torch.equal(rows_for(two, owner)[0][0], two[0][0][owner])
    assert rows_for((), owner) == ()


def test_what_an_encoder_reads_is_not_read_again(model: FrozenLanguageModel) -> None:
    with pytest.raises(
        UserError, match=r"reads texts in its encoder, which are not read again\. Train without recomputing\."
    ):
        model.predict({}, [Question((5,), ((6,),))], is_recomputed=True)


def test_vectors_of_another_width_are_refused(model: FrozenLanguageModel) -> None:
    question = [Question((-1, 5), ((6,),))]
    with pytest.raises(UserError, match=f"the vectors of lm.input are 16 wide, but {model.name} takes 32"):
        model.predict({Site("lm"): Vectors(torch.ones(1, 16))}, question)
    n_kv = 96 if model.name == "t5_wide" else 64
    with pytest.raises(UserError, match=rf"the vectors of lm.kv\[0\] are 16 wide, but {model.name} takes {n_kv}"):
        model.predict({Site("lm.kv", layer): Vectors(torch.ones(1, 16)) for layer in range(2)}, question)


def test_a_decoder_without_a_start_token_is_refused() -> None:
    lm = family_model("t5", len(family_tokenizer("t5"))).eval().requires_grad_(False)
    lm.config.decoder_start_token_id = lm.generation_config.decoder_start_token_id = None
    lm.generation_config.bos_token_id = None
    with pytest.raises(UserError) as caught:
        FrozenLanguageModel("t5", lm, family_tokenizer("t5"))
    assert str(caught.value) == (
        "the T5ForConditionalGeneration names no start token of its decoder. "
        "Write decoder_start_token_id into its generation_config.json."
    )
    lm.config.decoder_start_token_id = 0
    assert FrozenLanguageModel("t5", lm, family_tokenizer("t5")).reader.start_id == 0
