"""The Python in README and docs runs, page by page, from top to bottom."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from mmprompt.classification.methods import METHODS
from mmprompt.cli.main import VERBS, main

ROOT = Path(__file__).parents[1]
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if page.exists()]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search(p.read_text())], ids=lambda page: page.name)
def test_code_on_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in BLOCK.findall(page.read_text()):
        exec(compile(block, page.name, "exec"), namespace)
    assert namespace


def commands_on(page):
    """The words of every command line on a page, one line each."""
    for block in COMMANDS.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["torchrun", "--standalone"] or words[:2] == ["accelerate", "launch"]:
                words = words[words.index("-m") + 1 :]
            yield [word for word in words if word not in ("$", "...")]


def options_of(words):
    return {word.split("=")[0] for word in words if re.match(r"--[a-z]", word)}


@cache
def help_of(verb, method):
    """What `mmprompt VERB --help` says, with the options of a method."""
    import contextlib
    import io

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([*verb.split(), *(["--method", method] if method else []), "--help"])
    return set(re.findall(r"--[a-z][a-z-]*", text.getvalue()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_on_the_page_are_known_with_their_options(page):
    for words in commands_on(page):
        if words[:1] == ["python"] and words[1:2] and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), words
            source = (ROOT / words[1]).read_text() + (ROOT / "scripts/bench/measure.py").read_text()
            unknown = {
                one for one in options_of(words) if one[2:].replace("-", "_") not in source and one not in source
            }
            assert unknown == set(), " ".join(words)
        if words[:1] == ["mmprompt"] and words[1:2] and not words[1].startswith("-"):
            verb = next((name for name in (" ".join(words[1:3]), words[1]) if name in VERBS), None)
            assert verb, " ".join(words)
            method = words[words.index("--method") + 1] if "--method" in words and "," not in " ".join(words) else ""
            assert options_of(words) - help_of(verb, method) == set(), " ".join(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target


def test_a_method_of_your_own_is_short():
    code = BLOCK.findall((ROOT / "docs" / "your_own_method.md").read_text())[0]
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("import ", "from "))]
    assert len(lines) < 40


def test_the_page_of_methods_has_every_method():
    page = (ROOT / "docs" / "methods.md").read_text()
    assert [name for name in METHODS if not re.search(rf"^\| `{re.escape(name)}` \|", page, re.MULTILINE)] == []
