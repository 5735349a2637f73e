"""Models without keys and values that could be shared, and decoders that scale their logits: loss, gradient and tokens
are those of the library's own forward, a whole row for each answer."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from mmprompt.core.soft import PrefixTuning
from mmprompt.errors import UserError
from mmprompt.language.data import TextData, TextRow
from mmprompt.language.task import LanguageProblem, LanguageTask
from mmprompt.models.decoder.encoder_decoder import EncoderDecoderReader
from mmprompt.models.decoder.generation import generate, job_of
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.decoder.packing import Question
from mmprompt.models.decoder.reader import CausalReader
from mmprompt.models.decoder.whole_rows import WholeRowReader, WholeRows
from mmprompt.models.sites import Site, Vectors
from tests.language_models import family_tokenizer, frozen_model
from tests.reference import plain_language
from tests.small_models import randomise

TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, **TOKENS}
HEADS = SHAPE | {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
ROTARY = HEADS | {"max_position_embeddings": 64}
MAMBA = SHAPE | {"state_size": 4}
GEMMA = ROTARY | {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}
JAMBA = {"num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_conv": 2}
LLAMA4 = {"num_local_experts": 2, "attention_chunk_size": 8, "intermediate_size_mlp": 48, "no_rope_layers": [1, 0]}
LLAMA4 |= {"head_dim": 8, "interleave_moe_layer_step": 2}
RECURRENT = HEADS | {"lru_width": 32, "attention_window_size": 8, "block_types": ("recurrent", "attention")}
WHOLE: dict[str, Any] = {
    "Jamba": ROTARY | JAMBA | {"expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 4},
    "Lfm2": ROTARY | {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "Mamba": MAMBA,
    "Mamba2": MAMBA | {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
    "RecurrentGemma": RECURRENT,
    "Rwkv": SHAPE | {"attention_hidden_size": 32, "intermediate_size": 48, "context_length": 64},
}
SLOTTED: dict[str, Any] = {
    "Cohere": ROTARY | {"logit_scale": 0.5},
    "Cohere2": ROTARY | {"sliding_window": 8},
    "Granite": ROTARY | {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    "Llama4": ROTARY | LLAMA4,
}
KINDS = (*WHOLE, *SLOTTED, "T5Gemma")
QUESTIONS = [  # slots with three vectors among them, and answers
    Question((-1, -2, 5, 6, -3, 7), ((20, 21, 22), (20, 23), (24,))),
    Question((8, -1, 9, -2, -3), ((25,), (26, 27))),
]
JOBS = [(-1, -2, 5, 6, 7, 8, 9), (10, -3, 11), (12, 13, -1), (16, 17, -2, 18, 19, 20, 21)]


@cache
def model_of(kind: str) -> FrozenLanguageModel:
    tokenizer = family_tokenizer("gpt2")
    torch.manual_seed(0)
    if kind == "T5Gemma":
        config: Any = hf.T5GemmaConfig(encoder=GEMMA, decoder=GEMMA, vocab_size=len(tokenizer), **TOKENS)
        lm: Any = hf.T5GemmaForConditionalGeneration(config)
    else:
        config_class = getattr(hf, f"{kind}TextConfig" if kind == "Llama4" else f"{kind}Config")
        lm = getattr(hf, f"{kind}ForCausalLM")(config_class(vocab_size=len(tokenizer), **(WHOLE | SLOTTED)[kind]))
    randomise(lm, 1)
    lm.tie_weights()
    for name, parameter in lm.named_parameters():
        if parameter.ndim == 2 and "A_log" not in name:
            parameter.data *= 2.0
    # torch has no grouped product of experts in float64, and RWKV's products are in float32 always
    lm = lm.to(torch.float32 if kind == "Jamba" else torch.float64).eval().requires_grad_(False)
    return FrozenLanguageModel(kind, lm, tokenizer)


def soft_of(model: FrozenLanguageModel) -> Tensor:
    drawn = torch.randn(3, model.width, generator=torch.Generator().manual_seed(3))
    return (drawn * model.embedding_rms).to(model.dtype)


def reference(kind: str) -> dict[str, Any]:
    """What an encoder-decoder's answers begin with stands in the configuration of generation alone."""
    lm = model_of(kind).lm
    if kind == "T5Gemma":
        lm.generation_config.decoder_start_token_id = TOKENS["bos_token_id"]
    return {"lm": lm}


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_those_of_the_library_s_forward(kind: str) -> None:
    model = model_of(kind)
    soft = soft_of(model).requires_grad_()
    found = model.predict({Site("lm"): Vectors(soft)}, QUESTIONS).token_log_probs()
    (gradient,) = torch.autograd.grad(-found.mean(), soft)
    pairs = [(question.slots, question.answers) for question in QUESTIONS]
    expected = plain_language.token_log_probs(reference(kind)["lm"], pairs, soft=soft)
    (wanted,) = torch.autograd.grad(-expected.mean(), soft)
    tolerance = 1e-5 if model.dtype is torch.float32 else 1e-6
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())
    assert wanted.abs().max() > 1e-4, "the prompt is heard"


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_whole_rows_in_any_batch(kind: str) -> None:
    model = model_of(kind)
    soft, settings = soft_of(model), Generation(max_tokens=6)
    jobs = [job_of(model, {Site("lm"): Vectors(soft)}, slots) for slots in JOBS]
    lm = reference(kind)["lm"]
    expected = [tuple(plain_language.greedy(lm, slots, 6, 1, 1, soft=soft)) for slots in JOBS]
    assert len(set(expected)) > 2, "texts and prompts change what is said"
    assert generate(model, jobs, settings) == expected
    assert [generate(model, [job], settings)[0] for job in jobs] == expected


@pytest.mark.parametrize("kind", WHOLE)
def test_a_model_without_keys_and_values_says_so_once_and_takes_no_prefix(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of(kind)
    caplog.clear()  # where no test before this one has made the model
    with caplog.at_level(logging.WARNING, "mmprompt"):
        again = FrozenLanguageModel(kind, model.lm, model.tokenizer)
        again.predict({}, QUESTIONS[:0] or [Question((5,), ((6,),))])
    assert [record.getMessage() for record in caplog.records] == [
        f"{kind}, a {kind}ForCausalLM, does not give its own logits where it is read slot by slot, so each text is "
        "read whole, its prompt too: slower, and without prefixes."
    ]
    assert again.fingerprint == model.fingerprint
    assert isinstance(model.reader, WholeRowReader)
    assert model.kv_shape is None
    rows = (TextRow({"text": "a car"}, label="x"), TextRow({"text": "a dog"}, label="y"))
    task = LanguageTask(TextData("two", rows, (), rows, ("x", "y")), template="{text} {answer}")
    with pytest.raises(UserError, match=r"prefix|keys and values"):
        task.predictor(PrefixTuning(), model, 1)
    with pytest.raises(UserError, match=r"reads texts whole, which are not read again\. Train without recomputing"):
        model.check_recomputed()


@pytest.mark.parametrize("kind", SLOTTED)
def test_decoders_that_scale_their_logits_are_read_slot_by_slot(kind: str) -> None:
    model = model_of(kind)
    assert isinstance(model.reader, CausalReader)
    assert model.kv_shape == (2, 2, 8)
    hidden = torch.randn(2, 32, dtype=model.dtype)
    words = torch.tensor([7, 3])
    torch.testing.assert_close(model.reader.head_of(words, hidden), model.reader.head(hidden)[:, words])


def test_an_encoder_s_decoder_starts_as_generate_starts_it() -> None:
    reader = model_of("T5Gemma").reader
    assert isinstance(reader, EncoderDecoderReader)
    assert reader.start_id == 0


@pytest.mark.parametrize("kind", ["Mamba", "Rwkv"])
def test_beams_are_those_of_whole_rows(kind: str) -> None:
    """RWKV's own decoding confuses the rows of a batch."""
    model = model_of(kind)
    settings = Generation(max_tokens=4, n_beams=3)
    jobs = [job_of(model, {Site("lm"): Vectors(soft_of(model))}, slots) for slots in JOBS]
    assert isinstance(model.generator, WholeRows) is (kind == "Rwkv")
    found = generate(model, jobs, settings)
    for slots, tokens in zip(JOBS, found, strict=True):
        x = plain_language.embedded(model.lm, slots, soft_of(model))
        arguments = settings.arguments() | {"pad_token_id": 1, "eos_token_id": 1}
        ids = torch.zeros(1, x.shape[1], dtype=torch.int64)
        (own,) = WholeRows(model.lm).generate(input_ids=ids, start=x, **arguments)[:, x.shape[1] :].tolist()
        assert tokens == tuple(own[: own.index(1)] if 1 in own else own)


def test_where_the_library_s_own_generate_leaves_its_forward_rows_are_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of("Mamba")
    expected = generate(model, [job_of(model, {}, (5, 6, 7))], Generation(6))
    other = FrozenLanguageModel("Mamba", model.lm, model.tokenizer)
    own = type(model.lm).generate

    def wrong(self: Any, **given: Any) -> Any:
        out = own(self, **given)
        if given.get("output_logits"):
            out.logits = tuple(logits.roll(1, -1) for logits in out.logits)
        return out

    monkeypatch.setattr(type(model.lm), "generate", wrong)
    assert isinstance(other.generator, WholeRows)
    assert generate(other, [job_of(other, {}, (5, 6, 7))], Generation(6)) == expected


def test_training_moves_the_prompt_of_a_state_space_model_towards_the_answers() -> None:
    model = model_of("Mamba2")
    rows = tuple(TextRow({"text": f"a {word}"}, answer="red car") for word in ("dog", "cup"))
    task = LanguageTask(TextData("cars", rows, (), rows, ()), template="{soft*2} {text} {answer}")
    method = task.methods["prompt-tuning"](n_soft=2)  # type: ignore[call-arg]
    prompted = task.predictor(method, model, 1)
    problem = LanguageProblem(prompted, prompted.prompt, rows, objective="answer")
    optimizer = torch.optim.Adam(prompted.prompt.parameters(), 0.5)
    losses = []
    for _ in range(15):
        loss = problem.step([0, 1], 0).losses["answer"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize("kind", ["gpt_neo", "falcon"])
def test_buffers_of_one_size_are_refused_where_the_library_is_wrong_with_them(kind: str) -> None:
    if kind == "gpt_neo":
        model = frozen_model(kind)
    else:
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True}
        tokenizer = family_tokenizer("gpt2")
        lm = hf.FalconForCausalLM(hf.FalconConfig(vocab_size=len(tokenizer), **shape, **TOKENS))
        model = FrozenLanguageModel(kind, lm.eval().requires_grad_(False), tokenizer)
    with pytest.raises(UserError, match="is wrong with buffers of one size in this transformers"):
        generate(model, [job_of(model, {}, (5, 6))], Generation(3, static_cache=True))
    assert generate(model, [job_of(model, {}, (5, 6))], Generation(3, min_tokens=3))


def test_a_decoder_longer_than_its_encoder_generates_what_it_predicts() -> None:
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_decoder_layers": 3, "num_heads": 4}
    tokenizer = family_tokenizer("t5")
    lm = hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=len(tokenizer), decoder_start_token_id=1, eos_token_id=1, pad_token_id=1, **shape)
    )
    randomise(lm, 1)
    model = FrozenLanguageModel("t5", lm.double().eval().requires_grad_(False), tokenizer)
    slots = (5, 6, 7)
    expected = plain_language.greedy(model.lm, slots, 5, 1, 1, behind=(1,))
    assert generate(model, [job_of(model, {}, slots)], Generation(5)) == [tuple(expected)]
