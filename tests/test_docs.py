"""The Python in README and docs runs, page by page, from top to bottom."""

import functools
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mmprompt as mp
from mmprompt.classification.methods import METHODS

ROOT = Path(__file__).parents[1]
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if page.exists()]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
WITH_PHOTO = re.compile(r"^```python photo\n(.*?)^```", re.MULTILINE | re.DOTALL)
WITH_A_HUB = re.compile(r"^```python hub\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a reader stands: with images of their own."""
    draw = np.random.default_rng(0)
    for place in ("my/pictures/lobster", "my/pictures/tree", "my/photos/lobster", "my/photos/tree"):
        (tmp_path / place).mkdir(parents=True)
        for number in range(12):
            pixels = draw.integers(0, 128, (32, 32, 3)) + (127 if "tree" in place else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / place / f"{number}.png")
    Image.fromarray(draw.integers(0, 128, (32, 32, 3)).astype(np.uint8)).save(tmp_path / "new.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pages_with(kind):
    return pytest.mark.parametrize("page", [p for p in PAGES if kind.search(p.read_text())], ids=lambda page: page.name)


def fit_shortly(fit, *args, epochs=None, n_steps=None, **more):
    """A training of an epoch, or of a step where its length is said in steps; of what takes none, as it is."""
    try:
        return fit(*args, **more, **({"epochs": 1} if n_steps is None else {"n_steps": 1}))
    except mp.UserError as error:
        if "not trained by steps" not in str(error):
            raise
        return fit(*args, **more)


def run_blocks(kind, page):
    namespace = {}
    for block in kind.findall(page.read_text()):
        exec(compile(block, page.name, "exec"), namespace)
    assert namespace


@pytest.mark.usefixtures("kept_features", "blank_figures")
@pages_with(BLOCK)
def test_code_on_the_page_runs(page, folder, monkeypatch):
    monkeypatch.setattr(mp, "fit", functools.partial(fit_shortly, mp.fit))
    run_blocks(BLOCK, page)


@pages_with(WITH_PHOTO)
def test_code_that_needs_photo_runs(page, folder):
    try:
        mp.load_backbone("photo")
    except mp.UserError as error:
        pytest.skip(str(error))
    run_blocks(WITH_PHOTO, page)


@pages_with(WITH_A_HUB)
def test_code_that_needs_a_hub_says_what_is_missing(page, folder):
    for block in WITH_A_HUB.findall(page.read_text()):
        for line in block.splitlines():
            with pytest.raises(mp.UserError, match=r"\. "):
                exec(line, {"mp": mp})


def test_no_code_is_left_out():
    kinds = {kind for page in PAGES for kind in re.findall(r"^```python ?(\w*)", page.read_text(), re.MULTILINE)}
    assert kinds == {"", "photo", "hub"}


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
