"""Methods that train no prompt, held to their definitions and to scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mmprompt.classification.methods import make_method
from mmprompt.classification.methods.solved import LinearProbe, NearestClassMean, best_exponent
from mmprompt.classification.methods.zero_shot import ZeroShot, ZeroShotEnsemble, imagenet_templates
from mmprompt.classification.task import zero_shot
from mmprompt.classification.template import ClassTemplate
from mmprompt.core.fit import fit
from mmprompt.core.method import Start
from mmprompt.data.folder import ImageFolder
from mmprompt.errors import UserError
from mmprompt.models.image_features import ImageFeatures, encode_images

pytestmark = pytest.mark.usefixtures("feature_store")

FROZEN = ["zero-shot", "zero-shot-ensemble", "nearest-class-mean", "linear-probe"]


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


def fitted(method, backbone, data, features):
    return fit(method, backbone, data.task(features)).predictor


def table(method, backbone, data, features):
    return fitted(method, backbone, data, features).probabilities(paths(data.test), features)


@pytest.mark.parametrize("name", FROZEN)
def test_each_gives_a_distribution_for_each_picture(name, tiny_clip_backbone, whole, features):
    found = table(make_method(name), tiny_clip_backbone, whole, features)
    assert found.shape == (len(whole.test), 3)
    assert found.sum(1) == pytest.approx(1)


@pytest.mark.parametrize("name", FROZEN)
def test_none_looks_at_the_test_part_when_it_learns(name, tiny_clip_backbone, whole, features):
    blind = fitted(make_method(name), tiny_clip_backbone, replace(whole, test=()), features)
    found = blind.probabilities(paths(whole.test), features)
    assert np.array_equal(found, table(make_method(name), tiny_clip_backbone, whole, features))


def test_zero_shot_is_the_frozen_model_with_the_sets_template(tiny_clip_backbone, whole, features):
    expected = zero_shot(tiny_clip_backbone, whole.class_names, whole.template).probabilities(paths(whole.test))
    assert np.array_equal(table(ZeroShot(), tiny_clip_backbone, whole, features), expected)
    words = table(ZeroShot("{}"), tiny_clip_backbone, whole, features)
    assert np.array_equal(
        words, zero_shot(tiny_clip_backbone, whole.class_names, "{}").probabilities(paths(whole.test))
    )
    assert not np.array_equal(words, expected)


def test_the_ensemble_is_the_normalised_mean_of_unit_norm_class_features(tiny_clip_backbone):
    names, templates = ("cat", "dog"), ("a photo of a {}.", "art of a {}", "{}")
    each = [zero_shot(tiny_clip_backbone, names, t).class_features().detach().double().numpy() for t in templates]
    mean = sum(each) / 3
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    together = zero_shot(tiny_clip_backbone, names, "\n".join(templates)).class_features()
    assert together.numpy() == pytest.approx(expected, abs=1e-6)


def test_the_ensemble_is_the_sets_own_where_it_has_one(tiny_clip_backbone, whole, features):
    own = fitted(ZeroShotEnsemble(), tiny_clip_backbone, replace(whole, templates=("a {}", "the {}")), features)
    assert own.prompt.template.text == "a {}\nthe {}"
    start = Start(torch.Generator(), ClassTemplate(whole.template), whole.class_names)
    published = ZeroShotEnsemble().prompt(tiny_clip_backbone, start)
    assert published.template.text.split("\n") == list(imagenet_templates())
    assert len(imagenet_templates()) == 80


def test_nearest_class_mean_picks_the_class_with_the_largest_cosine(tiny_clip_backbone, whole, features):
    rows = encode_images(tiny_clip_backbone, paths(whole.train)).double().numpy()
    labels = np.array([item.label for item in whole.train])
    means = np.stack([rows[labels == c].mean(0) for c in range(3)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    expected = (encode_images(tiny_clip_backbone, paths(whole.test)).double().numpy() @ means.T).argmax(1)
    assert np.array_equal(table(NearestClassMean(), tiny_clip_backbone, whole, features).argmax(1), expected)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_linear_probe_with_the_strength_given_is_scikit_learns(n_classes, tiny_clip_backbone, whole, features):
    train, test = (tuple(i for i in part if i.label < n_classes) for part in (whole.train, whole.test))
    some = replace(whole, class_names=whole.class_names[:n_classes], train=train, test=test)
    rows, held = (encode_images(tiny_clip_backbone, paths(p)).double().numpy() for p in (train, test))
    model = LogisticRegression(C=2.0, max_iter=1000).fit(rows, [item.label for item in train])
    found = table(LinearProbe(inverse_strength=2.0), tiny_clip_backbone, some, features)
    assert found == pytest.approx(model.predict_proba(held), rel=1e-12)


@pytest.mark.parametrize("method", [LinearProbe(inverse_strength=2.0), NearestClassMean()], ids=["probe", "mean"])
def test_heads_are_fitted_to_pictures_as_they_are_whatever_the_augmentation(
    method, tiny_clip_backbone, whole, features
):
    plain = table(method, tiny_clip_backbone, replace(whole, augment="none"), features)
    assert np.array_equal(table(method, tiny_clip_backbone, replace(whole, augment="coop"), features), plain)


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


def test_without_validation_a_linear_probe_chooses_by_folds_of_its_training_images(tiny_clip_backbone, data, features):
    rows = encode_images(tiny_clip_backbone, paths(data.train)).double().numpy()
    labels = np.array([item.label for item in data.train])
    folds = np.array([(labels[:place] == label).sum() for place, label in enumerate(labels)])  # four of four images

    def log_loss(c):
        total = 0.0
        for fold in range(4):
            model = LogisticRegression(C=c, max_iter=1000).fit(rows[folds != fold], labels[folds != fold])
            chances = model.predict_proba(rows[folds == fold])
            total -= np.log(chances[np.arange(len(chances)), labels[folds == fold]]).sum()
        return total

    strength = 10 ** best_exponent(lambda c: -log_loss(c))
    head = fitted(LinearProbe(), tiny_clip_backbone, data, features).prompt.head
    expected = LogisticRegression(C=strength, max_iter=1000).fit(rows, labels)
    assert head.weight.numpy() == pytest.approx(expected.coef_, rel=1e-6)


def test_with_one_image_a_class_and_no_validation_a_linear_probe_has_its_default(tiny_clip_backbone, data, features):
    first = {item.label: item for item in reversed(data.train)}
    single = replace(data, train=tuple(first.values()), val=())
    chosen, given = (
        fitted(method, tiny_clip_backbone, single, features).prompt.head.weight
        for method in (LinearProbe(), LinearProbe(inverse_strength=0.316))
    )
    assert torch.equal(chosen, given)


@pytest.mark.parametrize("name", ["linear-probe", "nearest-class-mean"])
def test_heads_refuse_other_class_names(name, tiny_clip_backbone, whole, features):
    classifier = fitted(make_method(name), tiny_clip_backbone, whole, features)
    with pytest.raises(UserError, match="has a context or a head for each class"):
        classifier.with_class_names(("cat", "dog", "owl"))


@pytest.mark.parametrize("name", ["zero-shot", "zero-shot-ensemble"])
def test_words_take_other_class_names(name, tiny_clip_backbone, whole, features):
    classifier = fitted(make_method(name), tiny_clip_backbone, whole, features).with_class_names(("cat", "owl"))
    assert classifier.probabilities(paths(whole.test), features).shape[1] == 2


def test_parameters_are_counted(tiny_clip_backbone, whole, features):
    width = tiny_clip_backbone.embed_dim
    prompts = [fitted(make_method(name), tiny_clip_backbone, whole, features).prompt for name in FROZEN]
    counts = [sum(parameter.numel() for parameter in prompt.parameters()) for prompt in prompts]
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
def test_wrong_settings_are_refused_in_one_line(name, settings, text):
    with pytest.raises(UserError, match=text.replace("{}", r"\{\}")) as refusal:
        make_method(name, settings)
    assert "\n" not in str(refusal.value)


def test_an_own_folder_without_validation_has_class_means(tiny_clip_backbone, picture_folder, features):
    own = ImageFolder(picture_folder, shots=2, seed=1)
    assert table(NearestClassMean(), tiny_clip_backbone, own, features).shape[1] == 3
    assert torch.is_grad_enabled()
