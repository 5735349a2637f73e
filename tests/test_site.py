"""The documentation site: it builds without a warning, has every page, and asks nobody for anything."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.browsers import CHROMIUM

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_every_page_is_there_and_in_the_contents(site):
    contents = (site / "index.html").read_text()
    pages = sorted(page.relative_to(ROOT / "docs").with_suffix(".html") for page in (ROOT / "docs").rglob("*.md"))
    assert [page for page in pages if not (site / page).exists()] == []
    assert [page for page in pages if f'href="{page.as_posix()}"' not in contents] == []


def test_every_public_name_is_in_the_reference(site):
    import mmprompt as mp

    page = (site / "api" / "index.html").read_text()
    classes = [name for name in mp.__all__ if name[0].isupper() and not name.isupper()]
    assert [name for name in classes if f">{name}" not in page and f".{name}" not in page] == []


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")
def test_it_finds_words_and_asks_nobody_else(site, serve_folder):
    playwright = pytest.importorskip("playwright.sync_api")
    asked, errors, address = [], [], serve_folder(site)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(f"{address}/index.html")
        page.get_by_role("textbox", name="Search").fill("harmonic mean")
        page.locator(".md-search-result__link").first.wait_for()
        browser.close()
    assert [url for url in asked if not url.startswith((address, "blob:", "data:"))] == []
    assert errors == []
