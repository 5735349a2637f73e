"""A head chosen on folds of the training images: which one, by what, and what is said of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mmprompt as mp
from mmprompt.classification.methods import auto as chooser
from mmprompt.classification.methods import make_method
from mmprompt.classification.methods.auto import CANDIDATES, Auto
from mmprompt.classification.methods.solved import folds_of
from mmprompt.core.fit import fit
from mmprompt.models.image_features import ImageFeatures


@pytest.fixture
def mislabelled(data):
    """Colours of which one image in each class has the label of another, so that no head is perfect."""
    first = {item.label: item for item in reversed(data.train)}
    train = [replace(item, label=(item.label + 1) % 3) if item in first.values() else item for item in data.train]
    return replace(data, train=tuple(train))


def test_the_head_is_the_one_with_the_lowest_log_loss_on_images_left_out(tiny_clip_backbone, mislabelled):
    data = mislabelled
    labels = torch.tensor([item.label for item in data.train])
    features = ImageFeatures(tiny_clip_backbone, store=None).of([item.path for item in data.train])
    losses = {}
    for number, (_, head) in enumerate(CANDIDATES):
        total = 0.0
        for out in folds_of(features, labels):
            kept = tuple(item for item, is_out in zip(data.train, out, strict=True) if not is_out)
            left = [item.path for item, is_out in zip(data.train, out, strict=True) if is_out]
            fitted = fit(head, tiny_clip_backbone, replace(data, train=kept, val=())).predictor
            rows = torch.from_numpy(fitted.probabilities(left))
            total += F.nll_loss(rows.log(), labels[out], reduction="sum").item()
        losses[number] = total / len(labels)
    best = min(losses, key=lambda number: losses[number])
    name, head = CANDIDATES[best]
    rival = min(loss for number, loss in losses.items() if CANDIDATES[number][0] != name)

    result = fit("auto", tiny_clip_backbone, data)
    alone = fit(head, tiny_clip_backbone, replace(data, val=())).predictor
    images = [item.path for item in data.test]
    np.testing.assert_array_equal(result.predictor.probabilities(images), alone.probabilities(images))
    (said,) = (notice for notice in result.notices if notice.startswith("auto"))
    assert said.startswith(f"auto chose {name}: log-loss {losses[best]:.2g} on images held out, next ")
    assert said.endswith(f" {rival:.2g}.")


def test_validation_images_are_not_looked_at(tiny_clip_backbone, data):
    wrong = tuple(replace(item, label=(item.label + 1) % 3) for item in data.test)
    without, beside = (fit("auto", tiny_clip_backbone, replace(data, val=val)) for val in ((), wrong))
    images = [item.path for item in data.test]
    np.testing.assert_array_equal(*(one.predictor.probabilities(images) for one in (without, beside)))


def test_with_one_image_a_class_it_is_text_probe_and_says_so(tiny_clip_backbone, data, caplog):
    one_each = tuple({item.label: item for item in data.train}.values())
    few = replace(data, train=one_each, val=())
    result = fit(Auto(), tiny_clip_backbone, few)
    assert "auto took text-probe: a class has one image, so none could be held out to choose by." in caplog.messages
    alone = fit("text-probe", tiny_clip_backbone, few).predictor
    images = [item.path for item in data.test]
    np.testing.assert_array_equal(result.predictor.probabilities(images), alone.probabilities(images))


def test_of_equal_losses_the_higher_accuracy_wins(tiny_clip_backbone, data, monkeypatch):
    scores = iter([(0.5, 0.8), (0.5, 0.9), (0.7, 1.0)])
    monkeypatch.setattr(chooser, "CANDIDATES", CANDIDATES[:3])
    monkeypatch.setattr(chooser, "_score", lambda *_: next(scores))
    notices = fit("auto", tiny_clip_backbone, data).notices
    assert "auto chose text-and-means: log-loss 0.5 on images held out, next text-probe 0.5." in notices


def test_the_run_says_what_was_chosen_and_holds_its_head(tiny_clip_backbone, data, tmp_path):
    result = fit("auto", tiny_clip_backbone, data, tmp_path)
    saved = json.loads((tmp_path / "run.json").read_text())
    assert saved["notices"] == list(result.notices)
    assert saved["method"] == {"name": "auto", "settings": {}}
    loaded = mp.load(tmp_path, tiny_clip_backbone)
    assert type(loaded.prompt.head) is type(result.predictor.prompt.head)


def test_a_prompt_that_was_learned_first_gets_a_head_that_was_chosen(tiny_clip_backbone, data):
    method = make_method("coop+auto", {"n_ctx": 2})
    result = fit(method, tiny_clip_backbone, data, epochs=1, progress=False)
    assert any(notice.startswith("auto chose") for notice in result.notices)
    assert result.predictor.prompt.head is not None


@pytest.mark.parametrize("name", [name for name, _ in CANDIDATES])
def test_each_candidate_goes_by_its_name(name):
    assert {type(head) for own, head in CANDIDATES if own == name} == {type(make_method(name))}
