from dataclasses import replace

import numpy as np
import pytest
import torch

from mmprompt.classification.baselines import (
    BASELINES,
    LinearProbe,
    NearestClassMean,
    ZeroShot,
    ZeroShotEnsemble,
    best_exponent,
    ensemble_features,
    imagenet_templates,
    make_baseline,
)
from mmprompt.classification.task import probabilities, zero_shot
from mmprompt.data.folder import ImageFolder
from mmprompt.errors import UserError
from mmprompt.models.image_features import ImageFeatures, encode_pictures

pytestmark = pytest.mark.usefixtures("feature_store")


@pytest.fixture
def whole(data):
    """The colours with a validation part: the first training picture of each class."""
    first = {item.label: item for item in reversed(data.train)}
    return replace(data, val=tuple(first.values()), templates=("a {}", "the {}", "{}"))


@pytest.fixture
def features(tiny_clip_backbone):
    return ImageFeatures(tiny_clip_backbone, store=None)


def paths(items):
    return [item.path for item in items]


def table(baseline, backbone, data, features):
    scorer = baseline.fit(backbone, data, features)
    return scorer.probabilities(paths(data.test), data.class_names, data.template)


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_gives_a_distribution_for_each_picture(name, tiny_clip_backbone, whole, features):
    found = table(make_baseline(name), tiny_clip_backbone, whole, features)
    assert found.shape == (len(whole.test), 3)
    assert found.sum(1) == pytest.approx(1)


@pytest.mark.parametrize("name", BASELINES)
def test_no_baseline_looks_at_the_test_part_when_it_learns(name, tiny_clip_backbone, whole, features):
    class Untouchable(tuple):
        def __iter__(self):
            raise AssertionError("the test part was read")

    scorer = make_baseline(name).fit(tiny_clip_backbone, replace(whole, test=Untouchable()), features)
    found = scorer.probabilities(paths(whole.test), whole.class_names, whole.template)
    assert np.array_equal(found, table(make_baseline(name), tiny_clip_backbone, whole, features))


def test_zero_shot_is_the_frozen_model_with_the_sets_template(tiny_clip_backbone, whole, features):
    expected = probabilities(zero_shot(tiny_clip_backbone, whole.class_names, whole.template), paths(whole.test))
    assert np.array_equal(table(ZeroShot(), tiny_clip_backbone, whole, features), expected)


def test_the_ensemble_is_the_normalised_mean_of_unit_norm_class_features(tiny_clip_backbone):
    names, templates = ("cat", "dog"), ("a photo of a {}.", "art of a {}", "{}")
    each = [zero_shot(tiny_clip_backbone, names, t).class_features().detach().double().numpy() for t in templates]
    mean = sum(each) / 3
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    assert ensemble_features(tiny_clip_backbone, names, templates).numpy() == pytest.approx(expected, abs=1e-6)


def test_the_ensemble_is_the_sets_own_where_it_has_one(tiny_clip_backbone, whole, features):
    one = ("a {}", "the {}")
    scorer = ZeroShotEnsemble().fit(tiny_clip_backbone, replace(whole, templates=one), features)
    assert scorer.templates == one
    assert (
        len(ZeroShotEnsemble().fit(tiny_clip_backbone, replace(whole, templates=()), features).templates)
        == len(imagenet_templates())
        == 80
    )


def test_nearest_class_mean_picks_the_class_with_the_largest_cosine(tiny_clip_backbone, whole, features):
    rows = encode_pictures(tiny_clip_backbone, paths(whole.train)).double().numpy()
    labels = np.array([item.label for item in whole.train])
    means = np.stack([rows[labels == c].mean(0) for c in range(3)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    expected = (encode_pictures(tiny_clip_backbone, paths(whole.test)).double().numpy() @ means.T).argmax(1)
    assert np.array_equal(table(NearestClassMean(), tiny_clip_backbone, whole, features).argmax(1), expected)


def test_a_linear_probe_with_the_strength_given_is_scikit_learns(tiny_clip_backbone, whole, features):
    from sklearn.linear_model import LogisticRegression

    rows, held = (encode_pictures(tiny_clip_backbone, paths(p)).double().numpy() for p in (whole.train, whole.test))
    model = LogisticRegression(C=2.0, max_iter=1000).fit(rows, [item.label for item in whole.train])
    found = table(LinearProbe(inverse_strength=2.0), tiny_clip_backbone, whole, features)
    assert found == pytest.approx(model.predict_proba(held), abs=1e-6)


def test_the_strength_is_searched_in_ever_smaller_steps_about_the_best():
    tried = []

    def accuracy(c):
        tried.append(round(float(np.log10(c)), 6))
        return -abs(np.log10(c) - 1.2)

    assert best_exponent(accuracy) == pytest.approx(1.25)
    assert tried[:7] == [-6, -4, -2, 0, 2, 4, 6]
    assert len(tried) == 7 + 2 * 4


def test_the_strength_stays_within_a_million():
    assert best_exponent(lambda c: c) == 6
    assert best_exponent(lambda c: -c) == -6


def test_a_linear_probe_without_validation_says_what_to_do(tiny_clip_backbone, data, features):
    with pytest.raises(UserError, match="--inverse-strength"):
        LinearProbe().fit(tiny_clip_backbone, replace(data, val=()), features)


@pytest.mark.parametrize("name", ["linear-probe", "nearest-class-mean"])
def test_heads_refuse_other_class_names(name, tiny_clip_backbone, whole, features):
    scorer = make_baseline(name).fit(tiny_clip_backbone, whole, features)
    assert not scorer.reads_class_names
    with pytest.raises(UserError, match="3 classes it was fitted on"):
        scorer.probabilities(paths(whole.test), ("cat", "dog", "owl"), whole.template)


def test_zero_shot_takes_other_class_names(tiny_clip_backbone, whole, features):
    scorer = ZeroShot().fit(tiny_clip_backbone, whole, features)
    assert scorer.reads_class_names
    assert scorer.probabilities(paths(whole.test), ("cat", "owl"), "{}").shape[1] == 2


def test_parameters_are_counted(tiny_clip_backbone, whole, features):
    width = tiny_clip_backbone.embed_dim
    counts = [make_baseline(n).fit(tiny_clip_backbone, whole, features).n_parameters for n in BASELINES]
    assert counts == [0, 0, 3 * width, 3 * (width + 1)]


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("zero-shott", {}, "zero-shot"),
        ("linear-probe", {"inverse_strenght": 1.0}, "inverse_strength"),
        ("linear-probe", {"inverse_strength": 0.0}, "above 0"),
        ("linear-probe", {"max_iter": 0}, "1 or more"),
        ("zero-shot", {"words": "no place"}, "{}"),
    ],
)
def test_wrong_baselines_are_refused_in_one_line(name, settings, text):
    with pytest.raises(UserError, match=text.replace("{}", r"\{\}")) as refusal:
        make_baseline(name, settings)
    assert "\n" not in str(refusal.value)


def test_an_own_folder_without_validation_has_a_baseline(tiny_clip_backbone, picture_folder, features):
    own = ImageFolder(picture_folder, shots=2, seed=1)
    assert table(NearestClassMean(), tiny_clip_backbone, own, features).shape[1] == 3
    assert torch.is_grad_enabled()
