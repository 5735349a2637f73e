"""The page in examples/browser runs an exported classifier in a real browser."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mmprompt as mp
from mmprompt.files import cache_folder
from tests.fixtures.browsers import CHROMIUM

PAGE = Path(__file__).parents[2] / "examples" / "browser" / "index.html"
MODULES = cache_folder() / "browser" / "node_modules"


@pytest.fixture
def site(tmp_path, tiny_clip_backbone, serve_folder):
    """The page with a classifier beside it, served on this machine alone: its address and the classifier."""
    if not (MODULES / "onnxruntime-web").is_dir():
        pytest.skip(f"no onnxruntime-web: npm install --prefix {MODULES.parent} onnxruntime-web")
    if CHROMIUM is None:
        pytest.skip("no chromium")
    classifier = mp.CoOp(n_ctx=2).build(tiny_clip_backbone, ["cat", "dog", "red car"]).eval()
    shutil.copy(PAGE, tmp_path)
    (tmp_path / "node_modules").symlink_to(MODULES)
    mp.export(classifier, "onnx", tmp_path / "onnx")
    return f"{serve_folder(tmp_path)}/index.html", classifier


def test_the_page_gives_the_same_probabilities_and_asks_nobody_else(site, tmp_path):
    from playwright.sync_api import sync_playwright

    address, classifier = site
    size = classifier.backbone.image_size
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (size, size, 3), dtype=np.uint8))
    image.save(tmp_path / "noise.png")
    (tmp_path / "no.png").write_text("no image")
    asked, complaints = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#image:enabled", timeout=60_000)
        page.set_input_files("#image", tmp_path / "noise.png")
        page.wait_for_selector("td")
        cells = page.locator("td[data-probability]").all()
        names = [cell.text_content() for cell in page.locator("td:first-child").all()]
        said = dict(zip(names, (float(cell.get_attribute("data-probability")) for cell in cells), strict=True))
        page.set_input_files("#image", tmp_path / "no.png")
        page.wait_for_selector("text=no.png is no image that this browser reads.")
        browser.close()
    expected = classifier.predict(image).probabilities
    assert list(said) == list(expected)
    assert max(abs(said[name] - expected[name]) for name in expected) < 1e-4
    assert complaints == []
    assert all(url.startswith((address.rsplit("/", 1)[0], "blob:")) for url in asked)
