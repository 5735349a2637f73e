"""Every registered method on every kind of backbone: a method is tested by being registered.

A pair is trained once, on 32-pixel images for two epochs, and every test looks at what came of it. A backbone that
cannot carry a method must refuse it in one line, with nothing written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import mmprompt as mp
from mmprompt.classification.cli.train import read_call
from mmprompt.classification.methods import METHODS, make_method, method_types
from mmprompt.classification.predictor import Classifier, Prediction
from mmprompt.core.fit import Result, describe_method, fit
from mmprompt.core.method import Method
from mmprompt.data.folder import ImageFolder
from mmprompt.data.splits import Dataset
from mmprompt.errors import UserError
from mmprompt.files import tensor_bytes
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.training.callbacks import Callback
from mmprompt.training.problem import Run

COMBINATIONS = [
    "coop+vpt",
    "coop+clip-lora",
    "coop+padding-prompt",
    "coop+knowledge-guided",
    "vpt+consistency+gaussian-average",
    "coop+gda",
    "coop+tip-adapter-f",
    "vpt+linear-probe",
    "coop+tpt",
]
NAMES = [*(name for name in METHODS if METHODS[name].learns), "tpt", *COMBINATIONS]
BACKBONES = ["tiny_clip", "tiny_hf_clip", "tiny_siglip", "tiny_resnet", "tiny_timm"]
SMALL = {"n_ctx": 2, "n_visual": 2, "inverse_strength": 2.0, "ctx_init": None}  # what fits 16 slots and needs no search
QUICK = {"epochs": 2, "batch_size": 3, "lr": 0.05, "checkpoint_seconds": 0}


def small(name: str) -> Method:
    """A method with few vectors, whatever it is."""
    known = {one.name for kind in method_types(name) for one in fields(kind)}
    own = {
        "prograd": {"n_ctx": 8},
        "tpt": {"n_views": 4, "tpt_init": "a"},
        "coop+tpt": {"n_views": 4},
        "patch-prompt": {"patch_place": "random"},
    }.get(name, {})
    return make_method(name, {setting: value for setting, value in SMALL.items() if setting in known} | own)


class Gradients(Callback):
    """Which parameters ever had a gradient that was not zero."""

    def __init__(self) -> None:
        self.seen: dict[str, bool] = {}

    def on_step_end(self, run: Run, step: int, logs: Any) -> None:
        for name, parameter in run.problem.module.named_parameters():
            if parameter.requires_grad:
                moves = parameter.grad is not None and bool(parameter.grad.any())
                self.seen[name] = self.seen.get(name, False) or moves


class Interrupted(Callback):
    """Breaks off at the end of the second epoch, when the first is in a checkpoint."""

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        if epoch == 1:
            raise InterruptedError


@dataclass(frozen=True)
class Pair:
    """What came of a method on a backbone: a result, or a refusal."""

    method: Method
    backbone: DualEncoder
    data: Dataset
    folder: Path
    gradients: dict[str, bool]
    result: Result[Classifier] | None
    refusal: str

    @property
    def classifier(self) -> Classifier:
        assert self.result is not None
        return self.result.predictor

    @property
    def images(self) -> list[Path]:
        return [item.path for item in self.data.test]

    def fit(self, data: Dataset | None = None, out: Path | None = None, seed: int = 1, **settings: Any) -> Classifier:
        return fit(
            self.method, self.backbone, data or self.data, out, seed=seed, **(quick(self.method) | settings)
        ).predictor


def quick(method: Method) -> dict[str, Any]:
    """A short training, of what is trained by steps."""
    return {"progress": False, **(QUICK if method.is_trained else {})}


def bytes_of(module: nn.Module) -> bytes:
    return tensor_bytes(module.state_dict())


@pytest.fixture(scope="module")
def conformance_data(picture_folder: Path) -> Dataset:
    """Two images a class to learn from, one to choose on, two to test on, and an ensemble of short templates."""
    whole = ImageFolder(picture_folder, shots=3, seed=1, augment="none")
    val = {item.label: item for item in whole.train}
    train = tuple(item for item in whole.train if item not in val.values())
    return replace(whole, train=train, val=tuple(val.values()), templates=("a photo of a {}.", "the {}"), shots=2)


@pytest.fixture(scope="module")
def trained(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    conformance_data: Dataset,
) -> Callable[[str, str], Pair]:
    """Trains a pair when it is first asked for."""
    pairs: dict[tuple[str, str], Pair] = {}

    def train(name: str, place: str) -> Pair:
        backbone, folder = request.getfixturevalue(f"{place}_backbone"), tmp_path_factory.mktemp("pair") / "run"
        method, gradients = small(name), Gradients()
        result, refusal = None, ""
        try:
            result = fit(method, backbone, conformance_data, folder, callbacks=[gradients], **quick(method))
        except UserError as error:
            refusal = str(error)
        return Pair(method, backbone, conformance_data, folder, gradients.seen, result, refusal)

    def find(name: str, place: str) -> Pair:
        if (name, place) not in pairs:
            pairs[name, place] = train(name, place)
        return pairs[name, place]

    return find


@pytest.fixture(params=BACKBONES)
def place(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def pair(trained: Callable[[str, str], Pair], name: str, place: str) -> Pair:
    return trained(name, place)


@pytest.fixture
def carried(pair: Pair) -> Pair:
    if pair.refusal:
        pytest.skip(f"refused: {pair.refusal}")
    return pair


def test_it_is_carried_or_refused_in_one_line_with_nothing_written(pair: Pair) -> None:
    if pair.result is not None:
        assert {"run.json", "prompt.json", "prompt.safetensors"} <= {path.name for path in pair.folder.iterdir()}
        return
    assert pair.refusal.count("\n") == 0
    assert pair.refusal.endswith(".")
    assert not pair.folder.exists()
    with pytest.raises(UserError):
        pair.method.build(pair.backbone, ["cat", "dog"])  # type: ignore[attr-defined]


def test_every_method_is_carried_by_some_backbone(trained: Callable[[str, str], Pair], name: str) -> None:
    refusals = [trained(name, place).refusal for place in BACKBONES]
    assert "" in refusals, refusals


def test_its_name_and_settings_make_it_again(name: str) -> None:
    facts = describe_method(small(name), METHODS)
    assert facts["name"] == name
    assert make_method(facts["name"], facts["settings"]) == small(name)


def test_every_parameter_that_learns_is_moved(carried: Pair) -> None:
    assert carried.method.is_trained == bool(carried.gradients)
    assert [parameter for parameter, moves in carried.gradients.items() if not moves] == []


def test_the_frozen_weights_are_as_they_were(carried: Pair) -> None:
    carried.classifier.predict_proba(carried.images)
    assert carried.backbone.compute_fingerprint() == carried.backbone.fingerprint
    assert not any(value.requires_grad for value in carried.backbone.model.parameters())  # type: ignore[attr-defined]


def test_what_was_saved_predicts_the_same(carried: Pair) -> None:
    loaded = mp.load(carried.folder, carried.backbone)
    assert type(loaded) is type(carried.classifier)
    rows = carried.classifier.predict_proba(carried.images)
    np.testing.assert_array_equal(loaded.predict_proba(carried.images), rows)
    np.testing.assert_array_equal(
        loaded.probabilities(carried.images), carried.classifier.probabilities(carried.images)
    )


def test_one_image_and_many_are_predicted_alike(carried: Pair) -> None:
    one, many = carried.classifier.predict(carried.images[0]), carried.classifier.predict(carried.images)
    assert isinstance(one, Prediction)
    assert isinstance(many, list)
    assert list(many[0].probabilities) == list(one.probabilities)
    assert carried.result is not None
    rows, score = carried.classifier.predict_proba(carried.images), carried.result.evaluate(carried.data.test)
    assert rows.shape == (len(carried.images), 3)
    assert rows.sum(1) == pytest.approx(1)
    for path, row in zip(carried.images, rows, strict=True):
        assert carried.classifier.predict_proba(path)[0] == pytest.approx(row, rel=1e-4)
    assert [carried.data.class_names[label] for label in score.predictions] == [each.label for each in many]


def test_predicting_changes_nothing(carried: Pair) -> None:
    before, first = bytes_of(carried.classifier), carried.classifier.predict_proba(carried.images)
    carried.classifier.predict_proba(carried.images[::-1])
    np.testing.assert_array_equal(carried.classifier.predict_proba(carried.images), first)
    assert bytes_of(carried.classifier) == before


def test_a_run_that_was_broken_off_resumes_to_the_same_bytes(carried: Pair, tmp_path: Path) -> None:
    if carried.gradients:
        with pytest.raises(InterruptedError):
            carried.fit(out=tmp_path / "run", callbacks=[Interrupted()])
        assert not (tmp_path / "run" / "prompt.json").exists()
    carried.fit(out=tmp_path / "run", resume=True)
    for file in ("prompt.safetensors", "prompt.json"):
        assert (tmp_path / "run" / file).read_bytes() == (carried.folder / file).read_bytes()


def test_another_seed_learns_something_else_where_something_is_drawn(carried: Pair) -> None:
    again, other = (carried.fit(seed=seed) for seed in (1, 2))
    assert bytes_of(again) == bytes_of(carried.classifier)
    assert (bytes_of(other) != bytes_of(again)) == carried.method.is_trained


def test_other_class_names_are_taken_or_refused_in_one_line(carried: Pair, tmp_path: Path) -> None:
    names = ["fish", "a happy cat"]
    if carried.classifier.prompt.is_class_specific:
        with pytest.raises(UserError, match=r"^this prompt has a context or a head for each class, so it cannot .*\.$"):
            carried.classifier.with_class_names(names)
        return
    other = carried.classifier.with_class_names(names)
    rows = other.predict_proba(carried.images)
    assert rows.shape == (len(carried.images), 2)
    mp.save(other, tmp_path)
    np.testing.assert_array_equal(mp.load(tmp_path, carried.backbone).predict_proba(carried.images), rows)
    assert carried.classifier.class_names == carried.data.class_names


def test_two_classes_with_one_image_each_are_enough(carried: Pair) -> None:
    first = {item.label: item for item in carried.data.train if item.label < 2}
    names = carried.data.class_names[:2]
    few = replace(carried.data, class_names=names, train=tuple(first.values()), val=tuple(first.values()), test=())
    classifier = carried.fit(few, **({"batch_size": 8} if carried.method.is_trained else {}))
    rows = classifier.predict_proba(carried.images)
    assert rows.shape == (len(carried.images), 2)
    assert np.isfinite(rows).all()


def test_one_class_is_refused(carried: Pair, tmp_path: Path) -> None:
    train = tuple(replace(item, label=0) for item in carried.data.train)
    single = replace(carried.data, class_names=("cat",), train=train, val=(), test=())
    with pytest.raises(UserError, match="'cat' is the only class"):
        carried.fit(single, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line_reads_its_settings(name: str) -> None:
    method = read_call(["--method", name, "--backbone", "some"], "mmprompt train").method
    assert describe_method(method, METHODS)["name"] == name
