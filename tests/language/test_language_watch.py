"""The alarms of a training, each sounded by what it is for."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

from mmprompt.core.learned import Learned, Prompt
from mmprompt.language.explain import VectorWatch
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.templates.template import Template
from mmprompt.models.decoder.vectors import LM_INPUT
from mmprompt.training.loop import train
from mmprompt.training.problem import StepResult
from mmprompt.training.recipe import Recipe
from tests.language_models import frozen_model

RECIPE = Recipe(optimizer="sgd", lr=1e-6, epochs=4, batch_size=2, momentum=0.0, weight_decay=0.0, warmup_epochs=0)


class Pulled:
    """A problem whose gradient is the vectors' sum times a factor of the epoch."""

    def __init__(self, prompted: LanguagePredictor, factors: tuple[float, ...]) -> None:
        self.prompted, self.factors = prompted, factors
        self.n_items = 4

    @property
    def module(self) -> nn.Module:
        return self.prompted.prompt

    def step(self, indices: list[int], epoch: int) -> StepResult:
        return StepResult({"loss_of": self.factors[epoch] * self.prompted.vectors()[LM_INPUT].values.sum()})

    def validate(self) -> None:
        return None


def watched(factors: tuple[float, ...], size: float = 1.0, lr: float = 1e-6) -> tuple[VectorWatch, list[dict]]:
    model = frozen_model("llama")
    source = Learned(LM_INPUT, torch.full((2, model.width), size * model.embedding_rms))
    prompted = LanguagePredictor(model, Prompt(Template.parse("{soft*2} {answer}"), source))
    watch = VectorWatch(prompted)
    history = train(Pulled(prompted, factors), replace(RECIPE, lr=lr), 1, 4, None, "", [watch], False)
    return watch, history


def test_an_ordinary_training_is_quiet_and_leaves_its_figures() -> None:
    watch, history = watched((1.0, 1.0, 1.0, 1.0))
    assert watch.alarms == {}
    width = watch.prompted.model.width
    assert [record["gradient_norm"] for record in history] == pytest.approx([(2 * width) ** 0.5] * 4)
    assert history[-1]["vector_size"] == pytest.approx(1.0, rel=1e-3)


def test_a_gradient_that_vanishes_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        watch, _ = watched((1.0, 1e-12, 1e-12, 1e-12))
    assert list(watch.alarms) == ["vanished"]
    assert sum("vanished" in record.message for record in caplog.records) == 1
    assert "epoch 2" in watch.alarms["vanished"]


def test_a_gradient_that_bursts_is_said() -> None:
    watch, _ = watched((1.0, 1.0, 500.0, 1.0))
    assert list(watch.alarms) == ["burst"]
    assert "epoch 3" in watch.alarms["burst"]
    assert "500 times" in watch.alarms["burst"]


def test_vectors_that_outgrow_the_model_are_said() -> None:
    watch, _ = watched((1.0,) * 4, size=6.0)
    assert list(watch.alarms) == ["outgrown"]
    assert "6.0 times" in watch.alarms["outgrown"]
