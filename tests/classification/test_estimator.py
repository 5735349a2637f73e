import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score

from mmprompt.classification.estimator import PromptClassifier
from mmprompt.classification.methods import CoOp
from mmprompt.errors import UserError
from mmprompt.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("feature_store")

RECIPE = Recipe(epochs=8, batch_size=4, lr=0.1, augment="none")


@pytest.fixture(scope="module")
def pictures():
    """24 arrays [36, 36, 3] of three colours, and their labels."""
    rng = np.random.default_rng(1)
    colours = np.array([[200, 40, 40], [40, 180, 60], [50, 60, 200]])
    labels = np.arange(24) % 3
    noise = rng.integers(-40, 40, (24, 36, 36, 3)) + colours[labels][:, None, None]
    return noise.clip(0, 255).astype(np.uint8), np.array(["red", "green", "blue"])[labels]


@pytest.fixture
def estimator(tiny_clip_backbone):
    return PromptClassifier(tiny_clip_backbone, CoOp(n_ctx=4), RECIPE)


def test_columns_follow_the_sorted_classes(estimator, pictures):
    images, labels = pictures
    fitted = estimator.fit(images, labels)
    assert fitted is estimator
    assert fitted.classes_.tolist() == ["blue", "green", "red"]
    probabilities = fitted.predict_proba(images)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    np.testing.assert_array_equal(fitted.predict(images), fitted.classes_[probabilities.argmax(1)])


def test_score_is_accuracy(estimator, pictures):
    images, labels = pictures
    fitted = estimator.fit(images, labels)
    assert fitted.score(images, labels) == (fitted.predict(images) == labels).mean()


def test_numbers_get_their_words_from_class_names(tiny_clip_backbone, pictures):
    images, _ = pictures
    words = {0: "red car", 1: "green tree", 2: "blue house"}
    fitted = PromptClassifier(tiny_clip_backbone, CoOp(n_ctx=2), RECIPE, words).fit(images, np.arange(24) % 3)
    assert fitted.classifier_.class_names == ("red car", "green tree", "blue house")
    assert fitted.predict(images[:2]).dtype.kind == "i"


def test_clone_has_the_same_parameters_and_is_not_fitted(estimator, pictures):
    copy = clone(estimator.fit(*pictures))
    assert copy.get_params() == estimator.get_params()
    assert copy.backbone is estimator.backbone
    with pytest.raises(NotFittedError):
        copy.predict(pictures[0])


def test_cross_validation_works(estimator, pictures):
    assert cross_val_score(estimator, *pictures, cv=2).shape == (2,)


def test_search_over_methods_works(estimator, pictures):
    search = GridSearchCV(estimator, {"method": [CoOp(n_ctx=2), CoOp(n_ctx=4)]}, cv=2).fit(*pictures)
    assert search.best_params_["method"] in (CoOp(n_ctx=2), CoOp(n_ctx=4))


def test_fitting_twice_gives_the_same_probabilities(estimator, pictures):
    first = estimator.fit(*pictures).predict_proba(pictures[0])
    np.testing.assert_array_equal(first, clone(estimator).fit(*pictures).predict_proba(pictures[0]))


def test_pictures_may_be_pil_images(estimator, pictures):
    images = [Image.fromarray(array) for array in pictures[0]]
    np.testing.assert_allclose(
        estimator.fit(images, pictures[1]).predict_proba(images), clone(estimator).fit(*pictures).predict_proba(images)
    )


@pytest.mark.parametrize(
    ("n", "labels", "message"),
    [
        (4, ["a"] * 3, "y is 3 labels long, but there are 4 images"),
        (4, ["a"] * 4, "y holds 1 class"),
        (4, [["a"], ["b"], ["a"], ["b"]], r"y is of shape \(4, 1\), but one label an image was expected"),
        (4, ["a", None, "b", "a"], "y holds labels that cannot be sorted"),
        (4, [["a"], ["b", "c"], ["a"], ["b"]], "y holds labels that cannot be sorted"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(estimator, pictures, n, labels, message):
    with pytest.raises(UserError, match=message):
        estimator.fit(pictures[0][:n], labels)


def test_words_that_are_no_mapping_are_refused(tiny_clip_backbone, pictures):
    estimator = PromptClassifier(tiny_clip_backbone, CoOp(n_ctx=2), RECIPE, "cat")
    with pytest.raises(UserError, match="class_names is 'cat', but it must be a mapping"):
        estimator.fit(pictures[0][:2], [0, 1])


def test_label_without_a_word_is_refused(tiny_clip_backbone, pictures):
    estimator = PromptClassifier(tiny_clip_backbone, CoOp(n_ctx=2), RECIPE, {0: "cat"})
    with pytest.raises(UserError, match="no word for label 1"):
        estimator.fit(pictures[0][:2], [0, 1])
