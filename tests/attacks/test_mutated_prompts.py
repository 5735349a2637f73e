"""Damaged and forged prompts, checkpoints and run folders, most with hashes that fit: refused in one line, or read."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

import mmprompt as mp
from mmprompt.classification.methods import CoOp
from mmprompt.classification.published import convert
from mmprompt.classification.report import read_record
from mmprompt.core.file import load, save
from mmprompt.core.header import header_hash
from mmprompt.core.learned import Learned, Prompt
from mmprompt.data.images import read_image
from mmprompt.files import read_checkpoint, sha256_bytes
from mmprompt.language.peft import load_peft
from mmprompt.language.peft_save import save_peft
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.templates.template import Template
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.feature_store import FeatureStore, Space
from mmprompt.models.sites import LM_INPUT
from mmprompt.training.checkpoint import Checkpoint, _own_hash, read_newest, write_checkpoint
from tests.attacks.guard import attack
from tests.attacks.mutators import mutate_bytes, mutate_json, with_member
from tests.classification.test_published import Plain, dassl, state_of
from tests.fixtures.served_prompts import frozen, save_captioner
from tests.fixtures.written_run import write_run
from tests.language_models import frozen_model

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


CHANGES: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    lambda value: value[:-1],
    lambda value: value.repeat(2, *[1] * (value.dim() - 1)),
    lambda value: value.flatten(),
    lambda value: value[None],
    lambda value: value.bool(),
    lambda value: value.long(),
    lambda value: value.half(),
    lambda value: value * 1e30,
    lambda value: value * 0,
    lambda value: value / 0,
    lambda value: value[:0],
)
"""Other shapes, types and numbers."""


def forged_tensors(data: bytes, rng: random.Random) -> bytes:
    """A tensor changed, renamed or taken away, in a file that is whole."""
    tensors = load_tensors(data)
    name = rng.choice(sorted(tensors))
    value = tensors.pop(name)
    if rng.random() < 0.9:
        tensors[name if rng.random() < 0.9 else "other"] = rng.choice(CHANGES)(value).contiguous()
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


def test_captioners(tmp_path: Path) -> None:
    save_captioner(tmp_path / "run", 1, "feelings")
    header, tensors = as_saved(tmp_path / "run")

    def attempt(rng: random.Random) -> None:
        forge_prompt(tmp_path / "run", header, tensors, rng)
        load(tmp_path / "run", frozen("captioning"))

    attack(110, attempt, tmp_path / "run")


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


@pytest.mark.parametrize("source", ["coop", "maple", "clip-lora"])
def test_published_checkpoints(source: Any, tiny_clip_backbone: DualEncoder, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    seed = state_of(source, Plain(tiny_clip_backbone, tiny_clip_backbone.model))
    torch.save(seed, path) if source == "clip-lora" else dassl(path, seed)
    whole, content = path.read_bytes(), read_checkpoint(path)

    def attempt(rng: random.Random) -> None:
        way = rng.random()
        if way < 0.2:
            path.write_bytes(mutate_bytes(whole, rng))
        elif way < 0.6:
            path.write_bytes(with_member(whole, "data.pkl", lambda data: mutate_bytes(data, rng)))
        else:
            torch.save(forged_entries(content, rng), path)
        classifier = convert(path, source, tiny_clip_backbone, ["cat", "red car", "dog"])
        assert all(bool(value.isfinite().all()) for value in classifier.state_dict().values())

    attack(60, attempt, tmp_path)


def forged_entries(content: Any, rng: random.Random) -> Any:
    """Other values somewhere in a checkpoint, or another tensor."""
    content = copy.deepcopy(content)
    places = [content]
    while isinstance(places[-1], dict) and places[-1]:
        places.append(rng.choice(list(places[-1].values())))
    owner = rng.choice([place for place in places if isinstance(place, dict) and place])
    name = rng.choice(list(owner))
    if isinstance(owner[name], torch.Tensor) and rng.random() < 0.6:
        owner[name] = rng.choice(CHANGES)(owner[name])
    elif rng.random() < 0.3:
        del owner[name]
    else:
        owner[name] = rng.choice([None, 7, "a", [1], {}, {"a": content}, np.ones(3), torch.ones(2, dtype=torch.bool)])
    return content


# what training and tools leave -----------------------------------------------------------------------------------


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
            path.write_text(json.dumps(forged))
        found = read_newest(folder, "id")
        assert found is not None
        assert found.epoch in (1, 2)

    attack(140, attempt, folder)


def test_stored_features(tmp_path: Path) -> None:
    space, rows = Space("tiny", "f" * 64, "none", "cpu", 6), {name: torch.randn(6) for name in "abc"}
    FeatureStore(tmp_path / "whole").add(space, rows)
    (whole,) = (tmp_path / "whole").glob("*/*.safetensors")
    place = tmp_path / "used" / whole.relative_to(tmp_path / "whole")
    place.parent.mkdir(parents=True)

    def attempt(rng: random.Random) -> None:
        place.write_bytes(mutate_bytes(whole.read_bytes(), rng))
        found = FeatureStore(tmp_path / "used").read(space, rows)
        assert all(torch.equal(row, rows[name]) for name, row in found.items())
        FeatureStore(tmp_path / "used").contents()

    attack(120, attempt, tmp_path)


def test_run_files(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ["cat", "dog"], n=6)
    files = {name: json.loads((folder / name).read_text()) for name in ("run.json", "metrics.json")}
    log = (folder / "log.jsonl").read_bytes()
    assert read_record(folder).reliability is not None

    def attempt(rng: random.Random) -> None:
        for name, content in files.items():
            (folder / name).write_text(json.dumps(mutate_json(content, rng) if rng.random() < 0.6 else content))
        (folder / "log.jsonl").write_bytes(mutate_bytes(log, rng) if rng.random() < 0.3 else log)
        record = read_record(folder)
        assert record.command
        assert record.reliability is not None

    attack(110, attempt, folder)
