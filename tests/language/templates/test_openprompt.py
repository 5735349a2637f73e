"""Templates of OpenPrompt become ours, or say why not; their code is never run."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmprompt.cli.main import main
from mmprompt.errors import UserError
from mmprompt.language.templates.openprompt import convert_openprompt, read_openprompt
from mmprompt.language.templates.template import Template


@pytest.mark.parametrize(
    ("line", "template"),
    [
        ('{"placeholder": "text_a"} is {"mask"}', "{text_a:cut} is {answer}"),
        (' {"placeholder":"text_a"} It was {"mask"} .', " {text_a:cut} It was {answer} ."),
        ('Just {"mask"} ! {"placeholder": "a"}', "Just {answer} ! {a:cut}"),
        ('{"mask"} of {"meta": "b"} and {"mask"} {"mask"}', "{answer} of {b} and {answer} {answer}"),
        ('{"meta":"word", "shortenable": True}? {"mask"}', "{word:cut}? {answer}"),
        ('{"meta":"word"} {"mask"}', "{word} {answer}"),
        ('{"placeholder":"b","shortenable":False} {"mask"}', "{b} {answer}"),
        ('{"soft"}the {"soft": "answer is"} {"mask"} {"soft"}.', '{soft*1}the {soft:"answer is"} {answer} {soft*1}.'),
        ('{"soft": None, "duplicate": 3} {"placeholder": "a"} {"mask"}', "{soft*3} {a:cut} {answer}"),
        (
            '{"soft": None, "soft_id": 1} {"placeholder": "a"} {"soft", "soft_id"} {"mask"}',
            "{soft*1:id1} {a:cut} {soft*1} {answer}",
        ),
        ('{"soft": None, "soft_id": 1} {"soft": None, "soft_id": 1} {"mask"}', "{soft*1:id1} {soft:id1} {answer}"),
        ('{"soft": None, "duplicate": 2, "same": True} {"mask"}', "{soft*1:same1} {soft:same1} {answer}"),
        ('{"soft": "It was", "duplicate": 3, "same": True} {"mask"}', '{soft:"It was"} {answer}'),
        (
            '{"soft": None, "duplicate": 2, "same": True, "soft_id": 1} {"mask"} {"soft": "by", "soft_id": 1}',
            "{soft*1:id1} {soft:id1} {answer} {soft:id1} {soft:id1}",
        ),
        ('{"soft": None, "soft_id": 1} {"soft_id": 1} {"mask"}', "{soft*1:id1} {soft:id1} {answer}"),
        ('{"soft_id": 2} {"mask"}', "{soft*1:id2} {answer}"),
        ('{"placeholder": "a"} {"text": "\\nA {x}:"} {"mask"}', "{a:cut} \nA {{x}}: {answer}"),
    ],
)
def test_a_line_becomes_a_template(line: str, template: str) -> None:
    assert convert_openprompt(line) == (template, ())
    Template.parse(template)


@pytest.mark.parametrize(
    ("code", "field", "read"),
    [
        ('lambda x:x+"."', "{b:cut}.", "So, it is!."),
        ("lambda s: s[:-1]", "{b:cut:but-last}", "So, it is"),
        ("lambda s: s[:1].lower() + s[1:]", "{b:cut:first-lower}", "so, it is!"),
        ("lambda s: s[0].lower()+s[1:]", "{b:cut:first-lower}", "so, it is!"),
        ("\"lambda x:x.strip('S!')\"", '{b:cut:strip="S!"}', "o, it is"),
        ("lambda s: s.rstrip(string.punctuation)", "{b:cut:rstrip}", "So, it is"),
        ("lambda t: t.rstrip('!') + '{?}'", '{b:cut:rstrip="!"}{{?}}', "So, it is{?}"),
        ("lambda x: x", "{b:cut}", "So, it is!"),
    ],
)
def test_known_code_becomes_a_change_of_the_field(code: str, field: str, read: str) -> None:
    found, notes = convert_openprompt(f'{{"placeholder": "b", "post_processing": {code}}} {{"mask"}}')
    assert (found, notes) == (f"{field} {{answer}}", ())
    parts = Template.parse(found).messages[0].parts
    texts = [part if isinstance(part, str) else part.read("So, it is!") for part in parts]
    assert "".join(texts) == f"{read} "


def test_a_list_that_is_joined_is_said_to_be_the_datas_to_join() -> None:
    line = '{"meta": "turns", "post_processing": lambda x: "; ".join(x)} {"mask"}'
    assert convert_openprompt(line) == (
        "{turns} {answer}",
        ("turns is a list there; give a text of its parts, with '; ' between them",),
    )


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"placeholder": "a"}', "it has no mask"),
        ('{"placeholder": "a", "post_processing": lambda s: s[:-2]} {"mask"}', "not known, lambda s: s[:-2]"),
        ('{"placeholder": "a", "post_processing": lambda s: t+"."} {"mask"}', "not known, lambda s: t + '.'"),
        ('{"placeholder": "a", "post_processing": lambda s: x[:-1]} {"mask"}', "not known, lambda s: x[:-1]"),
        ('{"placeholder": "a", "post_processing": lambda s, t: s} {"mask"}', "not known, lambda s, t: s"),
        ('{"placeholder": "a", "post_processing": lambda s: s.strip(\'"\')} {"mask"}', "not known, lambda s: s.strip("),
        ('{"placeholder": "a", "post_processing": "mlp"} {"mask"}', "is code that is not known, mlp"),
        ('{"soft": None, "post_processing": "mlp"} {"mask"}', "soft has a post_processing, but a field alone"),
        ('{"placeholder": __import__("os").getcwd()} {"mask"}', "is none of OpenPrompt's"),
        ('{"special": "<sep>"} {"mask"}', "'<sep>' stands for a token that each model has of its own"),
        ('{"colour": "red"} {"mask"}', "'colour' is not known"),
        ('{"placeholder": "a" {"mask"}', "the { at character 1 is not closed"),
        (
            '{"soft": "", "same": True, "duplicate": "4"} {"mask"}',
            "duplicate is '4', but a whole number from 1 to 1024",
        ),
        ('{"soft", "duplicate", "same"} {"mask"}', "duplicate is None, but a whole number from 1 to 1024"),
        ('{"soft": None, "duplicate": 0} {"mask"}', "duplicate is 0, but a whole number from 1 to 1024"),
        ('{"soft": None, "duplicate": 10**9, "same": True} {"mask"}', "is none of OpenPrompt's"),
        ('{"soft": None, "duplicate": 999999999, "same": True} {"mask"}', "duplicate is 999999999, but a whole number"),
        ('{"soft": "He said \\"x\\""} {"mask"}', "is no soft slot. Write {soft}"),
        ('{"soft": None, "soft_id": "a b"} {"mask"}', "{soft*1:ida b} is no soft slot"),
        ('{"placeholder": ["text_a"]} {"mask"}', "'placeholder' is ['text_a'], but a text was expected"),
        ('{"soft_id"} {"mask"}', "['soft_id'] name no place"),
        ('{"placeholder"} {"mask"}', "'placeholder' is None, but a text was expected"),
        ('{"text"} {"mask"}', "'text' is None, but a text was expected"),
        ('{"meta": "answer"} {"mask"}', "its field 'answer' has a name that means something else here"),
        ('{"placeholder": "soft", "shortenable": False} {"mask"}', "its field 'soft' has a name that means something"),
    ],
)
def test_a_line_that_cannot_be_ours_says_why(line: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        convert_openprompt(line)
    assert problem in str(caught.value)
    assert str(caught.value).endswith("docs/language.md says.")
    assert ".." not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_gives_each_line_or_its_problem(tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text('{"placeholder": "a"} {"mask"}\n\n{"placeholder": "a"}\n')
    first, second = read_openprompt(path)
    assert (first.line, first.template, first.problem) == (1, "{a:cut} {answer}", None)
    assert (second.line, second.template) == (3, None)
    path.write_text("\n")
    with pytest.raises(UserError, match="holds no template"):
        read_openprompt(path)


def test_the_command_shows_templates_and_what_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "templates.txt"
    path.write_text('{"placeholder": "text"} is {"mask"} .\n{"special": "<cls>"} {"mask"} {"placeholder": "text"}\n')
    assert main(["llm", "convert", "--from-openprompt", str(path)]) == 0
    said = capsys.readouterr().out
    assert "{text:cut} is {answer} ." in said.splitlines()
    assert "stands for a token" in said
    assert "1 of 2 lines are converted." in said
    assert main(["llm", "convert", "--from-openprompt", str(path), "--out", str(tmp_path / "x")]) == 2
    path.write_text('{"placeholder": "text"}\n')
    assert main(["llm", "convert", "--from-openprompt", str(path)]) == 2
    assert "it has no mask" in capsys.readouterr().err
