"""The library speaks of settings as Python has them; the command line says its options instead."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import mmprompt
from mmprompt.terminal.parser import in_options, parse, remember, saved_settings


@dataclass(frozen=True)
class Inner:
    n_ctx: int = 4
    out: Path | None = None
    prompts: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    words: str | None = None
    resume: bool = False


@pytest.fixture(autouse=True)
def forgotten() -> None:
    remember(None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Use `n_ctx=4` or less.", "Use --n-ctx 4 or less."),
        ("Leave `words` out.", "Leave --words out."),
        ("Resume it with `resume=True`.", "Resume it with --resume."),
        ("Use `words='fp32'`.", "Use --words fp32."),
        ('Use `words="the mood is"`.', 'Use --words "the mood is".'),
        ("Use `inner=4` or `depth=3`.", "Use `inner=4` or `depth=3`."),
        ("See `mmprompt train --help`.", "See `mmprompt train --help`."),
    ],
)
def test_a_setting_that_the_verb_has_is_said_as_its_option(text: str, said: str) -> None:
    parse(Outer, [], "mmprompt verb", "Does something.")
    assert in_options(text) == said


def test_a_tilde_that_the_shell_left_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "saved.yaml").write_text("words: the mood is\n")
    arguments = ["--out=~/run", "--prompts=~/one", "--config=~/saved.yaml"]
    read = parse(Outer, arguments, "mmprompt verb", "Does something.", saved=saved_settings(arguments))
    assert (read.inner.out, read.inner.prompts) == (tmp_path / "run", (tmp_path / "one",))
    assert read.words == "the mood is"


def test_where_no_verb_runs_nothing_is_an_option() -> None:
    assert in_options("Give another `words`.") == "Give another `words`."


def test_the_library_gives_no_advice_in_options() -> None:
    package = Path(mmprompt.__file__).parent
    advice = re.compile(r"\b(Use|Leave|Leave out|[Gg]ive( another| other)?|Write|Add) --[a-z{]")
    library = [path for path in package.rglob("*.py") if not {"cli", "cli.py", "terminal"} & set(path.parts)]
    assert [path.name for path in library if advice.search(path.read_text())] == []
