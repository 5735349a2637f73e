"""What is written after rows with prompts: held to the best token, taken again and again from whole rows."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from mmprompt.core.learned import Learned, Prompt, Source
from mmprompt.errors import UserError
from mmprompt.language.data import TextRow
from mmprompt.language.generation import Generated, generate_texts, stream_text
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.sources import MultitaskVectors
from mmprompt.language.templates.template import Template
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.sites import Site
from tests.language_models import frozen_model
from tests.reference import plain_language

TEXTS = ("a red car", "the happy dog by the tree", "fish", "a photo of a blue house", "a sad cat")
ROWS = tuple(TextRow({"text": text}) for text in TEXTS)
SIX = Generation(max_tokens=6)
FRONT, BEHIND, AROUND = "{soft} {text}: {answer}", "{text} {soft} {answer}", "{soft*1} {text} {soft*2}: {answer}"


@cache
def model_of(kind: str) -> FrozenLanguageModel:
    return frozen_model(kind)


def drawn(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def prompted_of(template: str = FRONT, n_soft: int = 3, n_kv: int = 0, kind: str = "llama") -> LanguagePredictor:
    model = model_of(kind)
    assert model.kv_shape is not None
    n_blocks, n_heads, width = model.kv_shape
    sources: list[Source] = [Learned(Site("lm"), drawn(n_soft, 32))] if n_soft else []
    for layer in range(n_blocks if n_kv else 0):
        sources.append(Learned(Site("lm.kv", layer), drawn(n_kv, 2 * n_heads * width, seed=layer)))
    prompt = Prompt(Template.parse(template).with_soft(n_soft), *sources)
    return LanguagePredictor(model, prompt.requires_grad_(False))


def expected_of(prompted: LanguagePredictor, row: TextRow, settings: Generation = SIX) -> tuple[int, ...]:
    model = prompted.model
    vectors = prompted.vectors(row.task)
    slots = prompted.bound.encode(row.fields, model.budget)
    found = plain_language.greedy(
        model.lm,
        slots,
        settings.max_tokens,
        model.end_id,
        settings.min_tokens,
        soft=vectors[Site("lm")].values.to(model.dtype) if Site("lm") in vectors else None,
        learned=[v.values.to(model.dtype) for site, v in sorted(vectors.items()) if site.tower == "lm.kv"],
        kv_shape=model.kv_shape,
        behind=(1,) if model.name == "t5" else (),
    )
    return tuple(found)


def written(prompted: LanguagePredictor, row: TextRow) -> str:
    return prompted.model.tokenizer.decode(expected_of(prompted, row), skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", ["llama", "mistral", "t5"])
@pytest.mark.parametrize(
    ("template", "n_soft", "n_kv"), [(FRONT, 3, 0), (BEHIND, 3, 0), (AROUND, 3, 2), ("{text}: {answer}", 0, 2)]
)
def test_a_prompt_writes_the_best_tokens(kind: str, template: str, n_soft: int, n_kv: int) -> None:
    prompted = prompted_of(template, n_soft, n_kv, kind)
    found = generate_texts(prompted, ROWS[:3], SIX)
    assert [one.text for one in found] == [written(prompted, row) for row in ROWS[:3]]
    assert [one.n_tokens for one in found] == [len(expected_of(prompted, row)) for row in ROWS[:3]]
    assert all(one.is_cut for one in found)


def test_rows_with_prompts_of_their_own_share_a_batch() -> None:
    prompts = [
        prompted_of(FRONT),
        prompted_of(BEHIND),
        prompted_of(AROUND, 3, 2),
        prompted_of("{text}: {answer}", 0),
    ]
    rows = [ROWS[n % 5] for n in range(8)]
    each = [prompts[n % 4] for n in range(8)]
    found = generate_texts(each, rows, SIX)
    assert [one.text for one in found] == [written(one, row) for one, row in zip(each, rows, strict=True)]


def test_each_row_is_answered_with_the_prompt_of_its_task() -> None:
    source = MultitaskVectors.of(("one", "two"), drawn(2, 32), drawn(2, 2, 1), drawn(2, 1, 32, seed=2))
    prompt = Prompt(Template.parse(FRONT).with_soft(2), source).requires_grad_(False)
    prompted = LanguagePredictor(model_of("llama"), prompt)
    rows = [TextRow({"text": "a red car"}, task=("one", "two")[n % 2]) for n in range(4)]
    found = [one.text for one in generate_texts(prompted, rows, SIX)]
    assert found == [written(prompted, row) for row in rows]
    assert found[0] != found[1]


def test_more_rows_than_a_batch_are_answered_in_order() -> None:
    prompted = prompted_of()
    rows = [ROWS[n % 5] for n in range(66)]
    found = generate_texts(prompted, rows, Generation(2))
    assert found == generate_texts(prompted, ROWS, Generation(2)) * 13 + generate_texts(
        prompted, ROWS[:1], Generation(2)
    )


def test_what_all_rows_begin_with_is_read_once_and_kept() -> None:
    prompted = prompted_of()
    n_read = []
    hook = (
        model_of("llama")
        .lm.model.layers[0]
        .mlp.register_forward_pre_hook(lambda _, args: n_read.append(args[0].shape[1]))
    )
    generate_texts(prompted, ROWS, Generation(2))
    texts = [prompted.bound.encode(row.fields, 48) for row in ROWS]
    n_prompt = len(model_of("llama").start_ids) + 3
    assert n_read == [n_prompt, max(map(len, texts)) - n_prompt, 1]
    generate_texts(prompted, ROWS[:2], Generation(1))
    hook.remove()
    assert len(n_read) == 4, "the prompt was read before"


def test_of_texts_before_the_prompt_nothing_is_kept_for_long() -> None:
    prompted = prompted_of("{text} {soft}: {answer}")
    found = [generate_texts(prompted, [row], SIX)[0].text for row in ROWS]
    assert found == [written(prompted, row) for row in ROWS]
    assert len(prompted.compiled) == 1


def test_a_prompt_that_still_learns_is_read_anew() -> None:
    prompted = prompted_of()
    prompted.prompt.requires_grad_(True)
    before = generate_texts(prompted, ROWS, SIX)
    with torch.no_grad():
        for parameter in prompted.prompt.parameters():
            parameter.mul_(-3)
    after = generate_texts(prompted, ROWS, SIX)
    assert [one.text for one in after] == [written(prompted, row) for row in ROWS]
    assert after != before


def test_an_answer_that_ends_is_not_cut() -> None:
    model = frozen_model("llama")
    prompted = LanguagePredictor(model, Prompt(Template.parse("{text}: {answer}")))
    tokens = expected_of(prompted, ROWS[0])
    n_left = next(n for n in range(1, 6) if tokens[n] not in tokens[:n])
    model.end_id = tokens[n_left]
    text = model.tokenizer.decode(tokens[:n_left]).strip()
    assert generate_texts(prompted, ROWS[:1], SIX) == [Generated(text, n_left, False)]
    assert generate_texts(prompted, ROWS[:1], Generation(n_left)) == [Generated(text, n_left, True)]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", SIX),
        ("llama", Generation(6, temperature=1.0, seed=4)),
        ("llama", Generation(6, static_cache=True)),
        ("t5", SIX),
        ("t5", Generation(6, temperature=1.0, seed=4)),
    ],
)
def test_a_streamed_answer_is_the_answer_in_pieces(kind: str, settings: Generation) -> None:
    prompted = prompted_of(kind=kind)
    pieces = list(stream_text(prompted, ROWS[1], settings))
    (whole,) = generate_texts(prompted, ROWS[1:2], settings)
    assert "".join(pieces).strip() == whole.text


def test_a_greedy_stream_leaves_what_others_draw_as_it_is() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    pieces = stream_text(prompted_of(), ROWS[1], Generation(20))
    next(pieces)
    torch.manual_seed(0)
    list(pieces)
    assert torch.rand(1) == expected


def test_pieces_come_word_by_word() -> None:
    settings = Generation(20, temperature=1.0)
    assert len(list(stream_text(prompted_of(), ROWS[1], settings))) > 1


def test_what_goes_wrong_while_streaming_is_raised_where_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    prompted = prompted_of()
    monkeypatch.setattr(model_of("llama").generator, "generate", None)
    with pytest.raises(TypeError, match="not callable"):
        list(stream_text(prompted, ROWS[0], SIX))


def test_beams_cannot_be_streamed() -> None:
    with pytest.raises(UserError) as caught:
        list(stream_text(prompted_of(), ROWS[0], Generation(n_beams=2)))
    assert str(caught.value) == (
        "an answer of several beams is known only at its end. Use `n_beams=1`, or do not stream."
    )


def test_a_long_text_is_cut_to_leave_room_for_the_answer() -> None:
    prompted = prompted_of("{soft} {text:cut}: {answer}", 3, 2)
    long = TextRow({"text": "a red car " * 40})
    (found,) = generate_texts(prompted, [long], Generation(20))
    assert found.n_tokens == 20
    with pytest.raises(UserError, match="there is room for 26 before the answer"):
        generate_texts(prompted_of(FRONT, 3, 2), [long], Generation(20))
    with pytest.raises(UserError, match="an answer takes 64 tokens, but there is room for 48 with its text"):
        generate_texts(prompted_of(), ROWS)


def test_prompts_of_other_numbers_or_models_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        generate_texts([prompted_of()] * 2, ROWS, SIX)
    assert str(caught.value) == (
        "there are 5 rows and 2 prompts, but one prompt a row was expected. Give one for all, or one for each."
    )
    with pytest.raises(UserError) as caught:
        generate_texts([prompted_of(), prompted_of(kind="mistral")], ROWS[:2], SIX)
    assert str(caught.value) == (
        "the prompts are of several models, but one batch has one model. Load them on the same model."
    )
    assert generate_texts(prompted_of(), [], SIX) == []
