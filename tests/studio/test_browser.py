"""The studio in a real browser, at the width of a desk and of a phone: the whole story, by keyboard where one can.

No rule of axe is left out. To look at what the test saw, name a folder in `MMPROMPT_SCREENSHOTS`.
"""

from __future__ import annotations

import os
import socket
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.browsers import CHROMIUM

pytest.importorskip("gradio", reason="the studio needs gradio")
sync_api = pytest.importorskip("playwright.sync_api", reason="a browser is driven by playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="accessibility is checked by axe")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")

WAIT_MS = 90_000
SAYS_NO_MORE = """() => [...document.querySelectorAll('#captions figcaption')].every(
    one => one.querySelector('small').innerText === 'by itself: ' + one.querySelector('.steered').innerText)"""
"""Whether every caption is what the captioner says by itself."""
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from mmprompt.studio import captions
    from mmprompt.studio.cli import prepare

    folder = tmp_path_factory.mktemp("studio")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):
            patch.setenv(name, "")
        patch.setattr(captions, "EPOCHS", 1)
        prepare(folder)

        from mmprompt.studio.pages.page import serve
        from mmprompt.studio.prompts import Models
        from mmprompt.studio.session import Studio

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        page, address = serve(Studio(folder, Models(device="cpu")), "127.0.0.1", port)
        yield address
        page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *camera])
        yield browser
        browser.close()


@dataclass
class Visitor:
    """One person's page, and what it asked and complained of."""

    page: Any
    name: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def look(self, what: str) -> None:
        """See that axe finds nothing, and keep a screenshot where one is wanted."""
        found = axe.Axe().run(self.page).response["violations"]
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == [], what
        folder = os.environ.get("MMPROMPT_SCREENSHOTS")
        if folder:
            self.page.screenshot(path=Path(folder) / f"{self.name}-{what}.png", full_page=True)

    def tab_to(self, selector: str) -> None:
        """Go to a control with the tabulator key alone."""
        for _ in range(60):
            self.page.keyboard.press("Tab")
            if self.page.evaluate("s => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"the keyboard does not reach {selector}")

    def shows(self, selector: str) -> Any:
        return self.page.wait_for_selector(selector, timeout=WAIT_MS)

    def open(self, address: str) -> None:
        self.page.goto(address)
        self.shows("#images-start")


def visit(browser: Any, width: str) -> Visitor:
    size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
    context = browser.new_context(viewport=size, reduced_motion="reduce", has_touch=width == "phone")
    visitor = Visitor(context.new_page(), width)
    visitor.page.on("request", lambda request: visitor.requests.append(request.url))
    visitor.page.on("console", lambda m: m.type == "error" and visitor.complaints.append(m.text))
    visitor.page.on("pageerror", lambda error: visitor.complaints.append(str(error)))
    return visitor


def draw(folder: Path, colour: tuple[int, int, int], n: int) -> list[Path]:
    folder.mkdir()
    rng = np.random.default_rng(sum(colour))
    paths = [folder / f"{i}.png" for i in range(n)]
    for path in paths:
        noise = rng.integers(-40, 40, (48, 48, 3)) + np.array(colour)
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(path)
    return paths


@pytest.mark.parametrize("width", WIDTHS)
def test_the_whole_story(browser, address, width, tmp_path):
    one = visit(browser, width)
    one.open(address)
    one.shows(".cards img")
    one.look("start")
    train_and_stop(one)
    try_new_images(one, tmp_path)
    edit_words(one)
    one.look("trained")
    archive = download(one, tmp_path)
    caption(one)
    ask_language_model(one)
    survive_a_reload(one)
    bring_own_images(one, tmp_path)
    other = visit(browser, width)
    other.open(address)
    load_prompt(other, archive, tmp_path)
    for visitor in (one, other):
        own = (address, "data:", f"blob:{address}")
        assert [url for url in visitor.requests if not url.startswith(own)] == []
        assert visitor.complaints == []
        visitor.page.context.close()


def train_and_stop(one: Visitor) -> None:
    one.tab_to("#images-start")
    one.page.keyboard.press("Enter")
    one.shows("#images-curves svg")
    one.tab_to("#images-stop")
    one.page.keyboard.press("Enter")
    one.shows("#results .bars")
    assert "Stopped after epoch" in one.page.inner_text("#images-status")
    assert one.page.locator("#results .bar").count() == 3
    assert one.page.locator("#results .cards img").count() > 0
    assert one.page.locator("#results td").count() > 0


def try_new_images(one: Visitor, folder: Path) -> None:
    wrong = folder / "text.png"
    wrong.write_text("no image")
    one.page.set_input_files("#new-image input[type=file]", wrong)
    one.shows("#named .refused")
    assert "text.png: is not an image" in one.page.inner_text("#named")
    assert str(folder) not in one.page.inner_text("#named")
    one.page.click("#new-image button[aria-label='Remove Image']")
    one.page.click("#new-image button[aria-label='Capture from camera']")
    one.page.click("text=Click to Access Webcam")
    one.page.wait_for_function("document.querySelector('#new-image video')?.videoWidth > 0", timeout=WAIT_MS)
    one.page.click("#new-image button[aria-label='capture photo']")
    one.shows("#named .answer")


def edit_words(one: Visitor) -> None:
    before = one.page.inner_text("#named")
    one.tab_to("#template textarea")
    one.page.keyboard.press("Home")
    one.page.keyboard.type("tiny ")
    one.shows("#reworded .bars")
    assert one.page.locator("#reworded .bar").count() == 3
    one.page.wait_for_function("before => document.querySelector('#named').innerText !== before", arg=before)
    one.page.keyboard.press("End")
    one.page.keyboard.type("{soft*2}")
    one.shows("#reworded .refused:has-text('6 vectors, and 4 were learned')")
    for _ in "{soft*2}":
        one.page.keyboard.press("Backspace")
    one.shows("#reworded .bars")


def download(one: Visitor, folder: Path) -> Path:
    one.tab_to("#keep")
    one.page.keyboard.press("Enter")
    one.shows("#reworded .say")
    with one.page.expect_download() as found:
        one.page.click("#download")
    archive = folder / "taken.zip"
    found.value.save_as(archive)
    with zipfile.ZipFile(archive) as handle:
        (header,) = (name for name in handle.namelist() if name.endswith("prompt.json"))
        assert b"tiny {soft*4} {name}" in handle.read(header)
    return archive


def caption(one: Visitor) -> None:
    one.page.get_by_role("tab", name="Captions").click()
    one.shows("#captions-start")
    one.tab_to("#captions-start")
    one.page.keyboard.press("Enter")
    one.shows("#captions .cards img")
    assert not one.page.evaluate(SAYS_NO_MORE)
    one.tab_to("#strength input[type=range]")
    one.page.keyboard.press("Home")
    one.page.wait_for_function(SAYS_NO_MORE, timeout=WAIT_MS)
    one.look("captions")


def ask_language_model(one: Visitor) -> None:
    one.page.get_by_role("tab", name="Language").click()
    one.shows("#texts-start")
    one.tab_to("#texts-start")
    one.page.keyboard.press("Enter")
    one.shows("#texts-curves svg")
    one.shows("#scores .bars")
    one.tab_to("#ask")
    one.page.keyboard.press("Enter")
    one.shows("#by-instruction .answer")
    one.shows("#by-prompt .answer")
    one.look("language")


def survive_a_reload(one: Visitor) -> None:
    one.page.get_by_role("tab", name="Images").click()
    one.shows("#results .bars")
    results = one.page.inner_text("#results")
    one.page.reload()
    one.page.wait_for_function(
        "results => document.querySelector('#results')?.innerText === results", arg=results, timeout=WAIT_MS
    )


def bring_own_images(one: Visitor, folder: Path) -> None:
    one.page.click("#source label:has-text('My own images')")
    one.shows("#class-name input, #class-name textarea")
    for name, colour in {"red mug": (200, 40, 40), "blue mug": (40, 60, 200)}.items():
        one.page.fill("#class-name textarea, #class-name input", name)
        files = draw(folder / name, colour, 4)
        broken = folder / name / "broken.png"
        broken.write_text("no image")
        one.page.set_input_files("#drop input[type=file]", [*files, broken])
        one.page.wait_for_selector(f"#classes b:text-is('{name}')", timeout=WAIT_MS)
        assert "broken.png: is not an image" in one.page.inner_text("#added")
    one.look("own")
    one.page.click("#images-start")
    one.page.wait_for_function(
        "document.querySelector('#results').innerText.includes('of 2 test images')", timeout=WAIT_MS
    )


def load_prompt(other: Visitor, archive: Path, folder: Path) -> None:
    assert other.page.locator("#results").count() == 0 or not other.page.is_visible("#results")
    other.page.get_by_role("button", name="Load a prompt").click()
    broken = folder / "broken.zip"
    broken.write_bytes(archive.read_bytes()[:-200])
    other.page.set_input_files("#load-file input[type=file]", broken)
    other.shows("#loaded .refused")
    other.page.set_input_files("#load-file input[type=file]", archive)
    other.shows("#results .say")
    assert other.page.input_value("#template textarea").startswith("tiny {soft*4}")
    other.look("loaded")
