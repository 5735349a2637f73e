"""One fit, one file and one load for a classifier, a captioner and a language model alike."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mmprompt as mp
from mmprompt.captioning.predictor import load_captioner_of
from mmprompt.core.header import read_header
from mmprompt.data.splits import Dataset
from mmprompt.language.predictor import load_prompted
from mmprompt.training.problem import RunFailed
from tests.language_models import frozen_model
from tests.small_captioners import small_captioner, small_captions

KINDS = {
    "classification": "mmprompt predict",
    "captioning": "mmprompt caption write",
    "language": "mmprompt llm generate",
}
METHODS: dict[str, Any] = {
    "classification": mp.CoOp(2),
    "captioning": mp.PromptTuning(2),
    "language": mp.PromptTuning(2),
}


@pytest.fixture(scope="module")
def sets(picture_folder: Path) -> dict[str, Any]:
    """A little data of each kind, with a part to test on."""
    scenes = mp.load_captions("openart-scenes")
    return {
        "classification": mp.ImageFolder(picture_folder, shots=2, augment="none"),
        "captioning": replace(scenes, items=(*scenes.train[:6], *scenes.test[:2])),
        "language": mp.language.sample_shots(mp.load_texts("somebody"), 4, 1),
    }


@pytest.fixture(scope="module")
def results(sets: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, mp.Result[Any]]:
    """A run of each kind on the embedded model of that kind, which all go by one name."""
    runs = tmp_path_factory.mktemp("kinds")
    return {
        kind: mp.fit(METHODS[kind], "tiny", task_of(kind, data), out=runs / kind, epochs=2, seed=3, progress=False)
        for kind, data in sets.items()
    }


def task_of(kind: str, data: Any) -> Any:
    return data.focus("emotions") if kind == "captioning" else data


def input_of(kind: str, data: Any) -> Any:
    if kind == "language":
        return data.test[0].fields["text"]
    item = data.test[0]
    return item.image if kind == "captioning" else item.path


def said(answer: Any) -> str:
    """A label, or a caption."""
    return str(getattr(answer, "label", None) or answer.text)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_fitted_is_loaded_by_its_folder_alone_and_predicts_the_same(
    kind: str, sets: dict[str, Any], results: dict[str, mp.Result[Any]]
) -> None:
    result, given = results[kind], input_of(kind, sets[kind])
    assert result.folder is not None
    loaded = mp.load(result.folder)
    assert type(loaded) is type(result.predictor)
    assert (loaded.kind, loaded.prompt.sites) == (kind, result.predictor.prompt.sites)
    one, other = (predictor.predict(given) for predictor in (loaded, result.predictor))
    assert one == other
    both = loaded.predict([given, given])
    assert [said(each) for each in both] == [said(one)] * 2
    assert not any(parameter.requires_grad for parameter in result.predictor.prompt.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_predictor_of_any_kind_is_kilobytes_and_is_saved_again_as_it_was(
    kind: str, results: dict[str, mp.Result[Any]], tmp_path: Path
) -> None:
    folder = results[kind].folder
    assert folder is not None
    mp.save(mp.load(folder), tmp_path / "again", read_header(folder)["training"])
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"prompt.json", "prompt.safetensors"}
    for name in ("prompt.json", "prompt.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
        assert (folder / name).stat().st_size < 12_000


@pytest.mark.parametrize("kind", KINDS)
def test_every_run_folder_says_in_the_same_words_what_was_done(kind: str, results: dict[str, mp.Result[Any]]) -> None:
    folder = results[kind].folder
    assert folder is not None
    config = json.loads((folder / "run.json").read_text())
    assert (config["format"], config["kind"], config["seed"]) == (2, kind, 3)
    assert config["backbone"]["name"] == "tiny"
    assert config["method"]["name"] == ("coop" if kind == "classification" else "prompt-tuning")
    assert config["recipe"]["epochs"] == 2
    assert config["data"]["fingerprint"]
    assert set(config) >= {"device", "dtype", "versions"}
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert log == results[kind].history
    assert [record["epoch"] for record in log] == [1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_of_any_kind_is_measured_on_rows_held_out(
    kind: str, sets: dict[str, Any], results: dict[str, mp.Result[Any]]
) -> None:
    test = sets[kind].test[:4]
    measured = results[kind].evaluate(test)
    n_measured = {
        "classification": lambda: len(measured.predictions),
        "captioning": lambda: len(measured.image_ids),
        "language": lambda: len(measured.answers),
    }
    assert n_measured[kind]() == len(test)


def load_classifier(folder: Path) -> Any:
    """What `mmprompt predict --class-names` looks at."""
    return read_header(folder, "classification")


LOADERS: dict[str, list[Callable[[Path], Any]]] = {
    "classification": [load_classifier],
    "captioning": [
        lambda folder: mp.captioning.load_focus(folder, mp.load_captioner("tiny")),
        lambda folder: load_captioner_of([folder]),
    ],
    "language": [
        load_prompted,
        lambda folder: mp.fit(
            mp.PromptTuning(2),
            "tiny",
            mp.language.LanguageTask(mp.load_texts("somebody"), init=mp.language.PromptInit(from_prompt=folder)),
            epochs=1,
            progress=False,
        ),
    ],
}


@pytest.mark.parametrize("wanted", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_of_another_kind_is_refused_in_a_line_that_names_its_verb(
    kind: str, wanted: str, results: dict[str, mp.Result[Any]]
) -> None:
    folder = results[kind].folder
    assert folder is not None
    for load in LOADERS[wanted]:
        if kind == wanted:
            load(folder)
            continue
        with pytest.raises(mp.UserError) as caught:
            load(folder)
        assert str(caught.value) == f"{folder}: is a prompt for {kind}, not for {wanted}. Use {KINDS[kind]}."


@pytest.mark.parametrize("wanted", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_not_loaded_on_a_model_of_another_kind(
    kind: str, wanted: str, results: dict[str, mp.Result[Any]]
) -> None:
    folder, other = results[kind].folder, results[wanted].predictor.backbone
    assert folder is not None
    if kind == wanted:
        assert mp.load(folder, other).backbone is other
        return
    with pytest.raises(mp.UserError, match=r": this prompt was learned on tiny \(\w{12}\), not on tiny \(") as caught:
        mp.load(folder, other)
    assert "\n" not in str(caught.value)


class Spoil(mp.Callback):
    """Changes a frozen weight, as a faulty method would."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def on_epoch_end(self, run: Any, epoch: int, logs: dict[str, Any]) -> None:
        with torch.no_grad():
            next(self.module.parameters()).view(-1)[0] += 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_changed_is_noticed_and_nothing_is_saved(
    kind: str, tiny_open_clip_folder: Path, data: Dataset, tmp_path: Path
) -> None:
    model: Any
    task: Any
    if kind == "classification":
        model, task = mp.load_backbone(str(tiny_open_clip_folder), device="cpu"), data
    elif kind == "captioning":
        model, task = small_captioner(), small_captions(tmp_path).focus("numbers")
    else:
        model, task = frozen_model("llama", torch.float32), mp.load_texts("somebody")
    spoil = Spoil(model.lm if kind == "language" else model.model)
    with pytest.raises(RunFailed) as caught:
        mp.fit(METHODS[kind], model, task, tmp_path / "run", epochs=1, callbacks=[spoil], progress=False)
    assert str(caught.value) == f"weights of {model.name} changed while a prompt was trained, so nothing was saved"
    assert not list((tmp_path / "run").glob("prompt.*"))


@pytest.mark.parametrize("load", [mp.load_backbone, mp.load_captioner, mp.load_language_model])
def test_a_frozen_model_says_in_one_line_which_it_is(load):
    assert re.fullmatch(r"<Frozen\w+ 'tiny': cpu, torch\.float32>", repr(load("tiny", device="cpu")))
