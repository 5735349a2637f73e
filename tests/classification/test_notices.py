"""What is said of a training beside zero-shot: names at chance, and an accuracy that stays below it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from torch import Tensor

import mmprompt as mp
from mmprompt.classification import notices
from mmprompt.classification.notices import BelowZeroShot, ZeroShotScore, at_chance
from mmprompt.core.fit import fit
from mmprompt.core.learned import Outputs
from mmprompt.data.splits import Dataset
from mmprompt.files import read_json
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.training.callbacks import Callback
from mmprompt.training.problem import Run
from mmprompt.training.recipe import Recipe


@dataclass(frozen=True)
class Still(mp.CoOp):
    """Learns nothing from its start."""

    def loss_terms(self, outputs: Outputs) -> dict[str, Tensor]:
        return {"still": 1 + 0 * mp.cross_entropy(outputs)}


@pytest.mark.parametrize(("right", "n", "chance"), [(3, 20, 0.05), (0, 7, 0.3), (20, 20, 0.5), (400, 1000, 0.37)])
def test_the_test_is_the_exact_binomial_one(right: int, n: int, chance: float) -> None:
    expected = binomtest(right, n, chance, alternative="greater").pvalue
    assert ZeroShotScore(right, n, chance).p_value == pytest.approx(expected, rel=1e-9)


def test_chance_is_what_the_names_given_would_bring_without_looking() -> None:
    labels = np.array([0, 0, 0, 1])
    assert ZeroShotScore.of(np.zeros(4, dtype=int), labels, 2) == ZeroShotScore(3, 4, 0.75)
    assert ZeroShotScore.of(np.array([0, 1, 0, 1]), labels, 2).chance == pytest.approx(0.5)


def problem_with(score: ZeroShotScore) -> Any:
    return SimpleNamespace(zero_shot_score=score, noticed=[])


def test_names_at_chance_are_said_once_with_what_to_try() -> None:
    (said,) = at_chance(problem_with(ZeroShotScore(2, 40, 0.05)), 40)
    assert said.startswith("zero-shot names 2 of 40 training images right, where chance gives 2: ")
    assert said.endswith("Try another backbone, clearer class names or another template, or linear-probe, which "
                         "needs no names.")  # fmt: skip
    assert at_chance(problem_with(ZeroShotScore(12, 40, 0.05)), 40) == []


def test_of_few_images_nothing_is_said() -> None:
    assert at_chance(problem_with(ZeroShotScore(0, 19, 0.05)), 19) == []


def epochs(records: list[tuple[float, float]], zero_shot: float, warmup: int = 0, history: int = 0) -> list[str]:
    """Watch a training whose epochs have these losses and accuracies, the first `history` before a resume."""
    problem = problem_with(ZeroShotScore(round(100 * zero_shot), 100, 0.1))
    run = Run(problem, Recipe(lr=0.5, warmup_epochs=warmup), len(records), 1)
    each = [{"loss": loss, "accuracy": accuracy} for loss, accuracy in records]
    run.history = each[:history]
    watch = BelowZeroShot()
    watch.on_train_begin(run)
    for epoch, record in enumerate(each[history:], start=history):
        watch.on_epoch_end(run, epoch, record)
        run.history.append(record)
    return problem.noticed


ASTRAY = [(1.0, 0.7), (2.0, 0.3), (2.5, 0.3), (2.1, 0.3), (2.2, 0.2), (3.0, 0.2), (3.0, 0.1), (3.0, 0.1)]


def test_five_epochs_below_zero_shot_whose_loss_does_not_fall_are_noticed_once_as_they_happen(
    caplog: pytest.LogCaptureFixture,
) -> None:
    noticed = epochs(ASTRAY, 0.6)
    assert noticed == [
        "for 5 epochs up to epoch 6 the training accuracy was below zero-shot's (60.0 %, now 20.0 %) and the loss did "
        "not fall. Try a lower lr (it is 0.5)."
    ]
    assert caplog.messages == noticed


@pytest.mark.parametrize(
    ("records", "zero_shot", "warmup"),
    [
        ([(2.0 - place / 10, 0.3) for place in range(8)], 0.6, 0),  # far below, but it learns
        ([(2.0, 0.7)] * 8, 0.6, 0),
        ([(2.0, 0.3), (2.0, 0.3), (2.0, 0.7), (2.0, 0.3), (2.0, 0.3), (2.0, 0.3), (2.0, 0.3)], 0.6, 0),
        ([(2.0, 0.3)] * 5, 0.6, 1),  # the first is warm-up
    ],
)
def test_what_learns_or_is_above_is_no_matter(
    records: list[tuple[float, float]], zero_shot: float, warmup: int
) -> None:
    assert epochs(records, zero_shot, warmup) == []


def test_a_resumed_training_says_what_one_in_one_go_says() -> None:
    assert epochs(ASTRAY, 0.6) == epochs(ASTRAY, 0.6, history=3) == epochs(ASTRAY, 0.6, history=7)


class Listening(Callback):
    """What had been said when each epoch ended."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        self.heard.append(len(run.problem.noticed))  # type: ignore[attr-defined]


@pytest.fixture
def data(picture_folder: Path) -> Dataset:
    return mp.ImageFolder(picture_folder, shots=7, seed=1, augment="none")


def labelled(data: Dataset, shift: int, backbone: DualEncoder) -> Dataset:
    """Images whose labels are those that zero-shot gives them, so many classes further."""
    named = mp.zero_shot(backbone, data.class_names, data.template).probabilities([item.path for item in data.train])
    labels = (named.argsort(1)[:, -1] + shift) % 3
    return replace(data, train=tuple(replace(item, label=int(at)) for item, at in zip(data.train, labels, strict=True)))


@pytest.mark.parametrize("shift", [0, 1])
def test_names_at_chance_are_in_the_run(
    shift: int, tmp_path: Path, data: Dataset, tiny_clip_backbone: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "FEWEST_IMAGES", 18)
    monkeypatch.setattr(ZeroShotScore, "p_value", property(lambda score: 1 - score.accuracy))
    result = fit("text-and-means", tiny_clip_backbone, labelled(data, shift, tiny_clip_backbone), tmp_path)
    said = [notice for notice in result.notices if notice.startswith("zero-shot names 0 of 18 training images right")]
    assert len(said) == shift
    assert read_json(tmp_path / "run.json").get("notices", []) == list(result.notices)


@pytest.mark.parametrize("name", ["linear-probe", "nearest-class-mean"])
def test_names_at_chance_are_nothing_to_a_head_that_reads_none(
    name: str, data: Dataset, tiny_clip_backbone: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "FEWEST_IMAGES", 18)
    monkeypatch.setattr(ZeroShotScore, "p_value", 1.0)
    said = fit(name, tiny_clip_backbone, labelled(data, 1, tiny_clip_backbone)).notices
    assert not any("zero-shot names" in notice for notice in said)


def test_a_training_gone_astray_is_told_while_it_runs(data: Dataset, tiny_clip_backbone: DualEncoder) -> None:
    right, listening = labelled(data, 0, tiny_clip_backbone), Listening()
    settings: dict[str, Any] = {"epochs": 8, "progress": False, "warmup_epochs": 0, "callbacks": [listening]}
    result = fit(Still(2), tiny_clip_backbone, right, **settings)
    assert sum("the loss did not fall. Try a lower lr" in notice for notice in result.notices) == 1
    assert listening.heard == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_method_that_reads_no_image_is_told_nothing(picture_folder, tiny_clip_backbone) -> None:
    data = mp.ImageFolder(picture_folder, shots=7, seed=1, augment="none")
    assert fit("zero-shot", tiny_clip_backbone, data).notices == ()
