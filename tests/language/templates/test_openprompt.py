"""Templates of OpenPrompt become ours, or say why not; their code is never run."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmprompt.cli.main import main
from mmprompt.errors import UserError
from mmprompt.language.templates.openprompt import convert_openprompt, read_openprompt
from mmprompt.language.templates.template import Template


@pytest.mark.parametrize(
    ("line", "template", "behind"),
    [
        ('{"placeholder": "text_a"} is {"mask"}', "{text_a:cut} is {answer}", ""),
        (' {"placeholder":"text_a"} It was {"mask"} .', " {text_a:cut} It was {answer}", " ."),
        ('{"meta":"word", "shortenable": True}? {"mask"}', "{word:cut}? {answer}", ""),
        ('{"meta":"word"} {"mask"}', "{word} {answer}", ""),
        ('{"placeholder":"b","shortenable":False} {"mask"}', "{b} {answer}", ""),
        ('{"placeholder":"b","post_processing": lambda x:x+"."} {"mask"}', "{b:cut}. {answer}", ""),
        (
            '{"soft"}the {"soft": "answer is"} {"mask"} {"soft"}.',
            '{soft*1}the {soft:"answer is"} {answer}',
            " {soft*1}.",
        ),
        ('{"soft": None, "duplicate": 3} {"placeholder": "a"} {"mask"}', "{soft*3} {a:cut} {answer}", ""),
        (
            '{"soft": None, "soft_id": 1} {"placeholder": "a"} {"soft", "soft_id"} {"mask"}',
            "{soft*1:id1} {a:cut} {soft*1} {answer}",
            "",
        ),
        ('{"soft": None, "soft_id": 1} {"soft": None, "soft_id": 1} {"mask"}', "{soft*1:id1} {soft:id1} {answer}", ""),
        ('{"soft": None, "duplicate": 2, "same": True} {"mask"}', "{soft*1:same1} {soft:same1} {answer}", ""),
        ('{"placeholder": "a"} {"text": "\\nA {x}:"} {"mask"}', "{a:cut} \nA {{x}}: {answer}", ""),
    ],
)
def test_a_line_becomes_a_template(line: str, template: str, behind: str) -> None:
    found, notes = convert_openprompt(line)
    assert found == template
    assert notes == ((f"left away behind the answer: {behind!r}",) if behind else ())
    Template.parse(found)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"placeholder": "a"}', "it has 0 masks, but one was expected"),
        ('{"mask"} {"mask"}', "it has 2 masks, but one was expected"),
        ('Just {"mask"} ! {"placeholder": "a"}', "{a:cut} stands behind the mask"),
        ('{"placeholder": "a", "post_processing": lambda s: s[:-1]} {"mask"}', "its post_processing is code, lambda s"),
        ('{"placeholder": "a", "post_processing": lambda s: t+"."} {"mask"}', "its post_processing is code"),
        ('{"placeholder": __import__("os").getcwd()} {"mask"}', "is none of OpenPrompt's"),
        ('{"special": "<sep>"} {"mask"}', "'special' is not known"),
        ('{"placeholder": "a" {"mask"}', "the { at character 1 is not closed"),
    ],
)
def test_a_line_that_cannot_be_ours_says_why(line: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        convert_openprompt(line)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_gives_each_line_or_its_problem(tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text('{"placeholder": "a"} {"mask"}\n\n{"mask"} {"mask"}\n')
    first, second = read_openprompt(path)
    assert (first.line, first.template, first.problem) == (1, "{a:cut} {answer}", None)
    assert (second.line, second.template) == (3, None)
    path.write_text("\n")
    with pytest.raises(UserError, match="holds no template"):
        read_openprompt(path)


def test_the_command_shows_templates_and_what_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "templates.txt"
    path.write_text('{"placeholder": "text"} is {"mask"} .\n{"mask"} {"placeholder": "text"}\n')
    assert main(["llm", "convert", "--from-openprompt", str(path)]) == 0
    said = capsys.readouterr().out
    assert "{text:cut} is {answer}" in said.splitlines()
    assert "stands behind the mask" in said
    assert "1 of 2 lines are converted." in said
    assert main(["llm", "convert", "--from-openprompt", str(path), "--out", str(tmp_path / "x")]) == 2
    path.write_text('{"mask"} {"mask"}\n')
    assert main(["llm", "convert", "--from-openprompt", str(path)]) == 2
    assert "2 masks" in capsys.readouterr().err
