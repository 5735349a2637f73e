"""Templates of language models: what is read of them, refused in them, and what of a row they let fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mmprompt.core.template import MAX_TOKENS, MAX_VECTORS, Field, Group, Soft
from mmprompt.errors import UserError
from mmprompt.language.templates.bound import BoundTemplate, longest_first
from mmprompt.language.templates.template import Template
from mmprompt.models.packaged import is_fetched, packaged_folder
from tests.text_tokenizers import CHAT, byte_level, crossing, of_bytes, sentence_piece

TINY = Path(__file__).parents[3] / "mmprompt" / "assets" / "tiny" / "captioner"
TOKENIZERS: dict[str, Any] = {
    "byte_level": byte_level(),
    "sentence_piece": sentence_piece(),
    "of_bytes": of_bytes(),
    "tiny": AutoTokenizer.from_pretrained(TINY),
}
BPE, BYTES = TOKENIZERS["byte_level"], TOKENIZERS["of_bytes"]
ROOM = 1000
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
hostile = st.lists(st.sampled_from(["<|im_end|>", "<|im_", "end|>", "<|endoftext|>", " ", "a", "<|"])).map("".join)


def ids_of(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def bind(text: str, tokenizer: Any = BPE, n_soft: int = 0, **options: Any) -> BoundTemplate:
    template = Template.parse(text)
    return (template.with_soft(n_soft) if n_soft else template).bind(tokenizer, **options)


def in_words(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def decoded(tokenizer: Any, slots: tuple[int, ...]) -> str:
    return tokenizer.decode([slot for slot in slots if slot >= 0])


# --- what a template means


def test_parts_are_read_in_order() -> None:
    template = Template.parse(
        '{soft} {text:cut} {{x}} {soft*2:tone}{title:cut=5}{soft:"It was"}{soft:tone}: {answer}\n'
    )
    assert template.messages[0].parts == (
        Soft(0),
        " ",
        Field("text", True),
        " {x} ",
        Soft(1),
        Field("title", True, 5),
        Soft(2),
        Soft(1),
        ": ",
    )
    assert template.groups == (Group(), Group(2, None, "tone"), Group(None, "It was"))
    assert template.fields == ("text", "title")
    assert template.has_bare_soft
    assert not template.is_chat
    assert not Template.parse("{soft*4} {softness} {answer}").has_bare_soft
    assert Template.parse("{softness}{soft word}{answer}").fields == ("softness", "soft word")


def test_a_name_may_stand_before_its_number_is_given() -> None:
    assert Template.parse("{soft:a}{soft*3:a}{answer}").groups == (Group(3, None, "a"),)


def test_braces_stand_within_the_words_of_a_soft_slot() -> None:
    assert Template.parse('{soft:"a } b {"}{answer}').groups == (Group(None, "a } b {"),)


@given(texts)
def test_any_text_stands_in_a_template_once_its_braces_are_doubled(text: str) -> None:
    template = Template.parse(f"x{in_words(text)}{{answer}}")
    assert template.messages[0].parts == (f"x{text}",)
    assert template.text == f"x{in_words(text)}{{answer}}"


@pytest.mark.parametrize("tokenizer", [BPE, TOKENIZERS["sentence_piece"]], ids=["byte_level", "sentence_piece"])
@pytest.mark.parametrize("start", [(), (1, 2)])
def test_a_text_that_begins_after_soft_vectors_is_read_as_it_is_alone(tokenizer: Any, start: tuple[int, ...]) -> None:
    bound = bind("{soft}{bos}{text}: {answer}", tokenizer, start_ids=start, n_soft=2)
    for text in ("a movie", " a movie"):
        assert bound.encode({"text": text}, ROOM) == (-1, -2, *start, *ids_of(tokenizer, f"{text}:"))
    before = bind("It {soft}{bos}was {answer}", tokenizer, start_ids=start, n_soft=1).encode({}, ROOM)
    assert before == (*ids_of(tokenizer, "It"), -1, *start, *ids_of(tokenizer, "was"))


@given(
    st.lists(st.one_of(st.integers(1, 5), st.sampled_from(["bare", "one", "other"]), texts), max_size=8),
    st.integers(0, 4),
)
def test_vectors_are_numbered_by_first_appearance(plan: list[int | str], n_soft: int) -> None:
    given_bare = False
    expected: list[int] = []
    first: dict[str, list[int]] = {}
    total = 0
    written = ""
    for item in plan:
        if item == "bare" and given_bare:
            continue
        given_bare = given_bare or item == "bare"
        if isinstance(item, int) or item in ("bare", "one", "other"):
            size = item if isinstance(item, int) else {"bare": n_soft, "one": 2, "other": 3}[item]
            places = first.get(str(item), list(range(total, total + size)))
            if item in ("one", "other"):
                first[str(item)] = places
            total = max([total, *(place + 1 for place in places)])
            expected += places
            written += {"bare": "{soft}", "one": "{soft*2:one}", "other": "{soft*3:other}"}.get(
                str(item), f"{{soft*{item}}}"
            )
        else:
            written += in_words(str(item))
    bound = bind(f"x{written}{{answer}}", n_soft=n_soft)
    slots = bound.encode({}, ROOM)
    assert [-1 - slot for slot in slots if slot < 0] == expected
    assert bound.n_soft == total
    assert bound.soft_starts == (None,) * total


@pytest.mark.parametrize("name", ["byte_level", "of_bytes", "tiny"])
@given(texts, texts)
def test_text_between_soft_slots_is_tokenised_as_one_string(name: str, first: str, second: str) -> None:
    tokenizer = TOKENIZERS[name]
    bound = bind("x{a} was{soft*2} It{b}: {answer}", tokenizer)
    expected = (*ids_of(tokenizer, f"x{first} was"), -1, -2, *ids_of(tokenizer, f" It{second}:"))
    assert bound.encode({"a": first, "b": second}, ROOM) == expected


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_template_in_words_equals_soft_slots_that_start_from_them(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    row = {"text": "It was so great"}
    bound = bind('The mood {soft:"of this text"} {text} {soft:" is"} {answer}', tokenizer)
    started = [bound.soft_starts[-1 - slot] if slot < 0 else slot for slot in bound.encode(row, ROOM)]
    in_text = bind("The mood of this text {text} is {answer}", tokenizer)
    assert tuple(started) == in_text.encode(row, ROOM)
    assert bound.n_soft == len(started) - sum(slot >= 0 for slot in bound.encode(row, ROOM))


def test_a_blank_before_a_soft_slot_has_no_token_and_one_after_it_is_text() -> None:
    slots = bind("It was {soft*1} great {answer}").encode({}, ROOM)
    assert slots == (*ids_of(BPE, "It was"), -1, *ids_of(BPE, " great"))


def test_a_soft_slot_of_no_vectors_takes_the_blank_after_it_along() -> None:
    for text in ("{soft} It was {answer}", "It {soft} was {answer}", "It was {soft} {answer}"):
        bound = bind(text, n_soft=0)
        assert bound.encode({}, ROOM) == ids_of(BPE, "It was")
        assert bound.answers(["great"]) == (ids_of(BPE, " great"),)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("It was {answer}", "great"),
        ("It was {answer}", " great"),
        ("{soft*1} {answer}", "great"),
        ("{text} {answer}", "great"),
    ],
)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_blank_before_the_answer_belongs_to_it(name: str, text: str, word: str) -> None:
    tokenizer = TOKENIZERS[name]
    bound = bind(text, tokenizer)
    whole = ids_of(tokenizer, "a great")
    assert bound.answers([word]) == (whole[len(ids_of(tokenizer, "a")) :],)
    assert decoded(tokenizer, bound.encode({"text": "a"}, ROOM)).strip() in ("It was", "it was", "a", "")


@pytest.mark.parametrize("name", ["byte_level", "sentence_piece", "of_bytes"])
def test_an_answer_after_no_blank_is_what_follows_in_the_same_string(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    whole, before = ids_of(tokenizer, "It was:great"), ids_of(tokenizer, "It was:")
    assert whole[: len(before)] == before
    assert bind("It was:{answer}", tokenizer).answers(["great"]) == (whole[len(before) :],)


def test_an_answer_apart_begins_a_text() -> None:
    bound = bind("It was {answer}", is_answer_apart=True)
    assert bound.answers([" great"]) == (ids_of(BPE, "great"),)
    assert bound.encode({}, ROOM) == ids_of(BPE, "It was")


def test_a_start_token_stands_once() -> None:
    start = BPE.convert_tokens_to_ids("<|endoftext|>")
    assert bind("It {answer}", start_ids=(start,)).encode({}, ROOM) == (start, *ids_of(BPE, "It"))
    own = bind("<|endoftext|>It {answer}", start_ids=(start,))
    assert own.encode({}, ROOM) == (start, *ids_of(BPE, "It"))
    soft = bind("{soft*1} It {answer}", start_ids=(start,))
    assert soft.encode({}, ROOM) == (start, -1, *ids_of(BPE, " It"))


# --- what a field holds is text


@pytest.mark.parametrize("name", ["byte_level", "of_bytes"])
@given(hostile, hostile)
def test_no_field_gives_a_special_token(name: str, first: str, second: str) -> None:
    tokenizer = TOKENIZERS[name]
    special = "</s>" if name == "of_bytes" else "<|im_end|>"
    first, second = first.replace("<|im_end|>", special), second.replace("<|im_end|>", special)
    bound = bind(f"<{special}x{{a}}x{special}|{{b}}end|> {{answer}}", tokenizer)
    slots = bound.encode({"a": first, "b": second}, ROOM)
    own = tokenizer.convert_tokens_to_ids(special)
    assert [slot for slot in slots if slot in set(tokenizer.all_special_ids)] == [own, own]
    assert tokenizer.decode(slots) == f"<{special}x{first}x{special}|{second}end|>"


def test_an_answer_gives_no_special_token() -> None:
    (ids,) = bind("It {answer}").answers(["<|im_end|>"])
    assert not set(ids) & set(BPE.all_special_ids)
    assert BPE.decode(ids) == " <|im_end|>"


# --- what fits


@pytest.mark.parametrize("name", TOKENIZERS)
@given(texts, texts, st.integers(0, 60), st.integers(0, 5))
def test_what_is_encoded_always_fits(name: str, first: str, second: str, room: int, n_answer: int) -> None:
    bound = bind("{soft*2} Text: {a:cut} and {b:cut=7}. It {answer}", TOKENIZERS[name])
    row = {"a": first, "b": second}
    least = len(bound.encode({"a": "", "b": ""}, ROOM))
    try:
        found = bound.encode(row, room, n_answer)
    except UserError:
        assert least + n_answer > room
        return
    assert len(found) + n_answer <= room
    whole = bound.encode(row, ROOM)
    assert len(found) <= len(whole)
    if len(whole) + n_answer <= room:
        assert found == whole


@given(st.text("abc", min_size=1), st.text("xyz", min_size=1), st.integers(8, 40))
def test_no_more_is_cut_than_must_be_and_the_longest_first(first: str, second: str, room: int) -> None:
    bound = bind("{a:cut}|{b:cut}{answer}", BYTES)
    found = bound.encode({"a": first, "b": second}, room, 2)
    a, b = BYTES.decode(found).split("|")
    assert first.startswith(a)
    assert second.startswith(b)
    assert len(found) + 2 == min(room, len(first) + len(second) + 3)
    for kept, whole, other in ((a, first, b), (b, second, a)):
        assert kept == whole or len(kept) >= len(other) - 1


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(1, 60))
def test_lengths_are_shortened_to_one_level(lengths: list[int], excess: int) -> None:
    kept = longest_first(lengths, excess)
    one_by_one = list(lengths)
    for _ in range(min(excess, sum(lengths))):
        one_by_one[one_by_one.index(max(one_by_one))] -= 1
    assert sum(kept) == sum(one_by_one)
    assert sorted(kept) == sorted(one_by_one)
    assert all(after <= before for after, before in zip(kept, lengths, strict=True))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_field_is_cut_between_tokens_and_loses_the_blank_there(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    text = "great happy bad 😀😀 sad good"
    for most in range(1, len(ids_of(tokenizer, text)) + 2):
        found = bind(f"{{text:cut={most}}}. It {{answer}}", tokenizer).encode({"text": text}, ROOM)
        kept = decoded(tokenizer, found).removesuffix(". It").removesuffix(".it").strip()
        assert "\ufffd" not in kept
        if name in ("byte_level", "of_bytes"):
            assert text.startswith(kept)
            assert len(ids_of(tokenizer, kept)) <= most


@pytest.mark.parametrize("name", ["byte_level", "sentence_piece", "tiny"])
def test_what_is_kept_are_the_first_tokens_whatever_blanks_the_tokenizer_drops(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    text = "great   happy bad     sad"
    for most in range(1, len(ids_of(tokenizer, text))):
        kept = ids_of(
            tokenizer,
            text[
                : tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"][most - 1][1]
            ].rstrip(),
        )
        assert bind(f"{{text:cut={most}}}{{answer}}", tokenizer).encode({"text": text}, ROOM) == kept
    assert bind("{text:cut=2}{answer}", TOKENIZERS["tiny"]).encode({"text": "a      dog barks"}, ROOM) == ids_of(
        TOKENIZERS["tiny"], "a dog"
    )


def test_a_tokenizer_that_merges_across_blanks_and_marks_is_read_alone_at_each_end() -> None:
    across = crossing()
    assert bind("b{soft*1} b{answer}", across).encode({}, ROOM) == (
        *ids_of(across, "b"),
        -1,
        *ids_of(across, " b"),
    )
    assert bind("b:{answer}", across).answers(["a"]) == (ids_of(across, "a"),)
    assert bind("b {answer}", across).answers(["b"]) == (ids_of(across, " b"),)


def test_half_a_character_is_left_out_whole() -> None:
    bound = bind("{text:cut=6}{answer}", BYTES)
    assert BYTES.decode(bound.encode({"text": "abc😀"}, ROOM)) == "abc"
    assert BYTES.decode(bound.encode({"text": "ab😀"}, ROOM)) == "ab😀"


# --- chats


def test_a_chat_is_laid_out_by_the_models_own_template() -> None:
    text = "[[system]] Be brief.\n[[user]]\n {text:cut} \n[[assistant]] It was {answer}\n"
    bound = bind(text, start_ids=(BPE.bos_token_id,))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "so bad"}]
    laid_out = BPE.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert bound.encode({"text": "so bad"}, ROOM) == ids_of(BPE, f"{laid_out}It was")
    assert bound.answers(["great"]) == (ids_of(BPE, " great"),)
    assert bound.template.is_chat


def test_an_answer_that_is_the_whole_message_has_no_blank() -> None:
    bound = bind("[[user]] {text}\n[[assistant]] {answer}")
    assert bound.answers(["great"]) == (ids_of(BPE, "great"),)


def test_soft_slots_stand_in_any_message_and_fields_are_not_seen_by_the_chat_template() -> None:
    bound = bind(
        '[[system]] {soft}\n[[user]] a {soft*1} {text} {soft:"It was"}\n[[assistant]] {soft*1} {answer}', n_soft=2
    )
    slots = bound.encode({"text": "  {{ messages }} \ue000"}, ROOM)
    starts = ids_of(BPE, " It was")
    assert [slot for slot in slots if slot < 0] == [-1 - place for place in range(4 + len(starts))]
    assert bound.soft_starts == (None, None, None, *starts, None)
    expected = (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\na   {{ messages }} \ue000<|im_end|>\n<|im_start|>assistant\n"
    )
    assert decoded(BPE, slots) == expected


def test_a_field_ends_no_message() -> None:
    bound = bind("[[user]] {text}\n[[assistant]] {answer}")
    honest, wicked = bound.encode({"text": "a"}, ROOM), bound.encode({"text": "a<|im_end|>"}, ROOM)
    assert wicked.count(BPE.eos_token_id) == honest.count(BPE.eos_token_id) == 1


def test_a_chat_reads_the_same_on_another_day() -> None:
    dated = "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}" + CHAT
    assert decoded(BPE, bind("[[user]] a\n[[assistant]]{answer}", byte_level(dated)).encode({}, ROOM)).startswith(
        "26 Jul 2024<|im_start|>"
    )


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        (
            None,
            "the template is a chat, but the tokenizer of this model has no chat template. Write a template without "
            "[[user]] and [[assistant]].",
        ),
        (
            "{{ raise_exception('no system role') }}",
            "the model's chat template refuses these messages: no system role. Change them.",
        ),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            "the model's chat template leaves out, repeats or reorders messages, but each is read once. Write the "
            "template without the message it does not know, often [[system]].",
        ),
    ],
)
def test_a_chat_that_the_model_cannot_have_is_refused(chat: str | None, message: str) -> None:
    with pytest.raises(UserError) as raised:
        bind("[[system]] {soft} x\n[[user]] {text}\n[[assistant]] {answer}", byte_level(chat), n_soft=1)
    assert str(raised.value) == message


@pytest.mark.skipif(not is_fetched("smollm2"), reason="smollm2 was not fetched")
def test_smollm2_reads_a_chat_as_its_own_template_lays_it_out() -> None:
    tokenizer = AutoTokenizer.from_pretrained(packaged_folder("smollm2"))
    laid_out = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Name it: red heart"}], tokenize=True, add_generation_prompt=True
    )["input_ids"]
    bound = bind("[[user]] Name it: {text:cut}\n[[assistant]] {answer}", tokenizer)
    assert bound.encode({"text": "red heart"}, ROOM) == tuple(laid_out)
    assert bound.answers(["heart"]) == (ids_of(tokenizer, "heart"),)


# --- refusals

REFUSED = {
    "{text": "column 1: a { is not closed. Close it with }, or write {{ for a brace.",
    "a } {answer}": "column 3: a } closes nothing. Write }} for a brace.",
    '{soft:"}{answer}': "column 1: a { is not closed. Close it with }, or write {{ for a brace.",
    "{a{b}}{answer}": "column 1: a { is not closed. Close it with }, or write {{ for a brace.",
    "It was": "column 7: there is no {answer}, but a template has one. Add {answer}.",
    "{answer} {bos}": "column 10: {bos} stands behind {answer}, but a text begins with it. Move it there.",
    "{text:rstripp} {answer}": ("column 1: there is no change of a field named 'rstripp'. Did you mean 'rstrip'?"),
    '{text:but-last="."} {answer}': "column 1: but-last takes no letters. Write {text:but-last}.",
    "{bos}a {bos}{answer}": ("column 8: {bos} stands a second time, but a text begins once. Keep the first only."),
    "[[user]] {bos}a\n[[assistant]] {answer}": (
        "line 1, column 10: {bos} stands in a chat, which begins as the model's chat template says. Leave it out."
    ),
    "{soft*0}{answer}": f"column 1: the number of vectors is 0, but 1 to {MAX_VECTORS} was expected. Change it.",
    f"{{soft*{MAX_VECTORS + 1}}}{{answer}}": (
        f"column 1: the number of vectors is {MAX_VECTORS + 1}, but 1 to {MAX_VECTORS} was expected. Change it."
    ),
    f"x {{soft*{'9' * 5000}}}{{answer}}": (
        f"column 3: the number of vectors is 999999999, but 1 to {MAX_VECTORS} was expected. Change it."
    ),
    "{t:cut=0}{answer}": f"column 1: the number after cut= is 0, but 1 to {MAX_TOKENS} was expected. Change it.",
    "{soft} {soft}{answer}": (
        "column 8: {soft} stands a second time, but it holds all vectors of the method. Write {soft*4:name} in both "
        "places for the same vectors, or {soft*4} for more."
    ),
    "{soft*2:a} {soft*3:a}{answer}": (
        "column 12: the soft vectors 'a' were given another number or other words. Write it once, and {soft:a} where "
        "it stands again."
    ),
    "{soft:a}{answer}": "column 1: the soft vectors 'a' are given no number. Write {soft*4:a} in one place.",
    '{soft:" "}{answer}': 'column 1: there are no words between the quotes. Write {soft:"It was"} or {soft*4}.',
    "{soft.x}{answer}": (
        'column 1: {soft.x} is no soft slot. Write {soft}, {soft*4}, {soft*4:name}, {soft:name}, {soft:"words"} or '
        '{soft:"words":name}.'
    ),
    "{text.__class__}{answer}": (
        "column 1: {text.__class__} is no field. Write {name}, {name:cut} or {name:cut=64}, or {{ for a brace."
    ),
    '{"a": 1}{answer}': 'column 1: {"a": 1} is no field. Write {name}, {name:cut} or {name:cut=64}, or {{ for a brace.',
    "{answer:cut}{answer}": (
        "column 1: {answer:cut} is no field. Write {name}, {name:cut} or {name:cut=64}, or {{ for a brace."
    ),
    "a\udc80{answer}": "column 2: half a character (a lone surrogate) stands there. Write it whole.",
    "[[user]] a {answer}": (
        "column 3: the last message is that of the user. End a chat with a line `[[assistant]] {answer}`."
    ),
    "[[user]] a\n[[asistant]] {answer}": (
        "line 2, column 3: there is no role named 'asistant'. Did you mean 'assistant'?"
    ),
    "[[user]] {answer}\n[[assistant]] a": (
        "line 1, column 10: {answer} stands in an earlier message. Move it to the end of the last one."
    ),
}


@pytest.mark.parametrize("text", REFUSED)
def test_bad_syntax_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(UserError) as raised:
        Template.parse(text)
    assert str(raised.value) == f"template, {REFUSED[text]}"


@given(st.text('{}[]softanswer*:"=\n 4cut|').map(lambda text: text + "{answer}"))
def test_every_text_is_a_template_or_refused_with_its_place(text: str) -> None:
    try:
        found = Template.parse(text)
    except UserError as error:
        refusal = str(error)
    else:
        refusal = "template, "
        assert Template.parse(found.text) == found
    assert refusal.startswith("template, ")


@pytest.mark.parametrize(
    ("row", "room", "n_answer", "message"),
    [
        (
            {"txt": "a"},
            ROOM,
            1,
            "the field 'text' is missing: the template reads it, but the row has 'txt'. Give 'text' too, or write the "
            "template's fields as the data names them.",
        ),
        ({"text": 3}, ROOM, 1, "field 'text' is 3, but a text was expected. Write it as a text."),
        (
            {"text": "a \ud800 b"},
            ROOM,
            1,
            r"field 'text' is 'a \ud800 b', but half a character (a lone surrogate) stands in it. Write it whole.",
        ),
        (
            {"text": "It was great"},
            4,
            4,
            "an answer takes 4 tokens, but there is room for 4 with its text. Shorten it, or allow fewer tokens.",
        ),
        (
            {"text": "It was great"},
            6,
            1,
            "the row takes 7 tokens, 2 soft vectors included, but there is room for 5 before the answer. Mark a field "
            "with :cut, as in {text:cut}.",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_refused(row: dict[str, str], room: int, n_answer: int, message: str) -> None:
    with pytest.raises(UserError) as raised:
        bind("{soft*2} {text}. {answer}").encode(row, room, n_answer)
    assert str(raised.value) == message


def test_a_row_that_does_not_fit_even_when_cut_is_refused() -> None:
    with pytest.raises(UserError) as raised:
        bind("{soft*2} {text:cut}. {answer}").encode({"text": "It was"}, 3, 1)
    assert str(raised.value) == (
        "the row takes 4 tokens with all gone that may be cut, 2 soft vectors included, but there is room for 2 before "
        "the answer. Shorten the template or use fewer vectors."
    )


def test_what_gives_no_tokens_is_refused() -> None:
    with pytest.raises(UserError, match=r"^the answer ' ' has no tokens, but one at least is needed. Write a word.$"):
        bind("It was {answer}").answers([" "])
    with pytest.raises(UserError, match=r"^the text before the answer has no tokens, but one at least is read."):
        bind("{text} {answer}").encode({"text": ""}, ROOM)
    with pytest.raises(UserError, match=r"^n_soft is -1, but it must be 0 or more."):
        bind("{soft} {answer}", n_soft=-1)
