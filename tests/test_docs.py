"""The Python in README and docs runs, page by page, from top to bottom."""

import re
from pathlib import Path

import pytest

from mmprompt.classification.methods import METHODS

ROOT = Path(__file__).parents[1]
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if page.exists()]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search(p.read_text())], ids=lambda page: page.name)
def test_code_on_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in BLOCK.findall(page.read_text()):
        exec(compile(block, page.name, "exec"), namespace)
    assert namespace


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
