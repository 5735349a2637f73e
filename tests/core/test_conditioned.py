"""A context that depends on the image: held to one plain context after another, and never stale."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mmprompt.classification.methods import VPT, CoCoOp
from mmprompt.classification.predictor import Classifier
from mmprompt.classification.words import context_words
from mmprompt.core.file import load, save
from mmprompt.core.learned import Learned, Prompt
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.sites import Site
from tests import small_models

NAMES = ["cat", "red car", "a dog"]
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
FOLDERS = ["tiny_open_clip", "tiny_hf_clip", "tiny_siglip", "tiny_resnet"]


@pytest.fixture(params=list(TOLERANCE))
def dtype(request):
    return request.param


@pytest.fixture(params=FOLDERS)
def backbone(request, dtype):
    folder: Path = request.getfixturevalue(f"{request.param}_folder")
    return load_backbone(str(folder), device="cpu", dtype=dtype)


def build(backbone, names=NAMES):
    classifier = CoCoOp(n_ctx=3, ctx_init=None).build(backbone, names, seed=4)
    small_models.randomise(classifier.prompt, seed=4)  # so that images are told apart
    return classifier.to(backbone.dtype)


def test_each_row_is_the_context_of_its_image_alone(backbone, dtype, pixels):
    classifier = build(backbone)
    (source,) = classifier.prompt.sources
    images, labels = backbone.normalize(pixels).to(backbone.dtype), torch.tensor([0, 1, 2])
    logits = classifier(images)
    gradients = torch.autograd.grad(F.cross_entropy(logits, labels), list(source.parameters()))

    rows, features = [], classifier.image_features(images)
    for image in range(3):
        values = source.context + source.up(source.down(features[image]).relu())
        plain = Learned(Site("text"), values).to(backbone.dtype)
        with torch.no_grad():
            plain.values.copy_(values)
        prompt = Prompt(classifier.prompt.template, plain)
        class_features = Classifier(backbone, prompt, NAMES).class_features()
        row = backbone.logit_scale * features[image] @ class_features.T + backbone.logit_bias
        rows.append((row, plain.values, values))
    expected = torch.stack([row for row, _, _ in rows])
    assert ((logits - expected).norm() / expected.norm()).item() < TOLERANCE[dtype]

    of_values = torch.autograd.grad(F.cross_entropy(expected, labels), [leaf for _, leaf, _ in rows])
    wanted = torch.autograd.grad([values for _, _, values in rows], list(source.parameters()), of_values)
    for gradient, plain_gradient in zip(gradients, wanted, strict=True):
        assert plain_gradient.norm() > 0
        assert ((gradient - plain_gradient).norm() / plain_gradient.norm()).item() < 10 * TOLERANCE[dtype]


def test_class_features_are_those_of_the_images_that_are_given(tiny_clip_backbone, pixels):
    classifier = build(tiny_clip_backbone)
    with torch.no_grad():
        features = classifier.image_features(tiny_clip_backbone.normalize(pixels))
        both = classifier.class_features(features)
        each = [classifier.class_features(features[i : i + 1])[0] for i in (0, 1, 2)]
    assert both.shape == (3, len(NAMES), tiny_clip_backbone.embed_dim)
    assert not torch.allclose(each[0], each[1], atol=1e-4)
    torch.testing.assert_close(torch.stack(each), both)


def test_class_features_without_an_image_are_refused(tiny_clip_backbone):
    with pytest.raises(UserError, match="depend on the image, but no image features were given"):
        build(tiny_clip_backbone).class_features()


def test_predictions_do_not_depend_on_what_was_predicted_before_or_beside(tiny_clip_backbone, pixels):
    classifier = build(tiny_clip_backbone)
    alone = [classifier.predict_proba(image)[0] for image in pixels]
    together = classifier.predict_proba(pixels)
    for image in range(3):
        assert together[image] == pytest.approx(alone[image], rel=1e-5)
        assert classifier.predict_proba(pixels[image])[0] == pytest.approx(alone[image], rel=1e-12)
    assert len({row.tobytes() for row in together}) == 3


def test_a_saved_one_keeps_its_network_and_no_class_features(tiny_clip_backbone, pixels, tmp_path):
    classifier = build(tiny_clip_backbone)
    classifier.predict_proba(pixels)
    save(classifier, tmp_path)
    loaded = load(tmp_path, tiny_clip_backbone)
    assert (loaded.predict_proba(pixels) == classifier.predict_proba(pixels)).all()
    assert [p.numel() for p in loaded.parameters()] == [p.numel() for p in classifier.parameters()]
    with pytest.raises(UserError, match="depend on the image"):
        loaded.class_features()


def test_other_class_names_see_the_same_network(tiny_clip_backbone, pixels):
    other = build(tiny_clip_backbone).with_class_names(["fish", "tree"])
    fresh = build(tiny_clip_backbone, ["fish", "tree"])
    assert (other.predict_proba(pixels) == fresh.predict_proba(pixels)).all()


def test_beside_visual_prompts_the_network_sees_the_prompted_image(tiny_clip_backbone, pixels):
    method = CoCoOp(n_ctx=2, ctx_init=None) + VPT(n_visual=2)
    classifier = method.build(tiny_clip_backbone, NAMES)
    images = tiny_clip_backbone.normalize(pixels)
    F.cross_entropy(classifier(images), torch.tensor([0, 1, 2])).backward()
    assert all(parameter.grad is not None and parameter.grad.norm() > 0 for parameter in classifier.parameters())


def test_it_has_no_nearest_words(tiny_clip_backbone):
    assert context_words(build(tiny_clip_backbone)) == []
