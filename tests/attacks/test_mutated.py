"""Some 2,500 damaged and forged inputs: each is refused in one line, or read; none takes long, much or more.

`MMPROMPT_ATTACKS=10` tries ten times as many, with seeds that go on where these end.
"""

from __future__ import annotations

import io
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

import mmprompt as mp
from mmprompt.captioning.data import load_captions
from mmprompt.classification.methods import CoOp
from mmprompt.classification.report import read_record
from mmprompt.classification.template import ClassTemplate
from mmprompt.cli.main import main
from mmprompt.core.file import load, save
from mmprompt.core.header import header_hash
from mmprompt.core.learned import LM_INPUT, Learned, Prompt
from mmprompt.data.catalog import read_card
from mmprompt.data.folder import read_table
from mmprompt.data.images import read_image
from mmprompt.errors import UserError
from mmprompt.files import sha256_bytes
from mmprompt.language.data import load_texts
from mmprompt.language.peft import load_peft, save_peft
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.templates.promptsource import read_promptsource
from mmprompt.language.templates.template import Template
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.terminal.parser import read_settings
from mmprompt.training.checkpoint import Checkpoint, _own_hash, read_newest, write_checkpoint
from tests.attacks.mutators import mutate_bytes, mutate_json
from tests.fixtures.written_run import write_run
from tests.language_models import frozen_model

TIMES = int(os.environ.get("MMPROMPT_ATTACKS", "1"))
MOST_SECONDS, MOST_KB = 10.0, 2 * 2**20
Attack = Callable[[random.Random], object]


def attack(n: int, attempt: Attack, folder: Path) -> None:
    """Make `n` attempts, each with its own seed; list all that end in anything but a value or a refusal of one line."""
    around = sorted(folder.parent.iterdir())
    wrong = []
    for seed in range(n * (TIMES > 1), n * TIMES) if TIMES > 1 else range(n):
        started, problem = time.monotonic(), ""
        try:
            attempt(random.Random(seed))
        except UserError as error:
            if not str(error) or set(str(error)) & set("\n\x1b\0"):
                problem = f"says {str(error)!r}"
        except Exception as error:
            problem = f"{type(error).__name__}: {str(error)[:200]}"
        if time.monotonic() - started > MOST_SECONDS:
            problem += f" takes {time.monotonic() - started:.0f} s"
        if problem:
            wrong.append(f"seed {seed}: {problem}")
    assert wrong == [], "\n".join([f"{len(wrong)} of {n}", *wrong[:12]])
    assert sorted(folder.parent.iterdir()) == around
    import resource

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < MOST_KB


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


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


LABELLED = [(f"{i}.png", i % 2, ("cat", "dog")[i % 2]) for i in range(8)]
TABLES = {
    "a.csv": "path,label,split\n" + "".join(f"{path},{name},train\n" for path, _, name in LABELLED),
    "a.jsonl": "".join(json.dumps({"path": path, "label": name}) + "\n" for path, _, name in LABELLED),
    "a.json": json.dumps(dict.fromkeys(("train", "val", "test"), LABELLED)),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(name: str, tmp_path: Path) -> None:
    def attempt(rng: random.Random) -> None:
        data = TABLES[name].encode()
        is_forged = name.endswith("json") and rng.random() < 0.6
        data = json.dumps(mutate_json(json.loads(data), rng)).encode() if is_forged else mutate_bytes(data, rng)
        (tmp_path / name).write_bytes(data)
        read_table(tmp_path / name)

    attack(110, attempt, tmp_path)


SETTINGS = "data: openart-large\nmethod: coop\nn_ctx: 4\nlr: 1.0e-3\nshots: 16\nseed: 1\ntemplate: 'a {}'\n"
CARD = "title: a\nlicence: CC0-1.0\nlayout: coop\ntemplate: 'a photo of a {}.'\nrecipe:\n  epochs: 50\n"


@pytest.mark.parametrize("text", [SETTINGS, CARD])
def test_settings_and_cards(text: str, tmp_path: Path) -> None:
    def attempt(rng: random.Random) -> None:
        (tmp_path / "a.yaml").write_bytes(mutate_bytes(text.encode(), rng))
        read_settings(tmp_path / "a.yaml") if text is SETTINGS else read_card("a", tmp_path)

    attack(80, attempt, tmp_path)


# captions and texts ----------------------------------------------------------------------------------------------

CAPTIONS: dict[str, Any] = {
    "jsonl": [{"image": "a.png", "captions": ["a cat", "a pet"], "focus": "pets", "split": "train"}] * 2,
    "coco": {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"id": i, "image_id": 1, "caption": "a cat"} for i in range(3)],
    },
    "karpathy": {"images": [{"filename": "a.png", "sentences": [{"raw": "a cat"}], "split": "train"}], "dataset": "x"},
    "flickr": "a.png#0\ta cat\na.png#1\ta pet\n",
}


@pytest.mark.parametrize("form", CAPTIONS)
def test_captions(form: str, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    path = tmp_path / {"jsonl": "a.jsonl", "flickr": "a.token.txt"}.get(form, "a.json")

    def text_of(content: Any) -> str:
        if isinstance(content, str):
            return content
        is_rows = form == "jsonl" and isinstance(content, list)
        return "".join(json.dumps(row) + "\n" for row in content) if is_rows else json.dumps(content)

    def attempt(rng: random.Random) -> None:
        seed = CAPTIONS[form]
        if isinstance(seed, str) or rng.random() < 0.3:
            path.write_bytes(mutate_bytes(text_of(seed).encode(), rng))
        else:
            path.write_text(text_of(mutate_json(seed, rng)))
        load_captions(path)

    path.write_text(text_of(CAPTIONS[form]))
    assert load_captions(path).train
    attack(70, attempt, tmp_path)


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


SYNTAX = (
    "{soft*4} {name}.",
    "a photo of a {name}.",
    "{bos}{soft} {text:cut} is {soft:words} {answer}",
    "[[user]] {text} {soft*3}[[assistant]] {answer}",
)


def test_templates(tmp_path: Path) -> None:
    def attempt(rng: random.Random) -> None:
        text = mutate_bytes(rng.choice(SYNTAX).encode(), rng).decode("utf-8", errors="replace")
        try:
            ClassTemplate(text)
        except UserError:
            Template.parse(text)

    attack(150, attempt, tmp_path)


def test_promptsource(tmp_path: Path) -> None:
    seed = (
        "dataset: x\ntemplates:\n  one: !Template\n    answer_choices: yes ||| no\n    id: one\n"
        "    jinja: '{{ text }} ||| {{ answer_choices[label] }}'\n    metadata: !TemplateMetadata\n"
        "      choices_in_prompt: true\n    name: one\n    reference: ''\n"
    )

    def attempt(rng: random.Random) -> None:
        (tmp_path / "a.yaml").write_bytes(mutate_bytes(seed.encode(), rng))
        read_promptsource(tmp_path / "a.yaml")

    attack(70, attempt, tmp_path)


# prompt files ----------------------------------------------------------------------------------------------------


def forge_prompt(folder: Path, header: dict[str, Any], data: bytes, rng: random.Random) -> None:
    """Damage one of the two files of a prompt, or forge both with hashes that fit."""
    text, way = json.dumps(header), rng.random()
    if way < 0.2:
        text = mutate_bytes(text.encode(), rng).decode("utf-8", errors="surrogateescape")
    elif way < 0.3:
        data = mutate_bytes(data, rng)
    else:
        if way < 0.5:
            data = forged_tensors(data, rng)
        forged = header | {"tensors_sha256": sha256_bytes(data)}
        forged = mutate_json({key: value for key, value in forged.items() if key != "header_sha256"}, rng)
        try:
            forged["header_sha256"] = header_hash(forged)
        except (TypeError, ValueError):  # it is no mapping any more, or no text of UTF-8
            pass
        text = json.dumps(forged)
    (folder / "prompt.json").write_bytes(text.encode("utf-8", errors="surrogateescape"))
    (folder / "prompt.safetensors").write_bytes(data)


def forged_tensors(data: bytes, rng: random.Random) -> bytes:
    """Other shapes, types and numbers, in a file that is whole."""
    tensors = load_tensors(data)
    name = rng.choice(sorted(tensors))
    value = tensors.pop(name)
    others: list[Callable[[], torch.Tensor | None]] = [
        lambda: None,
        lambda: value[:-1],
        lambda: value.repeat(2, *[1] * (value.dim() - 1)),
        lambda: value.flatten(),
        lambda: value[None],
        lambda: value.bool(),
        lambda: value.long(),
        lambda: value.half(),
        lambda: value * 1e30,
        lambda: value * 0,
        lambda: value / 0,
        lambda: value[:0],
    ]
    changed = rng.choice(others)()
    if changed is not None:
        tensors[name if rng.random() < 0.9 else "other"] = changed.contiguous()
    return save_tensors(tensors)


def as_saved(folder: Path) -> tuple[dict[str, Any], bytes]:
    return json.loads((folder / "prompt.json").read_text()), (folder / "prompt.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["coop", "linear"])
def test_classifiers(method: str, tiny_clip_backbone: DualEncoder, pictures: Path, tmp_path: Path) -> None:
    data = mp.ImageFolder(pictures, shots=1)
    how: Any = CoOp(n_ctx=2) if method == "coop" else mp.LinearProbe(inverse_strength=1.0)
    more = {"epochs": 1} if method == "coop" else {}
    result = mp.fit(how, tiny_clip_backbone, data, tmp_path / "run", progress=False, **more)
    header, tensors = as_saved(tmp_path / "run")
    image = read_image(data.test[0].path)

    def attempt(rng: random.Random) -> None:
        forge_prompt(tmp_path / "run", header, tensors, rng)
        said = load(tmp_path / "run", tiny_clip_backbone).predict(image)
        assert 0 <= said.probability <= 1
        assert len(said.probabilities) == len(result.predictor.class_names) or said.label in said.probabilities

    attack(180, attempt, tmp_path / "run")


def test_language_prompts(tmp_path: Path) -> None:
    model = frozen_model("llama")
    template = Template.parse("{soft} {text} {answer}").with_soft(2)
    words = Verbalizer({"a": ["yes"], "b": ["no"]})
    vectors = Learned(LM_INPUT, torch.randn(2, model.width))
    save(LanguagePredictor(model, Prompt(template, vectors), words), tmp_path / "run")
    header, tensors = as_saved(tmp_path / "run")

    def attempt(rng: random.Random) -> None:
        forge_prompt(tmp_path / "run", header, tensors, rng)
        prompted = load(tmp_path / "run", model)
        if prompted.label_words is not None and prompted.template.fields == ("text",):
            prompted.predict("a cat")

    attack(150, attempt, tmp_path / "run")


def test_peft_folders(tmp_path: Path) -> None:
    model = frozen_model("llama")
    vectors = Learned(LM_INPUT, torch.randn(2, model.width))
    prompted = LanguagePredictor(model, Prompt(Template.parse("{soft}{bos}{text} {answer}").with_soft(2), vectors))
    folder = tmp_path / "peft"
    save_peft(prompted, folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    tensors_name = next(name for name in files if name.endswith(".safetensors"))
    names = [name for name in files if name.endswith(".json")]

    def attempt(rng: random.Random) -> None:
        changed = dict(files)
        if rng.random() < 0.3:
            changed[tensors_name] = forged_tensors(changed[tensors_name], rng)
        else:
            name = rng.choice(names)
            changed[name] = json.dumps(mutate_json(json.loads(changed[name]), rng)).encode()
        if rng.random() < 0.2:
            name = rng.choice(sorted(files))
            changed[name] = mutate_bytes(changed[name], rng)
        for name, data in changed.items():
            (folder / name).write_bytes(data)
        load_peft(folder, model)

    attack(150, attempt, folder)


def test_manifests(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    progress = {"history": [{"epoch": 1, "loss": 0.5}], "is_stopped": False, "scaler": {}}
    for epoch in (1, 2):
        write_checkpoint(folder, Checkpoint("id", epoch, {"a": torch.zeros(2)}, progress))
    path = folder / "epoch-000002" / "manifest.json"
    manifest = json.loads(path.read_text())

    def attempt(rng: random.Random) -> None:
        if rng.random() < 0.3:
            path.write_bytes(mutate_bytes(json.dumps(manifest).encode(), rng))
        else:
            forged = mutate_json({key: value for key, value in manifest.items() if key != "sha256"}, rng)
            if isinstance(forged, dict):
                forged["sha256"] = _own_hash(forged)
            write_json(path, forged)
        found = read_newest(folder, "id")
        assert found is not None
        assert found.epoch in (1, 2)

    attack(140, attempt, folder)


def test_run_files(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ["cat", "dog"], n=6)
    files = {name: json.loads((folder / name).read_text()) for name in ("run.json", "metrics.json")}
    log = (folder / "log.jsonl").read_bytes()
    assert read_record(folder).reliability is not None

    def attempt(rng: random.Random) -> None:
        for name, content in files.items():
            write_json(folder / name, mutate_json(content, rng) if rng.random() < 0.6 else content)
        (folder / "log.jsonl").write_bytes(mutate_bytes(log, rng) if rng.random() < 0.3 else log)
        record = read_record(folder)
        assert record.command
        assert record.reliability is not None

    attack(110, attempt, folder)


# command lines ---------------------------------------------------------------------------------------------------

LINES = (
    "train --data NOWHERE.csv --method coop --shots 4 --seed 1 --n-ctx 4 --lr 0.002 --out run",
    "predict NOWHERE a.png --top-k 3 --class-names cat,dog",
    "compare --data NOWHERE.csv --method coop,zero-shot --shots 1,2 --seed 1,2 --out run",
    "tune --data NOWHERE.csv --search lr=1e-3:0.5,n_ctx=1:16 --trials 3 --out run",
    "llm train --data NOWHERE.jsonl --method prompt-tuning --n-soft 4 --epochs 3 --out run",
    "caption train --data NOWHERE.jsonl --focus emotions --epochs 2 --out run",
)
WORDS = (
    "--seed",
    "1e9",
    "-1",
    "nan",
    "9" * 30,
    "",
    "--",
    "--json",
    "ö",
    "\x1b[31m",
    "--out",
    "a" * 300,
    "None",
    "1,,2",
)


def test_command_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def attempt(rng: random.Random) -> None:
        words = rng.choice(LINES).split()
        for _ in range(rng.choice((1, 1, 2, 3))):
            place = rng.randrange(1, len(words) + 1)
            if rng.random() < 0.5:
                words[place : place + 1] = [rng.choice(WORDS)]
            else:
                words.insert(place, rng.choice(WORDS))
        if not any("NOWHERE" in word for word in words):
            return  # nothing is missing any more, and it would be computed
        capsys.readouterr()
        code, said = main(words), capsys.readouterr().err.splitlines()
        lines = [line for line in said if line.startswith("mmprompt: error: ")]
        assert (code, len(lines)) == (2, 1), (words, code, said)
        assert list(folder.iterdir()) == [], words

    attack(80, attempt, folder)
