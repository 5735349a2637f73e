"""Damaged and forged images, tables, captions, texts and templates: refused in one line, or read (see `guard`)."""

from __future__ import annotations

import io
import json
import pickle  # noqa: TID251, the published file is one
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmprompt.captioning.caption_files import detect_format
from mmprompt.captioning.data import load_captions
from mmprompt.classification.template import ClassTemplate
from mmprompt.data.catalog import read_card
from mmprompt.data.folder import read_table
from mmprompt.data.images import read_image
from mmprompt.errors import UserError
from mmprompt.language.data import load_texts
from mmprompt.language.templates.promptsource import JinjaTemplate, read_promptsource
from mmprompt.language.templates.template import Template
from mmprompt.terminal.parser import read_settings
from tests.attacks.guard import attack
from tests.attacks.mutators import mutate_bytes, mutate_json
from tests.attacks.seeds import CAPTIONS, CARD, JINJA, PROMPTSOURCE, SETTINGS, SYNTAX, TABLES, write_images

# images and tables -----------------------------------------------------------------------------------------------


def test_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    seeds = []
    for form in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, form)
        seeds.append(buffer.getvalue())

    def attempt(rng: random.Random) -> None:
        (tmp_path / "a.img").write_bytes(mutate_bytes(rng.choice(seeds), rng))
        assert read_image(tmp_path / "a.img").mode == "RGB"

    attack(360, attempt, tmp_path)


@pytest.mark.parametrize("name", TABLES)
def test_tables(name: str, tmp_path: Path) -> None:
    def attempt(rng: random.Random) -> None:
        data = TABLES[name].encode()
        is_forged = name.endswith("json") and rng.random() < 0.6
        data = json.dumps(mutate_json(json.loads(data), rng)).encode() if is_forged else mutate_bytes(data, rng)
        (tmp_path / name).write_bytes(data)
        read_table(tmp_path / name)

    attack(110, attempt, tmp_path)


@pytest.mark.parametrize("text", [SETTINGS, CARD])
def test_settings_and_cards(text: str, tmp_path: Path) -> None:
    def attempt(rng: random.Random) -> None:
        (tmp_path / "a.yaml").write_bytes(mutate_bytes(text.encode(), rng))
        read_settings(tmp_path / "a.yaml") if text is SETTINGS else read_card("a", tmp_path)

    attack(80, attempt, tmp_path)


# captions and texts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", CAPTIONS)
def test_captions(form: str, tmp_path: Path) -> None:
    name, text = CAPTIONS[form]
    write_images(tmp_path)
    path = tmp_path / name
    path.write_text(text)
    assert load_captions(path).items
    assert detect_format(path) == form

    def forged(rng: random.Random) -> str:
        if form == "jsonl":
            rows = mutate_json([json.loads(line) for line in text.splitlines()], rng)
            return "".join(f"{json.dumps(row)}\n" for row in rows) if isinstance(rows, list) else json.dumps(rows)
        return json.dumps(mutate_json(json.loads(text), rng))

    def attempt(rng: random.Random) -> None:
        is_forged = "json" in name and rng.random() < 0.7
        path.write_bytes(forged(rng).encode() if is_forged else mutate_bytes(text.encode(), rng))
        load_captions(path)

    attack(70, attempt, tmp_path)


def test_the_pickled_list_of_flickrstyle(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "images.txt").unlink()
    (tmp_path / "funny_train.txt").write_text(CAPTIONS["flickrstyle"][1])
    seeds = [pickle.dumps(["a.png"], protocol) for protocol in (0, 2, 4)]
    seeds.append(b"cposix\nmkdir\n(Vharm\ntR.")

    def attempt(rng: random.Random) -> None:
        (tmp_path / "a.p").write_bytes(mutate_bytes(rng.choice(seeds), rng))
        load_captions(tmp_path / "funny_train.txt")

    attack(60, attempt, tmp_path)


def test_texts(tmp_path: Path) -> None:
    rows = [{"text": f"a {i}", "label": "ab"[i % 2], "split": "test" if i > 5 else "train"} for i in range(8)]
    card = "template: '{soft} {text} {answer}'\nverbalizer:\n  a: [yes]\n  b: [no]\n"

    def attempt(rng: random.Random) -> None:
        lines = "".join(
            json.dumps(row) + "\n" for row in (mutate_json(rows, rng) or [] if rng.random() < 0.5 else rows)
        )
        (tmp_path / "a.jsonl").write_bytes(mutate_bytes(lines.encode(), rng) if rng.random() < 0.5 else lines.encode())
        (tmp_path / "a.yaml").write_bytes(mutate_bytes(card.encode(), rng) if rng.random() < 0.5 else card.encode())
        load_texts(tmp_path / "a.jsonl")

    attack(140, attempt, tmp_path)


def test_templates(tmp_path: Path) -> None:
    def attempt(rng: random.Random) -> None:
        text = mutate_bytes(rng.choice(SYNTAX).encode(), rng).decode("utf-8", errors="replace")
        try:
            ClassTemplate(text)
        except UserError:
            Template.parse(text)

    attack(150, attempt, tmp_path)


def test_promptsource(tmp_path: Path) -> None:
    def attempt(rng: random.Random) -> None:
        (tmp_path / "a.yaml").write_bytes(mutate_bytes(PROMPTSOURCE.encode(), rng))
        read_promptsource(tmp_path / "a.yaml")

    attack(70, attempt, tmp_path)


def test_rendered_templates(tmp_path: Path) -> None:
    row = {"text": "a happy dog", "label": 1}
    assert all(JinjaTemplate("a", jinja, "no ||| yes").apply(row) for jinja in JINJA)

    def attempt(rng: random.Random) -> None:
        jinja = mutate_bytes(rng.choice(JINJA).encode(), rng).decode("utf-8", errors="replace")
        choices = mutate_bytes(b"no ||| {{ text }}", rng).decode("utf-8", errors="replace")
        JinjaTemplate("a", jinja, choices).apply(row, truncate=rng.random() < 0.5)

    attack(110, attempt, tmp_path)
