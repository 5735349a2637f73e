"""Generation with vectors of a prompt: held to the best token taken again and again from whole rows, and to the model's
own `generate`."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import StaticCache

from mmprompt.errors import UserError
from mmprompt.models.decoder.generation import BATCH, Job, decoder_inputs, generate, job_of
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.sites import Site, Vectors
from tests.language_models import CAUSAL, ENCODED, OTHER_CAUSAL, WINDOW, frozen_model
from tests.reference import plain_language

DECODERS = (*CAUSAL, *OTHER_CAUSAL)
KINDS = (*DECODERS, *ENCODED, "t5_wide")
SIX = Generation(max_tokens=6)


@cache
def model_of(kind: str) -> FrozenLanguageModel:
    return frozen_model(kind)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vectors_of(model: FrozenLanguageModel, n_soft: int, n_kv: int, seed: int) -> dict[str, Any]:
    """`soft` and `learned` for the reference; none where the number is 0."""
    assert model.kv_shape is not None
    n_blocks, n_heads, width = model.kv_shape
    found: dict[str, Any] = {"soft": drawn(n_soft, model.width, seed=seed).to(model.dtype)} if n_soft else {}
    if n_kv:
        kv_width = 2 * n_heads * width
        found["learned"] = [drawn(n_kv, kv_width, seed=seed + n).to(model.dtype) for n in range(n_blocks)]
    return found


def as_sites(given: dict[str, Any]) -> dict[Site, Vectors]:
    sites = {Site("lm"): Vectors(given["soft"])} if "soft" in given else {}
    return sites | {Site("lm.kv", layer): Vectors(values) for layer, values in enumerate(given.get("learned", []))}


def expected_of(
    model: FrozenLanguageModel, slots: tuple[int, ...], given: dict[str, Any], settings: Generation = SIX
) -> tuple[int, ...]:
    behind = (1,) if model.name.startswith("t5") or model.name == "bart" else ()
    more = {"kv_shape": model.kv_shape, "behind": behind} | given
    return tuple(plain_language.greedy(model.lm, slots, settings.max_tokens, model.end_id, settings.min_tokens, **more))


MIXED = [  # slots, number of vectors among them, number of keys and values
    ((-1, -2, 5, 6, 7, 8, 9), 2, 0),
    ((10, 11), 0, 0),
    ((12, -3, 13, -1, -2, -1, 14, 15), 3, 0),
    ((16, 17, 18, 19), 0, 3),
    ((-1, 20, 21, 22, 23, 24, 25), 1, 2),
    ((-1,), 1, 0),
]


@pytest.mark.parametrize("kind", KINDS)
def test_different_prompts_and_lengths_in_a_batch_give_what_each_gives_alone(kind: str) -> None:
    model = model_of(kind)
    given = [vectors_of(model, n_soft, n_kv, 7 * n) for n, (_, n_soft, n_kv) in enumerate(MIXED)]
    jobs = [job_of(model, as_sites(some), slots) for (slots, _, _), some in zip(MIXED, given, strict=True)]
    expected = [expected_of(model, slots, some) for (slots, _, _), some in zip(MIXED, given, strict=True)]
    assert len(set(expected)) > 3, "texts and prompts change what is said"
    assert generate(model, jobs, SIX) == expected
    assert [generate(model, [job], SIX)[0] for job in jobs] == expected


@pytest.mark.parametrize("kind", DECODERS)
def test_a_prompt_that_was_read_before_gives_the_same(kind: str) -> None:
    model = model_of(kind)
    prompts = [((-1, 40, -2), vectors_of(model, 2, 0, 3)), ((-1, -2, -3, 41, 42), vectors_of(model, 3, 2, 5))]
    texts = [(30, 31, 32, 33), (34,), (35, 36)]
    jobs, expected = [], []
    for start, given in prompts:
        cache = model.read_shared(as_sites(given), start)
        jobs += [Job(cache, text) for text in texts]
        expected += [expected_of(model, start + text, given) for text in texts]
    assert generate(model, jobs, SIX) == expected


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "gemma2", "opt"])
def test_buffers_of_one_size_give_the_same(kind: str) -> None:
    model = model_of(kind)
    given = [vectors_of(model, n_soft, n_kv, 7 * n) for n, (_, n_soft, n_kv) in enumerate(MIXED)]
    jobs = [job_of(model, as_sites(some), slots) for (slots, _, _), some in zip(MIXED, given, strict=True)]
    assert generate(model, jobs, Generation(6, static_cache=True)) == generate(model, jobs, SIX)
    assert generate(model, jobs[:3], Generation(6, static_cache=True)) == generate(model, jobs[:3], SIX)
    inputs, _ = decoder_inputs(model, jobs, Generation(6, static_cache=True))
    (buffers,) = (value for value in inputs.values() if isinstance(value, StaticCache))
    n_slots = max(layer.max_cache_len for layer in buffers.layers)
    assert n_slots == (WINDOW if kind == "mistral" else 3 + 8 + 6)


def test_behind_an_encoder_there_are_no_buffers_of_one_size() -> None:
    with pytest.raises(UserError) as caught:
        generate(model_of("t5"), [job_of(model_of("t5"), {}, (5, 6))], Generation(static_cache=True))
    assert str(caught.value) == (
        "t5 reads texts in its encoder, and its decoder keeps no buffers of one size. Generate without a static cache."
    )


@pytest.mark.parametrize(
    ("kind", "static_cache"),
    [("llama", False), ("llama", True), ("gpt2", False), ("gpt2", True), ("bloom", False), ("t5", False)],
)
def test_beams_are_the_model_s_own(kind: str, static_cache: bool) -> None:
    model = model_of(kind)
    settings = Generation(max_tokens=5, n_beams=3, static_cache=static_cache)
    own = {"max_new_tokens": 5, "min_new_tokens": 1, "num_beams": 3, "do_sample": False, "pad_token_id": 1}
    jobs, expected = [], []
    for n, (slots, n_soft, _) in enumerate(MIXED[:3]):
        given = vectors_of(model, n_soft, 0, 7 * n)
        jobs.append(job_of(model, as_sites(given), slots))
        x = plain_language.embedded(model.lm, [*slots, 1] if kind == "t5" else slots, given.get("soft"))
        tokens = model.lm.generate(inputs_embeds=x, attention_mask=torch.ones(x.shape[:2]), **own)[0].tolist()
        tokens = tokens[1:] if kind == "t5" else tokens  # without its start token
        expected.append(tuple(tokens[: tokens.index(1)] if 1 in tokens else tokens))
    assert generate(model, jobs, settings) == expected
    assert expected != generate(model, jobs, Generation(max_tokens=5)), "beams find something else"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_beams_go_on_from_what_was_read(kind: str) -> None:
    model = model_of(kind)
    settings = Generation(max_tokens=5, n_beams=3)
    cache = model.read_shared({}, (40, 41, 42))
    jobs = [Job(cache, (5, 6, 7)), Job(cache, (8,)), Job(model.read_shared({}, (43,)), (5, 6))]
    whole = [job_of(model, {}, slots) for slots in ((40, 41, 42, 5, 6, 7), (40, 41, 42, 8), (43, 5, 6))]
    assert generate(model, jobs, settings) == generate(model, whole, settings)


def test_samples_follow_their_seed_and_leave_torch_s_own_numbers_alone() -> None:
    model = model_of("llama")
    jobs = [job_of(model, {}, (5, 6)), job_of(model, {}, (7,))]
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one = generate(model, jobs, Generation(8, temperature=1.0, seed=3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    assert generate(model, jobs, Generation(8, temperature=1.0, seed=3)) == one
    assert generate(model, jobs, Generation(8, temperature=1.0, seed=4)) != one


@pytest.mark.parametrize(("kind", "n_texts"), [("llama", BATCH + 2), ("mistral", 4)])  # in one batch, two, or four
def test_equal_texts_get_samples_of_their_own(kind: str, n_texts: int) -> None:
    model = model_of(kind)
    found = generate(model, [job_of(model, {}, (5, 6))] * n_texts, Generation(8, temperature=2.0))
    assert len(set(found)) == n_texts


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("settings", [Generation(12), Generation(12, n_beams=3), Generation(12, temperature=1.0)])
def test_what_a_model_s_own_file_says_of_a_search_counts_for_nothing(kind: str, settings: Generation) -> None:
    model = frozen_model(kind)
    expected = generate(model, [job_of(model, {}, (5, 6))], settings)
    own: Any = model.lm.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size, own.min_length, own.length_penalty = 3.0, 2, 40, -5.0
    own.temperature, own.top_k, own.top_p, own.min_p, own.typical_p = 5.0, 1, 0.1, 0.9, 0.1
    own.num_return_sequences, own.max_length, own.cache_implementation = 2, 3, "static"
    again = FrozenLanguageModel(kind, model.lm, model.tokenizer)
    assert generate(again, [job_of(again, {}, (5, 6))], settings) == expected


def test_tokens_that_a_model_s_own_file_forbids_are_never_said() -> None:
    model = frozen_model("llama")
    ((first, *_),) = generate(model, [job_of(model, {}, (5, 6))], SIX)
    model.lm.generation_config.bad_words_ids = [[first]]
    again = FrozenLanguageModel("llama", model.lm, model.tokenizer)
    assert first not in generate(again, [job_of(again, {}, (5, 6))], SIX)[0]


def test_samples_among_one_token_are_the_best() -> None:
    model = model_of("llama")
    job = job_of(model, {}, (5, 6))
    best = expected_of(model, (5, 6), {})
    assert generate(model, [job], Generation(6, temperature=5.0, top_k=1)) == [best]
    assert generate(model, [job], Generation(6, temperature=1.0, top_p=1e-6)) == [best]
    assert generate(model, [job], Generation(6, temperature=0.001)) == [best]
    assert generate(model, [job], Generation(6, temperature=5.0)) != [best]


@pytest.mark.parametrize(("kind", "slots"), [("llama", (5, 6, 7)), ("t5", (8, 9))])
def test_an_answer_stops_at_its_end_and_not_before_it_may(kind: str, slots: tuple[int, ...]) -> None:
    model = frozen_model(kind)
    job = job_of(model, {}, slots)
    (answer,) = generate(model, [job], SIX)
    n_left = next(n for n in range(1, 6) if answer[n] not in answer[:n])
    model.end_id = answer[n_left]
    assert generate(model, [job], SIX) == [answer[:n_left]]
    (longer,) = generate(model, [job], Generation(6, min_tokens=5))
    assert longer[:n_left] == answer[:n_left]
    assert len(longer) >= 5
    assert longer == expected_of(model, slots, {}, Generation(6, min_tokens=5))
    assert generate(model, [job, job_of(model, {}, (10, 11))], SIX)[0] == answer[:n_left]


@pytest.mark.parametrize("n_tokens", [1, 9])
def test_an_answer_is_no_longer_than_it_may_be(n_tokens: int) -> None:
    model = model_of("llama")
    (answer,) = generate(model, [job_of(model, {}, (5, 6))], Generation(n_tokens))
    assert len(answer) == n_tokens


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"max_tokens": 0},
            "max_tokens is 0, but it must be a whole number, 1 or more. Leave `max_tokens` out for the default.",
        ),
        (
            {"n_beams": 0},
            "n_beams is 0, but it must be a whole number from 1 to 256. Leave `n_beams` out for the default.",
        ),
        ({"min_tokens": 65}, "min_tokens is 65, but it must be at most max_tokens, 64. Use `min_tokens=1`."),
        ({"min_tokens": -1}, "min_tokens is -1, but it must be a whole number, 0 or more."),
        (
            {"temperature": 0.0},
            "temperature is 0.0, but it must be a number, 0.001 or more. Leave `temperature` out for the default.",
        ),
        ({"temperature": 1e-40}, "temperature is 1e-40, but it must be a number, 0.001 or more."),
        ({"temperature": float("nan")}, "temperature is nan, but it must be a number, 0.001 or more."),
        ({"temperature": float("inf")}, "temperature is inf, but it must be a number, 0.001 or more."),
        ({"top_k": 5}, "temperature is None, but top_k and top_p are for sampling. Give a temperature, such as 1."),
        ({"top_p": 0.5}, "temperature is None, but top_k and top_p are for sampling"),
        ({"temperature": 1.0, "top_k": 0}, "top_k is 0, but it must be a whole number, 1 or more."),
        (
            {"temperature": 1.0, "top_p": 0.0},
            "top_p is 0.0, but it must be a number, above 0 and at most 1. Leave `top_p` out for the default.",
        ),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p is 1.5, but"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Generation(**settings)
    assert str(caught.value).startswith(message)
