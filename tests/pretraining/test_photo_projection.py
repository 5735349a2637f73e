"""How the projection of `photo` is trained: its texts, where it starts, and training that goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import train_photo_projection as projection
from mmprompt.files import read_checkpoint
from photo_text.sources import Nouns, Synset, WordVectors
from photo_text.texts import Entry
from train_photo_projection import SHARPNESS, Text, texts_of, untrained

WIDTH, EMBEDDING, N_CLASSES, N_COMMON = 8, 6, 3, 5


def test_common_names_are_learned_alone_and_in_a_template_and_only_in_their_first_meaning() -> None:
    nouns = Nouns({1: Synset(1, ("animal",), "", ()), 2: Synset(2, ("stork",), "", (1,))}, {})
    groups = {
        "classes": [Entry("white stork", 2, True, 0)],
        "common": [Entry("crane", 2), Entry("crane", 1, is_first=False)],
    }
    texts = texts_of(groups, nouns, WordVectors(["crane", "white"], torch.eye(2)))
    assert [text.text for text in texts if not text.is_class] == ["crane", "a photo of a crane."]
    assert [text.text for text in texts][:3] == [
        "white stork",
        "a photo of a white stork.",
        "white stork, a kind of animal",
    ]
    assert len([text for text in texts if text.is_class]) == 7
    assert [(text.row, text.rank) for text in texts][-1] == (1, 0)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `prepare` would write, small and drawn at random."""
    for name, value in {"N_VALUES": N_CLASSES + N_COMMON, "EMBEDDING": EMBEDDING, "BATCH": 10}.items():
        monkeypatch.setattr(projection, name, value)
    n_names = N_CLASSES + N_COMMON
    texts = [Text("", row, place, row, row < N_CLASSES) for row in range(n_names) for place in (0, 1)]
    drawn = torch.Generator().manual_seed(0)
    targets = F.normalize(torch.randn(n_names, EMBEDDING, generator=drawn), dim=-1)
    tensors = {
        "encoded": F.normalize(torch.randn(len(texts), WIDTH, generator=drawn), dim=-1),
        "targets": targets,
        "classes": targets[:N_CLASSES].clone(),
        "projection": torch.randn(EMBEDDING, 12, generator=drawn),
    }
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "texts.json").write_text(json.dumps([[t.text, t.row, t.place, t.rank, t.is_class] for t in texts]))
    save_file(tensors, folder / "projection_data.safetensors")
    return folder


def test_it_starts_as_the_kernel_regression_from_names(work: Path) -> None:
    texts = [Text(*row) for row in json.loads((work / "texts.json").read_text())]
    data = load_file(work / "projection_data.safetensors")
    query = F.normalize(torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1)), dim=-1)
    total = torch.zeros(4, EMBEDDING)
    for i, text in enumerate(texts):
        if text.place == 1:
            kernel = (SHARPNESS * query @ data["encoded"][i]).exp() * (1 if text.is_class else torch.e**-2)
            total += kernel[:, None] * data["targets"][text.row]
    with torch.no_grad():
        found = untrained(texts, data["encoded"], data["targets"])(3 * query)  # of any norm
    assert torch.allclose(F.normalize(found, dim=-1), F.normalize(total, dim=-1), atol=1e-5)


def test_training_lowers_the_loss_and_goes_on_to_the_same_numbers(work: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(work, again)
    projection.train(work, steps=300)
    losses = [json.loads(line)["loss"] for line in (work / "runs/projection/log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.8 * losses[0]

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        written = projection.Run.save
        patch.setattr(projection.Run, "save", lambda run, path: written(run, path) or run.step < 200 or stopped())
        with pytest.raises(KeyboardInterrupt):
            projection.train(again, steps=300)
    projection.train(again, steps=300)
    states = [read_checkpoint(folder / "runs/projection/state.pt") for folder in (work, again)]
    for name, value in states[0]["average"].items():
        assert torch.equal(value, states[1]["average"][name])


def test_the_end_of_a_training_is_kept_whatever_its_length(work: Path) -> None:
    projection.train(work, steps=50)
    assert read_checkpoint(work / "runs/projection/state.pt")["step"] == 50


def test_what_is_exported_is_the_average_in_half_precision(work: Path, tmp_path: Path) -> None:
    projection.train(work, steps=100)
    (tmp_path / "assets" / "photo").mkdir(parents=True)
    projection.export(work, tmp_path / "assets")
    written = load_file(tmp_path / "assets" / "photo" / "text.safetensors")
    average = read_checkpoint(work / "runs/projection/state.pt")["average"]
    assert {value.dtype for value in written.values()} == {torch.float16}
    for name, value in average.items():
        assert torch.equal(written[f"text.proj.{name}"], value.half())
    assert written["visual.head.proj.weight"].shape == (EMBEDDING, 12)
