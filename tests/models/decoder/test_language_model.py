"""What a language model predicts after vectors of a prompt: held to whole rows, one by one, through its own forward."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmprompt.errors import UserError
from mmprompt.models.decoder.model import FrozenLanguageModel, shared_start
from mmprompt.models.decoder.packing import ROW_SLOTS, Question, pack_bins
from mmprompt.models.decoder.reader import CausalReader
from mmprompt.models.sites import Site, Vectors
from tests.language_models import (
    CAUSAL,
    ENCODED,
    OTHER_CAUSAL,
    SINGLE,
    Tolerance,
    family_model,
    family_tokenizer,
    frozen_model,
    tolerance_of,
)
from tests.reference import plain_language

DECODERS = (*CAUSAL, *OTHER_CAUSAL)
KINDS = (*DECODERS, *ENCODED, "t5_wide")
N_SOFT, N_KV = 5, 3
LM_INPUT = Site("lm")
QUESTIONS = {
    "a prompt at the front, texts and answers of different lengths": [
        Question((-1, -2, -3, -4, -5, 10, 11), ((20,),)),
        Question((-1, -2, -3, -4, -5, 12, 13, 14, 15, 16), ((21, 22),)),
        Question((-1, -2, -3, -4, -5, 9), ((23, 24, 25), (26,))),
    ],
    "answers that begin alike": [
        Question((-1, 7, 8), ((30, 31), (30, 32), (30, 31, 33), (30,))),
        Question((-1, 7, 8, 9), ((30, 31, 33, 34), (30, 31), (35,))),
    ],
    "one question": [Question((-2, -1, 40, 41), ((42, 43),))],
    "texts that differ in one slot": [Question((-1, -2, 5, 6, last), ((44, 45), (46,))) for last in (50, 51, 52)],
    "the same text twice": [Question((-1, 5), ((6, 7),)), Question((-1, 5), ((6, 7), (6, 8)))],
    "vectors in the middle, at several places and twice": [
        Question((60, -1, 61, -2, -1, 62), ((63,), (64, 65))),
        Question((60, 66, -3, -4), ((67, 68),)),
        Question((-5,), ((69,),)),
    ],
    "vectors alone": [Question((-1, -2, -3), ((70, 71),))],
    "one text that begins another": [Question((-1, 5), ((6, 9),)), Question((-1, 5, 6), ((9,),))],
    "text alone": [Question((5, 6), ((7,),)), Question((5, 8, 9), ((7, 7, 7),)), Question((80,), ((81,),))],
}
FORMS = ("soft", "kv", "both")


@cache
def model_of(kind: str, dtype: torch.dtype = torch.float64) -> FrozenLanguageModel:
    model = frozen_model(kind, dtype)
    if dtype == torch.float64 and kind not in SINGLE:
        for module in model.lm.modules():  # the one sum that these families take in float32
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = partial(F.rms_norm, normalized_shape=module.weight.shape, weight=module.weight)
    return model


def behind(model: FrozenLanguageModel) -> tuple[int, ...]:
    return (1,) if model.name.startswith("t5") or model.name == "bart" else ()  # `</s>`, as FRAMES says


def vectors_for(model: FrozenLanguageModel, form: str, *n_rows: int) -> tuple[dict[str, Any], list[Tensor]]:
    """Vectors as leaves: `soft` and `learned` for the reference."""
    draw = torch.Generator().manual_seed(3)
    assert model.kv_shape is not None
    n_blocks, n_heads, head_width = model.kv_shape

    def drawn(n_vectors: int, width: int, scale: float) -> Tensor:
        values = torch.randn(*n_rows, n_vectors, width, generator=draw, dtype=torch.float64) * scale
        return values.to(model.dtype).requires_grad_()

    soft = drawn(N_SOFT, model.width, 0.5)
    learned = [drawn(N_KV, 2 * n_heads * head_width, 0.5) for _ in range(n_blocks)]
    given = {"soft": soft} if form == "soft" else {"learned": learned} if form == "kv" else {}
    given = given or {"soft": soft, "learned": learned}
    return given, [given[name] for name in ("soft",) if name in given] + given.get("learned", [])


def as_sites(given: dict[str, Any]) -> dict[Site, Vectors]:
    named = {LM_INPUT: given["soft"]} if "soft" in given else {}
    named |= {Site("lm.kv", layer): values for layer, values in enumerate(given.get("learned", []))}
    return {site: Vectors(values, "sample" if values.dim() == 3 else "shared") for site, values in named.items()}


def without_soft(questions: list[Question]) -> list[Question]:
    """The same with words in place of vectors."""
    return [Question(tuple(90 - s if s < 0 else s for s in q.slots), q.answers) for q in questions]


def expected_of(model: FrozenLanguageModel, questions: list[Question], given: dict[str, Any]) -> Tensor:
    pairs = [(question.slots, question.answers) for question in questions]
    return plain_language.token_log_probs(model.lm, pairs, kv_shape=model.kv_shape, behind=behind(model), **given)


def distance(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def gradients(log_probs: Tensor, leaves: list[Tensor]) -> Tensor:
    weights = torch.linspace(-1, 2, len(log_probs), dtype=log_probs.dtype)
    found = torch.autograd.grad(weights @ log_probs, leaves)
    return torch.cat([part.flatten() for part in found])


def check(model: FrozenLanguageModel, form: str, tolerance: Tolerance) -> None:
    for name, questions in QUESTIONS.items():
        given, leaves = vectors_for(model, form)
        if form == "kv":
            questions = without_soft(questions)
        elif name == "text alone":
            leaves = leaves[1:]
        found = model.predict(as_sites(given), questions).token_log_probs()
        expected = expected_of(model, questions, given)
        assert distance(found, expected) < tolerance.value, name
        if leaves:
            assert distance(gradients(found, leaves), gradients(expected, leaves)) < tolerance.gradient, name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_and_gradients_are_those_of_whole_rows_one_by_one(kind: str, form: str) -> None:
    check(model_of(kind), form, tolerance_of(kind))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma", "mistral", "t5"])
def test_in_single_precision_they_are_equal_up_to_its_rounding(kind: str) -> None:
    check(model_of(kind, torch.float32), "both", Tolerance(1e-5, 1e-5))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["llama", "mistral", "t5"])
def test_every_row_may_have_vectors_of_its_own(kind: str, form: str) -> None:
    model = model_of(kind)
    questions = [
        Question((-1, -2, -3, 10, 11), ((20,), (21, 22))),
        Question((7, -1, -5), ((21, 22),)),
        Question((-1, -2, 12, 13, 14), ((23, 24, 25), (23, 26))),
    ]
    questions = without_soft(questions) if form == "kv" else questions
    given, leaves = vectors_for(model, form, len(questions))
    found = model.predict(as_sites(given), questions).token_log_probs()
    rows = [
        {name: [v[n] for v in values] if name == "learned" else values[n] for name, values in given.items()}
        for n in range(len(questions))
    ]
    expected = torch.cat([expected_of(model, [q], row) for q, row in zip(questions, rows, strict=True)])
    assert distance(found, expected) < tolerance_of(kind).value
    assert distance(gradients(found, leaves), gradients(expected, leaves)) < tolerance_of(kind).gradient


def test_vectors_are_given_for_all_questions_or_for_each() -> None:
    question = Question((-1, 5), ((6,),))
    for n_rows in (1, 3):
        with pytest.raises(AssertionError, match="for all questions, or for each"):
            model_of("llama").predict({LM_INPUT: ones(n_rows, 2, 32)}, [question] * 2)


SLOTS = st.lists(st.sampled_from([-1, -2, 5, 6]), min_size=1, max_size=5).map(tuple)
ANSWERS = st.lists(st.lists(st.sampled_from([5, 6, 7]), min_size=1, max_size=3).map(tuple), min_size=1, max_size=3)
ANY_QUESTIONS = st.lists(st.builds(Question, SLOTS, ANSWERS.map(tuple)), min_size=1, max_size=4)


@settings(max_examples=15)
@given(ANY_QUESTIONS)
def test_whatever_is_shared_nothing_changes(questions: list[Question]) -> None:
    model = model_of("llama")
    given_vectors, _ = vectors_for(model, "both")
    found = model.predict(as_sites(given_vectors), questions).token_log_probs()
    assert distance(found, expected_of(model, questions, given_vectors)) < 1e-10


@settings(max_examples=60)
@given(ANY_QUESTIONS)
def test_what_is_shared_is_the_longest_beginning_that_leaves_a_slot_to_each(questions: list[Question]) -> None:
    texts = [question.slots for question in questions]
    start = shared_start(questions)
    assert all(text[: len(start)] == start and len(text) > len(start) for text in texts)
    longer = {text[: len(start) + 1] for text in texts}
    assert len(longer) > 1 or min(map(len, texts)) == len(start) + 1


@contextmanager
def counted(modules: dict[str, torch.nn.Module]) -> Iterator[dict[str, list[int]]]:
    """How many slots each module is shown, call by call."""
    seen: dict[str, list[int]] = {name: [] for name in modules}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].shape[:-1].numel()))
        for name, module in modules.items()
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def test_what_all_texts_begin_with_is_read_once_and_logits_are_taken_where_an_answer_is() -> None:
    model = model_of("llama")
    given, _ = vectors_for(model, "soft")
    start = (-1, -2, -3, -4, -5, 3, 4)
    questions = [Question((*start, text), ((9, 8), (9, 7, 6))) for text in range(20, 28)]
    with counted({"block": model.lm.model.layers[0].mlp, "head": model.lm.lm_head}) as seen:
        model.predict(as_sites(given), questions)
    # of each text its own slot, 9 once for both answers, and 7; the last tokens of answers are not read
    assert seen == {"block": [len(start), 3 * len(questions)], "head": [3 * len(questions)]}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_what_only_fills_a_row_is_not_read_and_the_last_block_reads_what_is_asked(kind: str) -> None:
    model = model_of(kind)
    questions = [Question((text, *range(100, 140)), ((9,),)) for text in range(20, 28)]
    blocks = model.lm.model.layers
    with counted({"first": blocks[0].mlp, "last": blocks[1].mlp}) as seen:
        model.predict({}, questions)
    assert len(pack_bins([question.n_read for question in questions], ROW_SLOTS)) == 2
    assert seen == {"first": [41 * len(questions)], "last": [len(questions)]}


@pytest.mark.parametrize("kind", KINDS)
def test_with_few_words_only_their_logits_are_given(kind: str) -> None:
    model = model_of(kind)
    given, _ = vectors_for(model, "soft")
    questions = [Question((-1, 5, 6), ((9,), (7, 8))), Question((-1, 5), ((8,),))]
    words = torch.tensor([8, 4, 9, 7])
    whole, some = model.predict(as_sites(given), questions), model.predict(as_sites(given), questions, words)
    assert some.logits.shape == (len(whole.logits), 4)
    torch.testing.assert_close(some.logits, whole.logits[:, words], rtol=1e-12, atol=1e-12)
    assert words[some.tokens].tolist() == whole.tokens.tolist() == [9, 7, 8, 8]
    expected = whole.logits[:, words].log_softmax(-1)[whole.at, some.tokens]
    torch.testing.assert_close(some.token_log_probs(), expected)


def test_an_answer_is_as_probable_as_its_tokens_together() -> None:
    model = model_of("gpt2")
    questions = QUESTIONS["answers that begin alike"]
    given, _ = vectors_for(model, "soft")
    predicted = model.predict(as_sites(given), questions)
    assert predicted.lengths == (2, 2, 3, 1, 4, 2, 1)
    parts = predicted.token_log_probs().split(list(predicted.lengths))
    torch.testing.assert_close(predicted.answer_log_probs(), torch.stack([part.sum() for part in parts]))


def test_log_probabilities_are_taken_in_single_precision_at_least() -> None:
    model = frozen_model("gpt2", torch.bfloat16)
    predicted = model.predict({}, [Question((5, 6), ((7,),))])
    assert predicted.logits.dtype == torch.bfloat16
    assert predicted.token_log_probs().dtype == predicted.answer_log_probs().dtype == torch.float32


def saved_bytes(log_probs_of: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """What is kept for the backward pass, each buffer once, and what was computed."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = log_probs_of()
    return sum(sizes.values()), found


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_rows_that_are_read_again_give_the_same_gradient_and_keep_less(kind: str, per_row: bool) -> None:
    model = model_of(kind)
    questions = [Question((-1, *range(n, n + 10 + n % 7 * 4), -2), ((9, 8), (9, 7))) for n in range(30, 44)]
    given, leaves = vectors_for(model, "both", *([len(questions)] if per_row else []))
    kept, whole = saved_bytes(lambda: model.predict(as_sites(given), questions).token_log_probs())
    less, again = saved_bytes(lambda: model.predict(as_sites(given), questions, None, True).token_log_probs())
    assert distance(again, whole) < 1e-12
    assert distance(gradients(again, leaves), gradients(whole, leaves)) < 1e-10
    assert less < kept / 3


def test_reading_rows_again_works_with_words_alone_and_without_vectors() -> None:
    model = model_of("llama")
    questions = [Question((5, 6), ((7, 8),)), Question((9, 6), ((7,),))]
    words = torch.tensor([7, 8])
    plain, again = (model.predict({}, questions, words, is_recomputed).token_log_probs() for is_recomputed in (0, 1))
    assert distance(again, plain) < 1e-12


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_the_same_question_gives_the_same_bytes(kind: str) -> None:
    model = model_of(kind, torch.float32)
    given, leaves = vectors_for(model, "both")
    questions = list(itertools.chain.from_iterable(QUESTIONS.values()))
    one, other = (model.predict(as_sites(given), questions).token_log_probs() for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(gradients(one, leaves), gradients(other, leaves))


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_that_are_token_embeddings_read_as_the_tokens(kind: str) -> None:
    model = model_of(kind)
    prompt = (41, 42, 43)
    soft = {LM_INPUT: Vectors(model.embed(torch.tensor(prompt)))}
    for name, questions in QUESTIONS.items():
        few = [Question(tuple(s if s >= -3 else -1 for s in q.slots), q.answers) for q in questions]
        words = [Question(tuple(s if s >= 0 else prompt[-1 - s] for s in q.slots), q.answers) for q in few]
        as_vectors, as_words = (model.predict(soft, some).token_log_probs() for some in (few, words))
        assert distance(as_vectors, as_words) < 1e-12, name  # of all families: the rows are the same


@pytest.mark.parametrize("kind", DECODERS)
def test_keys_and_values_of_words_read_as_the_words(kind: str) -> None:
    model = model_of(kind)
    words = (41, 42, 43)
    assert isinstance(model.reader, CausalReader)
    pairs = model.reader.keys_values_of(model.embed(torch.tensor(words)))
    learned = [torch.cat([part[0].transpose(0, 1).flatten(1) for part in pair], dim=1) for pair in pairs]
    questions = without_soft(QUESTIONS["a prompt at the front, texts and answers of different lengths"])
    behind_words = [Question((*words, *question.slots), question.answers) for question in questions]
    found = model.predict(as_sites({"learned": learned}), questions).token_log_probs()
    assert distance(found, model.predict({}, behind_words).token_log_probs()) < tolerance_of(kind).value


def test_a_prompt_that_was_read_is_gone_on_from() -> None:
    model = model_of("llama")
    given, _ = vectors_for(model, "both")
    cache = model.read_shared(as_sites(given), (-1, 7, -2))
    assert cache.n_read == N_KV + 3
    hidden, _ = model.reader.run(cache, model.embed(torch.tensor([[8, 9]])))
    expected = plain_language.answer_logits(model.lm, (-1, 7, -2, 8), (9, 0), kv_shape=model.kv_shape, **given)
    torch.testing.assert_close(model.reader.head(hidden)[0], expected, rtol=1e-10, atol=1e-10)
    assert model.read_shared({}, ()).own == ()


def refusal(model: FrozenLanguageModel, vectors: dict[Site, Vectors], questions: list[Question]) -> str:
    with pytest.raises(UserError) as caught:
        model.predict(vectors, questions)
    return str(caught.value)


def ones(*shape: int) -> Vectors:
    return Vectors(torch.ones(shape, dtype=torch.float64), "sample" if len(shape) == 3 else "shared")


def test_vectors_that_do_not_fit_are_refused_in_a_line() -> None:
    model = model_of("llama")
    question = [Question((5,), ((6,),))]
    assert refusal(model, {LM_INPUT: ones(3, 31)}, question) == (
        "the vectors of lm.input are 31 wide, but llama takes 32. Build the prompt for this model."
    )
    assert refusal(model, {Site("lm.kv", 0): ones(3, 31), Site("lm.kv", 1): ones(3, 31)}, question) == (
        "the vectors of lm.kv[0] are 31 wide, but llama takes 32. Build the prompt for this model."
    )
    assert refusal(model, {Site("text"): ones(3, 32)}, question) == (
        "text.input is no site of llama. Use lm.input or lm.kv[i]."
    )
    assert refusal(model, {Site("lm.kv", 0): ones(3, 32)}, question) == (
        "keys and values were given for 1 blocks, but llama has 2. Give them for every block."
    )
    assert refusal(model, {Site("lm.kv", 0): ones(3, 32), Site("lm.kv", 1): ones(5, 32)}, question) == (
        "blocks were given 3 to 5 keys and values, but all take equally many. Give as many to every block."
    )
    assert refusal(model, {LM_INPUT: ones(48, 32)}, question) == (
        "the prompt takes 48 slots, but llama has 48 for prompt and text together. Use fewer vectors."
    )
    many = {Site("lm.kv", layer): ones(30, 32) for layer in range(2)} | {LM_INPUT: ones(20, 32)}
    assert refusal(model, many, question).startswith("the prompt takes 50 slots, but llama has 48")


def test_keys_and_values_are_refused_where_a_decoder_takes_none() -> None:
    model = frozen_model("llama")
    model.kv_shape = None
    assert "the decoder of llama takes none. Use vectors among its tokens." in refusal(
        model, {Site("lm.kv", 0): ones(3, 32)}, [Question((5,), ((6,),))]
    )


@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_a_question_without_room_is_refused(kind: str) -> None:
    model = model_of(kind)
    fitting = Question((5,) * 45, ((6,), (7, 8, 9)))
    model.predict({}, [fitting])
    too_long = Question((5,) * 46, ((6,), (7, 8, 9)))
    assert refusal(model, {}, [fitting, too_long]) == (
        f"a text with its prompt and answer takes 49 slots, but {kind} has 48. "
        "Shorten it, or mark a field of the template with :cut."
    )
    with_kv = {Site("lm.kv", layer): ones(2, 64 if kind == "bart" else 32) for layer in range(2)}
    assert "takes 50 slots" in refusal(model, with_kv, [fitting])


def test_the_longest_question_that_fits_is_right() -> None:
    model = model_of("gpt2")  # whose positions end there
    question = Question((-1, *[5, 6] * 22), ((7, 8, 9),))
    given, _ = vectors_for(model, "soft")
    found = model.predict(as_sites(given), [question]).token_log_probs()
    assert distance(found, expected_of(model, [question], given)) < 1e-10


def test_a_model_knows_its_tokens_and_its_weights() -> None:
    for kind, start_ids in (("llama", (0,)), ("gpt2", ()), ("t5", ()), ("bart", (0,))):
        model = frozen_model(kind)
        assert model.start_ids == start_ids
        assert (model.end_id, model.pad_id, model.width) == (1, 1, 32)
        assert model.vocabulary_size == len(family_tokenizer(kind))
        assert model.compute_fingerprint() == model.fingerprint
        next(model.lm.parameters()).data[0, 0] += 1
        assert model.compute_fingerprint() != model.fingerprint


def test_the_size_of_embeddings_is_that_of_what_is_read() -> None:
    bart = frozen_model("bart")
    read = bart.embed(torch.arange(bart.vocabulary_size))
    assert bart.embedding_rms == pytest.approx(read.square().mean().sqrt().item(), rel=1e-6)
    scaled = family_model("bart", bart.vocabulary_size).double()
    scaled.model.shared.embed_scale = scaled.model.encoder.embed_tokens.embed_scale = 4.0
    assert frozen_size(scaled) == pytest.approx(4 * bart.embedding_rms, rel=1e-6)


def frozen_size(lm: Any) -> float:
    return FrozenLanguageModel("bart", lm.requires_grad_(False), family_tokenizer("bart")).embedding_rms


def test_without_an_end_token_a_model_is_refused() -> None:
    tokenizer = family_tokenizer("llama")
    tokenizer.eos_token = None
    lm = family_model("llama", len(tokenizer))
    lm.config.eos_token_id = lm.generation_config.eos_token_id = None
    with pytest.raises(UserError) as caught:
        FrozenLanguageModel("endless", lm, tokenizer)
    assert str(caught.value) == (
        "endless names no end token, but answers need one. Write eos_token_id into its config.json."
    )
    lm.generation_config.eos_token_id = [7, 8]
    tokenizer.pad_token = None
    model = FrozenLanguageModel("endless", lm, tokenizer)
    assert (model.end_id, model.pad_id) == (7, 7)
