from __future__ import annotations

from typing import Any

import pytest

from mmprompt.errors import UserError
from mmprompt.language.search.words import Words, place_words, start_words
from mmprompt.language.templates.template import Template
from tests.text_tokenizers import byte_level, sentence_piece

TOKENIZERS = {"byte_level": byte_level(), "sentence_piece": sentence_piece()}
ROOM = 400
ROW = {"text": "It was a great movie", "title": "a film"}


def words_of(template: str, tokenizer: Any, n_soft: int, start_ids: tuple[int, ...] = ()) -> Words:
    return Words(Template.parse(template).with_soft(n_soft).bind(tokenizer, start_ids), start_ids)


def ids_of(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def misread(words: Words, ids: tuple[int, ...]) -> int | None:
    slots = words.bound.encode(ROW, ROOM)
    (answer,) = words.bound.answers(["good"])
    return words.first_misread(ids, ROW, slots, ROOM, {"good": answer})


@pytest.mark.parametrize("start_ids", [(), (1,)])
@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    ("template", "text", "written"),
    [
        ("{soft} {text}: {answer}", "It was a great", "It was a great {text}: {answer}"),
        ("{text:cut=9}.{soft}\n{title:cut}: {answer}", " so bad", "{text:cut=9}. so bad\n{title:cut}: {answer}"),
        ("{text} and {soft} {answer}", " the answer is", "{text} and the answer is {answer}"),
        ("{{x}} {soft} {text}: {answer}", " bad {a}", "{{x}} bad {{a}} {text}: {answer}"),
        ("{soft} {bos}{text}: {answer}", "so bad", "so bad {bos}{text}: {answer}"),
        ("{bos}{soft} {text}: {answer}", "so bad", "{bos}so bad {text}: {answer}"),
    ],
)  # fmt: skip
def test_words_stand_where_soft_vectors_stood(
    template: str, text: str, written: str, name: str, start_ids: tuple[int, ...]
) -> None:
    tokenizer = TOKENIZERS[name]
    follows = text.startswith(" ")
    anchor = ids_of(tokenizer, "a")
    ids = ids_of(tokenizer, f"a{text}")[len(anchor) :] if follows else ids_of(tokenizer, text)
    words = words_of(template, tokenizer, len(ids), start_ids)
    assert words.template(ids).text == written
    assert words.texts(ids) == (text,)
    assert misread(words, ids) is None


def test_words_that_have_a_name_stand_in_all_its_places() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    first, second = ids_of(tokenizer, " great"), ids_of(tokenizer, " sad film")
    template = f"Text:{{soft*{len(first)}:mood}} {{text}} was{{soft*{len(second)}}} {{soft:mood}}: {{answer}}"
    words = words_of(template, tokenizer, 0)
    ids = (*first, *second)
    assert words.template(ids).text == "Text: great {text} was sad film great: {answer}"
    assert words.texts(ids) == (" great", " sad film")
    assert misread(words, ids) is None
    slots = words.bound.encode(ROW, ROOM)
    assert words.template(ids).bind(tokenizer).encode(ROW, ROOM) == place_words(slots, ids)


def test_words_stand_in_the_messages_of_a_chat() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    ids = ids_of(tokenizer, "Text positive")
    template = "[[system]] {soft}\n[[user]] {text}\n[[assistant]] It was {answer}"
    words = words_of(template, tokenizer, len(ids))
    assert words.template(ids).text == "[[system]] Text positive\n[[user]] {text}\n[[assistant]] It was {answer}"
    assert misread(words, ids) is None
    blank = ids_of(tokenizer, " great")  # a message has no blank at its start
    assert misread(words_of(template, tokenizer, len(blank)), blank) == 0


def test_a_word_that_is_read_otherwise_is_found() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    letters = tuple(ids_of(tokenizer, letter)[0] for letter in "great")
    good = ids_of(tokenizer, "It was a")
    place = misread(words_of("{soft} {text}: {answer}", tokenizer, len(good) + 5), (*good, *letters))
    assert place is not None
    assert len(good) - 1 <= place < len(good) + 5


def test_words_that_change_the_text_behind_them_are_not_read_back() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    (m,) = ids_of(tokenizer, "m")
    words = words_of("{soft}ovie {text}: {answer}", tokenizer, 1)
    assert ids_of(tokenizer, "movie") != (m, *ids_of(tokenizer, "ovie"))
    assert misread(words, (m,)) == 0


def test_words_that_change_the_answer_are_not_read_back() -> None:
    tokenizer = TOKENIZERS["sentence_piece"]  # which puts a blank before an answer of its own
    words = words_of("{text}: {soft}{answer}", tokenizer, 1)
    ids = ids_of(tokenizer, "a great")[1:]
    slots = words.bound.encode(ROW, ROOM)
    apart, within = words.bound.answers(["ovie"])[0], ids_of(tokenizer, "a greatovie")[2:]
    assert apart != within
    assert words.first_misread(ids, ROW, slots, ROOM, {"ovie": within}) is None
    assert words.first_misread(ids, ROW, slots, ROOM, {"ovie": apart}) == 0


def test_words_that_make_another_template_are_not_read_back() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    ids = ids_of(tokenizer, "[[user]] a")
    assert misread(words_of("{soft} {text}: {answer}", tokenizer, len(ids)), ids) == 0


def test_special_tokens_in_words_are_told_from_their_text() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    spelled = tuple(tokenizer("<|im_end|>", add_special_tokens=False, split_special_tokens=True)["input_ids"])
    assert len(spelled) > 1
    assert misread(words_of("{soft} {text}: {answer}", tokenizer, len(spelled)), spelled) is not None


def test_a_bare_soft_slot_starts_from_words() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    template = start_words(Template.parse("Text: {soft} {text} {soft*2:x}: {answer}"), 'It was "so" {bad}')
    bound = template.bind(tokenizer)
    ids = ids_of(tokenizer, ' It was "so" {bad}')
    assert bound.soft_starts == (*ids, None, None)
    with pytest.raises(UserError, match=r"words were given to start from, but the template has no \{soft\}"):
        start_words(Template.parse("{soft*2} {answer}"), "It")
