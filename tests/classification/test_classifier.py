import numpy as np
import pytest
import torch
from PIL import Image

from mmprompt.classification.methods import VPT, CLIPLoRA, CoOp
from mmprompt.classification.predictor import Classifier, Prediction
from mmprompt.classification.template import ClassTemplate
from mmprompt.core.learned import Learned, Prompt
from mmprompt.errors import UserError
from mmprompt.models.sites import Site, Vectors
from tests import small_models

NAMES = ["cat", "dog", "bird"]


@pytest.fixture
def classifier(tiny_clip_backbone):
    return CoOp(n_ctx=4).build(tiny_clip_backbone, NAMES)


@pytest.fixture
def picture():
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def calls_of(module):
    """Count the forwards of a module."""
    count = []
    module.register_forward_hook(lambda *_: count.append(1))
    return count


def test_logits_are_scaled_cosines(classifier, tiny_clip_backbone, pixels):
    images = tiny_clip_backbone.normalize(pixels)
    expected = (
        tiny_clip_backbone.logit_scale
        * tiny_clip_backbone.encode_image(images)
        @ classifier.class_features().detach().T
    )
    torch.testing.assert_close(classifier(images).detach(), expected)


def test_siglip_adds_its_logit_bias(tiny_siglip_backbone, pixels):
    classifier = CoOp(n_ctx=4).build(tiny_siglip_backbone, NAMES)
    images = tiny_siglip_backbone.normalize(pixels)
    cosines = classifier.image_features(images) @ classifier.class_features().T
    assert tiny_siglip_backbone.logit_bias != 0
    torch.testing.assert_close(
        classifier(images), tiny_siglip_backbone.logit_scale * cosines + tiny_siglip_backbone.logit_bias
    )


def test_one_picture_gives_one_prediction(classifier, picture):
    prediction = classifier.predict(picture)
    assert isinstance(prediction, Prediction)
    assert prediction.label == next(iter(prediction.probabilities))
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
    assert set(prediction.probabilities) == set(NAMES)


def test_paths_pictures_arrays_and_tensors_are_predicted_alike(classifier, picture, tmp_path):
    path = tmp_path / "picture.png"
    picture.save(path)
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    rows = classifier.predict_proba([path, str(path), picture, array, tensor, tensor / 255])
    np.testing.assert_allclose(rows, rows[:1].repeat(6, 0), atol=1e-6)


def test_a_batch_is_predicted_as_its_pictures_alone(classifier, pixels):
    together = classifier.predict_proba(pixels)
    alone = np.concatenate([classifier.predict_proba(image) for image in pixels])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_no_pictures_give_no_rows(classifier):
    assert classifier.predict_proba([]).shape == (0, 3)
    assert classifier.predict([]) == []


def test_something_that_is_no_picture_is_refused(classifier):
    with pytest.raises(UserError, match="images is int"):
        classifier.predict(3)


def test_predicting_with_one_class_is_refused(classifier, picture):
    with pytest.raises(UserError, match="'cat' is the only class, but two or more are needed to choose between"):
        classifier.with_class_names(["cat"]).predict(picture)


def test_other_class_names_use_the_same_vectors(classifier):
    other = classifier.with_class_names(["red car", "fish"])
    assert other.prompt.sources[0] is classifier.prompt.sources[0]
    assert other.class_features().shape[0] == 2


def test_class_specific_contexts_refuse_other_class_names(tiny_clip_backbone):
    classifier = CoOp(n_ctx=2, class_specific=True).build(tiny_clip_backbone, NAMES)
    with pytest.raises(UserError, match="has a context or a head for each class"):
        classifier.with_class_names(["fish"])


def test_class_features_are_encoded_once_for_many_predictions(classifier, tiny_clip_backbone, picture):
    count = calls_of(tiny_clip_backbone.model.ln_final)
    for _ in range(3):
        classifier.predict(picture)
    assert len(count) == 1


def test_class_features_follow_the_vectors(classifier):
    with torch.no_grad():
        before = classifier.class_features()
        next(classifier.parameters()).add_(1.0)
        after = classifier.class_features()
    assert not torch.allclose(before, after)


def test_text_prompt_keeps_no_graph_in_the_image_tower(classifier, tiny_clip_backbone, pixels):
    assert not classifier.image_features(tiny_clip_backbone.normalize(pixels)).requires_grad
    assert classifier.class_features().requires_grad


def test_visual_prompt_encodes_the_class_names_once(tiny_clip_backbone, pixels):
    classifier = VPT(n_visual=2).build(tiny_clip_backbone, NAMES)
    count = calls_of(tiny_clip_backbone.model.ln_final)
    images = tiny_clip_backbone.normalize(pixels)
    for _ in range(3):
        classifier(images).sum().backward()
    assert len(count) == 1


def test_class_features_are_whole_whatever_precision_they_are_first_asked_for_in(tiny_clip_backbone, pixels):
    classifier, other = (VPT(n_visual=2).build(tiny_clip_backbone, NAMES) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        classifier(tiny_clip_backbone.normalize(pixels)).sum().backward()
    assert torch.equal(classifier.class_features(), other.class_features())
    np.testing.assert_array_equal(classifier.predict_proba(pixels), other.predict_proba(pixels))


@pytest.fixture
def dropping(tiny_clip_backbone):
    """A classifier whose low-rank terms drop half of what they see, in training."""
    classifier = CLIPLoRA(lora_dropout=0.5).build(tiny_clip_backbone, NAMES)
    small_models.randomise(classifier.prompt, seed=0)
    return classifier


def test_predictions_drop_nothing_and_leave_the_mode_as_it_was(dropping, pixels):
    rows = [dropping.train(mode).predict_proba(pixels) for mode in (True, True, False)]
    assert (rows[0] == rows[1]).all()
    assert (rows[0] == rows[2]).all()
    dropping.train()
    dropping.prompt.sources[0].eval()
    dropping.predict_proba(pixels)
    assert dropping.training
    assert not dropping.prompt.sources[0].training


def test_probabilities_of_files_drop_nothing(dropping, picture, tmp_path):
    picture.save(tmp_path / "picture.png")
    rows = [dropping.train(mode).probabilities([tmp_path / "picture.png"]) for mode in (True, True, False)]
    assert (rows[0] == rows[1]).all()
    assert (rows[0] == rows[2]).all()


def test_what_training_drops_is_never_served_later(dropping, pixels, tmp_path):
    expected = dropping.eval().class_features().detach()
    with torch.no_grad():
        dropped = dropping.train().class_features()
        served = dropping.eval().class_features()
    assert not torch.allclose(dropped, expected)
    torch.testing.assert_close(served, expected)
    torch.testing.assert_close(dropping.train().kept_tensors()["class_features"], expected)


def test_class_features_follow_whatever_of_a_source_changes(tiny_clip_backbone):
    class Scaled(Learned):
        def __init__(self, *parts):
            super().__init__(*parts)
            self.register_buffer("shift", torch.zeros(2, 1))

        def forward(self, given):
            return {self.sites[0]: Vectors(self.values * (1 + self.shift))}

    source = Scaled(Site("text"), torch.randn(2, tiny_clip_backbone.text_width))
    prompt = Prompt(ClassTemplate.of_context(2), source).requires_grad_(False)
    classifier = Classifier(tiny_clip_backbone, prompt, NAMES)
    before = classifier.class_features()
    assert classifier.class_features() is before
    source.shift.fill_(1.0)
    assert not torch.allclose(classifier.class_features(), before)
