"""Templates of PromptSource: read as its files are written, and what a wicked one is kept from."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmprompt.errors import UserError
from mmprompt.language.data import TextData, TextRow
from mmprompt.language.templates import promptsource
from mmprompt.language.templates.promptsource import TEMPLATE, JinjaTemplate, Prompted, read_promptsource
from mmprompt.language.templates.template import Template
from tests.text_tokenizers import byte_level

FILE = r"""dataset: moods
subset: small
templates:
  0edd8660-f299-4819-a5ac-633c11177228: !Template
    answer_choices: bad ||| good
    id: 0edd8660-f299-4819-a5ac-633c11177228
    jinja: "How does this sound?\n{{ text }} |||\n{{ answer_choices[label] }}"
    metadata: &id001 !TemplateMetadata
      choices_in_prompt: false
      languages:
      - en
      metrics:
      - Accuracy
      original_task: true
    name: how it sounds
    reference: ''
  150789fe-e309-47a1-82c9-0a4dc2c6b12b: !Template
    answer_choices: null
    id: 150789fe-e309-47a1-82c9-0a4dc2c6b12b
    jinja: '{% if label == 1 %}

      Write something {{ "good" | upper }}. ||| {{ text }}

      {% endif %}'
    metadata: *id001
    name: no
    reference: a colleague
"""
DATA = TextData(
    "moods",
    train=(TextRow({"text": "I like it"}, "good"), TextRow({"text": "I left"}, "bad")),
    val=(),
    test=(TextRow({"text": "So sad"}, "bad", task="t"), TextRow({"text": "So nice"}, "good")),
    labels=("bad", "good"),
    verbalizer={"bad": ["x"], "good": ["y"]},
    instructions=("{text} {answer}",),
)


def write(folder: Path, text: str) -> Path:
    (folder / "templates.yaml").write_text(text, encoding="utf-8")
    return folder / "templates.yaml"


def apply(jinja: str, row: dict[str, Any] | None = None, choices: str | None = None) -> Prompted | None:
    return JinjaTemplate("x", jinja, choices).apply({} if row is None else row)


def input_of(jinja: str, row: dict[str, Any] | None = None, truncate: bool = False) -> str:
    found = JinjaTemplate("x", f"-{jinja}-|||t").apply({} if row is None else row, truncate)
    assert found is not None
    return found.input[1:-1]


# --- reading


def test_a_file_is_read_as_it_is_written(tmp_path: Path) -> None:
    templates = read_promptsource(write(tmp_path, FILE))
    assert list(templates) == ["how it sounds", "no"]
    first = templates["how it sounds"]
    assert first == JinjaTemplate(
        "how it sounds",
        "How does this sound?\n{{ text }} |||\n{{ answer_choices[label] }}",
        "bad ||| good",
        "",
        True,
        False,
        ("Accuracy",),
        ("en",),
    )
    assert templates["no"].metrics == ("Accuracy",)
    assert templates["no"].reference == "a colleague"
    assert first.apply({"text": "So sad", "label": 0}) == Prompted(
        "How does this sound?\nSo sad", "bad", ("bad", "good")
    )
    assert templates["no"].apply({"text": "So sad", "label": 0}) is None
    assert templates["no"].apply({"text": "fine", "label": 1}) == Prompted("Write something GOOD.", "fine")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("!TemplateMetadata", "!!python/object/apply:os.system", "line 8: could not determine a constructor"),
        (
            "!Template\n    answer_choices: null",
            "!Other\n    answer_choices: null",
            "line 17: uses the tag !Other. Correct",
        ),
        ("id: 0edd", "id: &a 0edd", "line 6: uses an anchor or alias. Correct it."),
        ("name: no", "name: how it sounds", ": has two templates named 'how it sounds'. Rename one."),
        ("    jinja: '{%", "    jinjo: '{%", ": there is no key named 'jinjo'. Did you mean 'jinja'?"),
        ("    name: no\n", "", ": lacks the key 'name'. Add it."),
        ("original_task: true", "original_task: maybe", ": metadata.original_task is 'maybe', but input should be"),
        ("templates:", "template:", ": holds no templates of PromptSource. Give a templates.yaml, with a mapping"),
        ("metadata: *id001", "metadata: *id002", "line 25: found undefined alias 'id002'. Correct it."),
        ("templates:", "more: !Template\n  - a: b\ntemplates:", "line 3: expected a mapping node, but found sequence"),
        ("templates:", "more: !Template ab\ntemplates:", "line 3: expected a mapping node, but found scalar"),
    ],
)
def test_a_file_of_another_form_is_refused_in_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in FILE
    path = write(tmp_path, FILE.replace(old, new))
    with pytest.raises(UserError) as raised:
        read_promptsource(path)
    text = str(raised.value).removeprefix(str(path)).removeprefix(", ")
    assert text.startswith(message)


def test_metadata_that_holds_itself_is_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path, "templates:\n  a: !Template\n    name: a\n    metadata: &b !TemplateMetadata\n      metadata: *b\n"
    )
    with pytest.raises(UserError, match="recursive"):
        read_promptsource(path)


# --- applying


def test_the_divider_in_the_data_divides_nothing() -> None:
    row = {"text": "a ||| b", "options": ["x ||| y", "z"], "label": 0}
    assert apply("{{ text }} ||| {{ answer_choices[label] }}", row, "{{ options | join('|||') }}") == Prompted(
        "a ||| b", "x ||| y", ("x ||| y", "z")
    )


def test_the_divider_may_stand_within_a_condition() -> None:
    jinja = "{% if a %}{{ a }} ||| yes{% else %}none ||| no{% endif %}"
    assert apply(jinja, {"a": "x"}) == Prompted("x", "yes")
    assert apply(jinja, {"a": ""}) == Prompted("none", "no")


@pytest.mark.parametrize(
    ("jinja", "row", "expected"),
    [
        (
            "{% set ns = namespace(n=0) %}{% for x in xs %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}",
            {"xs": [1, 2]},
            "3",
        ),
        (
            "{% for x in xs %}{{ loop.index }}{{ x }}{% if not loop.last %},{% endif %}{% endfor %}",
            {"xs": "ab"},
            "1a,2b",
        ),
        ("{% for a, b in zip(xs, ys) %}{{ a }}{{ b }} {% endfor %}", {"xs": "ab", "ys": "cd"}, "ac bd "),
        ("{% set _ = xs.append('c') %}{{ xs | join(', ') }}", {"xs": ["a"]}, "a, c"),
        ("{{ text.split(' ')[1:] | map('capitalize') | list | first }}", {"text": "a b c"}, "B"),
        ("{{ xs | selectattr('n', 'equalto', 2) | map(attribute='t') | join }}", {"xs": [{"n": 2, "t": "z"}]}, "z"),
        ("{{ d.items() | list | length }}{{ d['a'] }}{{ d.a }}", {"d": {"a": 1}}, "111"),
        (
            "{{ text | replace('a', 'b') }}{{ text.replace('a', 'c') }}{{ ', '.join(['x', 'y']) }}",
            {"text": "a"},
            "bcx, y",
        ),
        ("{{ 'n' in text and missing is not defined }}{{ missing | default('d') }}", {"text": "n"}, "Trued"),
        ("{{ '%.1f and %s' | format(2.55, text) }}{{ 3.14159 | round(2) }}", {"text": "n"}, "2.5 and n3.14"),
        ("{{ range(3) | list }}{{ 7 // 2 }}{{ 7 % 4 }}{{ (-2) | abs }}{{ [1] + [2] }}", {}, "[0, 1, 2]332[1, 2]"),
        ("{{ ['b', 'a', 'b'] | most_frequent }}{{ ['b', 'a', 'b'] | unique | sort }}", {}, "['b']['a', 'b']"),
    ],
)
def test_what_promptsource_uses_works(jinja: str, row: dict[str, Any], expected: str) -> None:
    assert input_of(jinja, row) == expected


def test_choice_and_random_draw_as_the_row_says() -> None:
    jinja = "{{ range(1000) | list | choice }} {{ range(1000) | random }}"
    drawn = [input_of(jinja, {"text": text}) for text in "abcabc"]
    assert drawn[:3] == drawn[3:]
    assert len(set(drawn)) == 3
    assert len({number for pair in drawn for number in pair.split()}) == 6


def test_values_that_are_missing_are_empty() -> None:
    assert input_of("{{ missing }}{% for x in missing %}x{% endfor %}", truncate=True) == ""
    assert apply("{{ missing }} ||| b") is None


def test_values_that_are_missing_may_be_refused_by_name() -> None:
    template = JinjaTemplate("strict", "{{ text }}{{ mising }} ||| b")
    assert template.apply({"text": "a"}) == Prompted("a", "b")
    with pytest.raises(UserError, match="'mising' is undefined"):
        template.apply({"text": "a"}, lenient=False)
    data = TextData("small", *[(TextRow({"text": "a"}, answer="x"),)] * 3)
    assert template.to_texts(data).train[0].fields == {"input": "a"}
    with pytest.raises(UserError, match="'mising' is undefined"):
        template.to_texts(data, lenient=False)


@pytest.mark.parametrize("jinja", ["{{ text }}", "{{ text -}} ", "{% if {'a': {'b': 1}}['a'] %}{{ text }}{% endif %}"])
def test_a_long_value_is_cut_at_a_word_unless_that_is_switched_off(jinja: str) -> None:
    text = "word " * 500
    assert input_of(jinja, {"text": text}, truncate=True) == "word " * 408 + "word..."
    assert input_of(jinja, {"text": text}) == text
    assert input_of(jinja, {"text": "a" * 2053}, truncate=True) == "a" * 2053  # a few more are not worth a cut
    data = TextData("d", (TextRow({"text": text}, answer="x"),), (), (TextRow({"text": "b"}, answer="y"),))
    template = JinjaTemplate("x", f"{jinja} ||| {{{{ answer }}}}")
    for truncate, length in ((True, 2047), (False, 2499)):
        assert len(template.to_texts(data, truncate=truncate).train[0].fields["input"]) == length


def test_the_cut_counts_for_the_last_operand_as_in_promptsource() -> None:
    assert input_of("{{ text ~ 1 }}", {"text": "a" * 3000}, truncate=True) == "a" * 3000 + "1"
    assert input_of("{{ 'a' + 1 }}", truncate=True) == "a1"


def test_a_template_changes_nothing_of_the_row() -> None:
    row = {"xs": [1]}
    assert apply("{% set _ = xs.append(2) %}{{ xs }} ||| {{ xs | length }}", row) == Prompted("[1, 2]", "2")
    assert row == {"xs": [1]}


# --- wicked templates

ATTACKS = {
    "attributes": "{{ ''.__class__.__mro__ }}",
    "attributes by name": "{{ ''['__class__'] }}",
    "attr filter": "{{ '' | attr('__class__') }}",
    "format reaches attributes": "{{ '{0.__class__}'.format('') }}",
    "globals": "{{ range.__globals__ }}",
    "a namespace's class": "{{ namespace.__init__.__globals__ }}",
    "loop's": "{% for x in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "self": "{{ self.__init__.__globals__ }}",
    "cycler": "{{ cycler.__init__.__globals__.os }}",
    "import": "{% import 'os' as os %}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends 'x' %}",
    "a list that grows in its own loop": "{% set l = [1] %}{% for x in l %}{% set _ = l.append(x) %}{% endfor %}",
    "macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "recursive loop": "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
    "nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a large range": "{% for a in range(10 * 1000 * 1000 * 1000) %}{% endfor %}",
    "lists doubled": "{% set a = [1, 1] %}" + "{% set a = [a, a] %}" * 60 + "{{ a }}",
    "dicts doubled": "{% set a = 1 %}" + "{% set a = {1: a, 2: a} %}" * 60 + "{{ a }}",
    "tuples doubled": "{% set a = 1 %}" + "{% set a = (a, a) %}" * 60 + "{{ a }}",
    "texts doubled": "{% set a = 'aaaa' %}" + "{% set a = a + a %}" * 60 + "{{ a }}",
    "texts joined": "{% set a = 'aaaa' %}" + "{% set a = a ~ a %}" * 60 + "{{ a }}",
    "numbers squared": "{% set a = 99999999 %}" + "{% set a = a * a %}" * 60 + "{{ a }}",
    "lists extended": "{% set a = [1] %}" + "{% set _ = a.extend(a) %}" * 60 + "{{ a }}",
    "lists appended": "{% set a = [1] %}{% for x in range(99999) %}{% set _ = a.append(a.copy()) %}{% endfor %}",
    "a text multiplied": "{{ 'a' * 10000000000 }}",
    "a list multiplied": "{{ [1] * 10000000000 }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a wide format": "{{ '%9999999999d' | format(1) }}",
    "a wide percent": "{{ '%9999999999d' % 1 }}",
    "center": "{{ 'a' | center(9999999999) }}",
    "ljust": "{{ 'a'.ljust(9999999999) }}",
    "zfill": "{{ 'a'.zfill(9999999999) }}",
    "indent": "{{ 'a' | indent(9999999999) }}",
    "replace": "{{ text.replace('', text).replace('', text).replace('', text) }}",
    "replace filter": "{{ text | replace('', text) | replace('', text) | replace('', text) }}",
    "join": "{{ text.join(text).join(text).join(text) }}",
    "join filter": "{{ text | join(text) | join(text) | join(text) }}",
    "a list searched in a loop": "{% for x in range(99999) %}{% if x in numbers %}{% endif %}{% endfor %}",
    "a slice in a loop": "{% for x in [0] * 999999 %}{% set y = d.l[1:] %}{% endfor %}",
    "a long output": "{% for x in range(9999) %}" + "abcdefgh" * 200 + "{% endfor %}",
    "a long template": "a" * 30_000,
    "deep brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep lists": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "a long number": "{{ " + "9" * 9000 + " }}",
    "lipsum": "{{ lipsum(n=99999) }}",
    "bad syntax": "{% if %}",
    "division by zero": "{{ 1 / 0 }}",
    "three parts": "a ||| b ||| c",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_wicked_template_is_refused_in_one_line_and_soon(name: str) -> None:
    row = {"text": "a" * 1000, "numbers": [*range(9999)], "d": {"l": [0] * 9999}}
    begun = time.monotonic()
    with pytest.raises(UserError) as raised:
        JinjaTemplate("x", f"{ATTACKS[name]} ||| b").apply(row, truncate=False)
    assert time.monotonic() - begun < 60  # no measurement: without its limits each of them takes hours, or all memory
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("the template 'x' cannot be used: ")
    assert len(str(raised.value)) < 350


@pytest.mark.parametrize(
    ("jinja", "reason"),
    [
        ("{{ ''.__class__ }}", "SecurityError: access to attribute '__class__' of 'str' object is unsafe"),
        ("{% set l = [1] %}{% for x in l %}{% set _ = l.append(x) %}{% endfor %}", "it takes too much time or memory"),
        ("{% set a = 'a' * 999999999 %}", "it takes more than 512 MB"),
        ("{% for x in range(99999) %}abcdefghijklm{% endfor %}", "it writes more than 1000000 characters"),
        ("{{ text.words.first }}", "UndefinedError: 'text' is undefined"),
        ("a ||| b", "it gives 3 parts where input and target were expected"),
    ],
)
def test_a_refusal_says_what_was_wrong(jinja: str, reason: str) -> None:
    with pytest.raises(UserError) as raised:
        apply(f"{jinja} ||| b")
    assert str(raised.value) == f"the template 'x' cannot be used: {reason}. Correct it, or choose another."


def test_a_filter_reaches_no_attribute() -> None:
    written = apply("{{ ['', ''] | map(attribute='__class__') | map('default', 'none') | join }} ||| b")
    assert written is not None
    assert written.input == "nonenone"


def test_what_renders_templates_can_open_and_write_no_file() -> None:
    resource = pytest.importorskip("resource", reason="Windows has no such limits")
    assert input_of("{{ 1 }}") == "1"
    process = promptsource._child(os.getpid())._process
    assert process is not None
    limits = [resource.prlimit(process.pid, kind) for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)]
    assert limits == [(3, 3), (0, 0)]


def test_one_process_renders_many_rows_and_another_goes_on_where_it_was_ended() -> None:
    process = promptsource._child(os.getpid())._process
    assert [input_of("{{ n }}", {"n": n}) for n in range(50)] == [*map(str, range(50))]
    assert promptsource._child(os.getpid())._process is process
    with pytest.raises(UserError, match="it takes too much time"):
        apply(f"{ATTACKS['nested ranges']} ||| b")
    assert input_of("{{ n }}", {"n": 1}) == "1"
    assert promptsource._child(os.getpid())._process is not process


@settings(max_examples=30)
@given(st.text("{}%|[]'ab .+", max_size=30))
def test_every_text_is_a_template_or_refused(text: str) -> None:
    try:
        apply(text, {"a": "x"})
    except UserError as error:
        refusal = str(error)
    else:
        refusal = "the template 'x' cannot be used"
    assert refusal.startswith("the template 'x' cannot be used")


def test_a_row_of_other_things_is_refused() -> None:
    with pytest.raises(UserError, match=r"^a row holds what is no plain value: .* is not JSON serializable\."):
        apply("a ||| b", {"x": object()})
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(UserError, match=r"^a row holds what is no plain value: it is nested too deeply\. Give texts"):
        apply("a ||| b", {"x": deep})
    with pytest.raises(UserError, match="the row has a field answer_choices, which is the name of the template's own"):
        apply("a ||| b", {"answer_choices": "x"})


def test_without_jinja2_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError) as raised:
        apply("a ||| b")
    assert str(raised.value) == 'templates of PromptSource need jinja2. Install it: pip install "mmprompt[llm]".'


# --- rows for training


def test_rows_become_inputs_with_the_choices_as_labels(tmp_path: Path) -> None:
    found = read_promptsource(write(tmp_path, FILE))["how it sounds"].to_texts(DATA)
    assert found.train == (
        TextRow({"input": "How does this sound?\nI like it"}, "good"),
        TextRow({"input": "How does this sound?\nI left"}, "bad"),
    )
    assert found.test[0] == TextRow({"input": "How does this sound?\nSo sad"}, "bad", task="t")
    assert (found.labels, found.verbalizer, found.template, found.instructions) == (("bad", "good"), None, TEMPLATE, ())
    bound = Template.parse(TEMPLATE).with_soft(2).bind(byte_level())
    assert bound.encode(found.train[0].fields, 100)[:2] == (-1, -2)


def test_labels_are_counted_as_they_are_told_and_numbers_as_they_are() -> None:
    template = JinjaTemplate("x", "{{ text }} ||| {{ answer_choices[label] }}", "no ||| yes")
    assert [row.label for row in template.to_texts(DATA, ["good", "bad"]).train] == ["no", "yes"]
    numbered = TextData("n", (TextRow({"text": "a"}, "1"),), (), (TextRow({"text": "b"}, "0"),), ("0", "1"))
    assert template.to_texts(numbered).train[0].label == "yes"
    with pytest.raises(UserError, match=r"^there is no label named 'bad'\. .* Name every label of the data\.$"):
        template.to_texts(DATA, ["good"])


def test_free_answers_and_rows_with_their_own_choices_are_generated(tmp_path: Path) -> None:
    data = TextData(
        "q",
        (TextRow({"a": "x", "b": "y"}, answer="0"), TextRow({"a": "v", "b": "w"}, answer="1")),
        (),
        (TextRow({"a": "p", "b": "q"}, answer="1"),),
    )
    template = JinjaTemplate("x", "{{ a }} or {{ b }}? ||| {{ answer_choices[answer | int] }}", "{{ a }} ||| {{ b }}")
    assert template.to_texts(data).train == (
        TextRow({"input": "x or y?"}, answer="x"),
        TextRow({"input": "v or w?"}, answer="w"),
    )
    assert template.to_texts(data).labels == ()


def test_rows_that_the_template_is_not_for_are_left_out_and_said(tmp_path: Path) -> None:
    template = read_promptsource(write(tmp_path, FILE))["no"]
    found = template.to_texts(DATA)
    assert found.train == (TextRow({"input": "Write something GOOD."}, answer="I like it"),)
    assert found.notes == ("Rows that the template 'no' is for: 2 of 4.",)
    with pytest.raises(UserError) as raised:
        template.to_texts(DATA, ["other", "more", "bad", "good"])
    assert str(raised.value) == (
        "the template 'no' cannot be used: it is for none of the 2 train rows of moods. Correct it, or choose another."
    )
