"""Learning at once from images whose classes somebody said."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mmprompt as mp
from mmprompt.classification.forms import calibrated
from mmprompt.classification.methods import CoOp, NearestClassMean, make_method
from mmprompt.classification.methods.solved import TextAndMeans, TextProbe
from mmprompt.classification.task import zero_shot
from mmprompt.core.fit import fit
from mmprompt.errors import UserError
from mmprompt.models.image_features import encode_images

pytestmark = pytest.mark.usefixtures("feature_store")


def paths(items):
    return [item.path for item in items]


def names(data, items):
    return [data.class_names[item.label] for item in items]


def by_hand(backbone, text, data, items):
    """Class vectors straight from their definition."""
    rows = encode_images(backbone, paths(items)).double()
    sums = torch.stack([rows[[item.label == c for item in items]].sum(0) for c in range(len(data.class_names))])
    return F.normalize(text.double() + sums, dim=-1)


def test_a_class_is_the_direction_of_its_text_and_its_images(tiny_clip_backbone, data):
    classifier = zero_shot(tiny_clip_backbone, data.class_names, data.template)
    text = classifier.class_features()
    classifier.update(paths(data.train), names(data, data.train))
    weight = by_hand(tiny_clip_backbone, text, data, data.train)
    rows = encode_images(tiny_clip_backbone, paths(data.test)).double()
    expected = (tiny_clip_backbone.logit_scale * rows @ weight.T).softmax(1)
    assert classifier.predict_proba(paths(data.test)) == pytest.approx(expected.numpy(), abs=1e-5)


def test_one_by_one_in_any_order_is_all_at_once(tiny_clip_backbone, data):
    at_once, one_by_one = (zero_shot(tiny_clip_backbone, data.class_names, data.template) for _ in range(2))
    at_once.update(paths(data.train), names(data, data.train))
    for item in reversed(data.train):
        one_by_one.update(item.path, data.class_names[item.label])
    found = one_by_one.predict_proba(paths(data.test))
    assert found == pytest.approx(at_once.predict_proba(paths(data.test)), abs=1e-6)


def test_many_images_are_encoded_in_batches(tiny_clip_backbone, data):
    many, few = (zero_shot(tiny_clip_backbone, data.class_names, data.template) for _ in range(2))
    sizes, look = [], tiny_clip_backbone.model.visual.conv1.register_forward_pre_hook
    hook = look(lambda _, inputs: sizes.append(len(inputs[0])))
    many.update(6 * paths(data.train), 6 * names(data, data.train))
    hook.remove()
    assert sizes == [64, 8]
    for _ in range(6):
        few.update(paths(data.train), names(data, data.train))
    assert many.predict_proba(paths(data.test)) == pytest.approx(few.predict_proba(paths(data.test)), abs=1e-6)


def test_a_class_that_was_told_nothing_keeps_its_text(tiny_clip_backbone, data):
    classifier = zero_shot(tiny_clip_backbone, data.class_names, data.template)
    before = classifier.outputs(encode_images(tiny_clip_backbone, paths(data.test))).logits
    first = next(item for item in data.train if item.label == 0)
    classifier.update(first.path, data.class_names[0])
    after = classifier.outputs(encode_images(tiny_clip_backbone, paths(data.test))).logits
    torch.testing.assert_close(after[:, 1:], before[:, 1:])
    assert not torch.allclose(after[:, 0], before[:, 0])


def test_a_learned_prompt_learns_on_and_is_kept(tiny_clip_backbone, data, tmp_path):
    classifier = fit(CoOp(n_ctx=2), tiny_clip_backbone, data, epochs=1, batch_size=4, progress=False).predictor
    vectors = classifier.prompt.state_dict()["sources.0.values"].clone()
    classifier.update(paths(data.train), names(data, data.train))
    assert torch.equal(classifier.prompt.state_dict()["sources.0.values"], vectors)
    mp.save(classifier, tmp_path / "run")
    loaded = mp.load(tmp_path / "run", tiny_clip_backbone)
    np.testing.assert_array_equal(loaded.predict_proba(paths(data.test)), classifier.predict_proba(paths(data.test)))
    loaded.update(data.test[0].path, data.class_names[0])
    assert not np.array_equal(loaded.predict_proba(paths(data.test)), classifier.predict_proba(paths(data.test)))


def test_what_is_fitted_is_what_updating_gives_but_for_the_scale(tiny_clip_backbone, data):
    fitted = fit(TextAndMeans(), tiny_clip_backbone, data, progress=False).predictor
    updated = zero_shot(tiny_clip_backbone, data.class_names, data.template)
    updated.update(paths(data.train), names(data, data.train))
    rows = encode_images(tiny_clip_backbone, paths(data.test))
    one, other = (each.outputs(rows).logits / each.prompt.head.scale for each in (fitted, updated))
    torch.testing.assert_close(one, other)


def test_beside_a_probe_text_and_images_learn_on(tiny_clip_backbone, data):
    classifier = fit(TextProbe(text_share=1.0), tiny_clip_backbone, data, progress=False).predictor
    probe, text = classifier.prompt.head.probe.weight.clone(), classifier.class_features()
    classifier.update(paths(data.test), names(data, data.test))
    assert torch.equal(classifier.prompt.head.probe.weight, probe)
    weight = by_hand(tiny_clip_backbone, text, data, [*data.train, *data.test])
    found = F.normalize(text + classifier.prompt.head.beside.sums, dim=-1)
    torch.testing.assert_close(found, weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "labels", "text"),
    [
        (1, ["red", "blue"], "labels is 2, but there are 1 images"),
        (1, ["gren"], "no label named 'gren'"),
        (1, 5, "labels is 5, but it must be text or a list, each text"),
        (1, [0], "labels is of type list, but it must be text or a list, each text"),
        (1, np.array([0]), "no label named '0'"),
    ],
)
def test_wrong_feedback_is_refused_and_changes_nothing(images, labels, text, tiny_clip_backbone, data):
    classifier = zero_shot(tiny_clip_backbone, data.class_names, data.template)
    with pytest.raises(UserError, match=text):
        classifier.update(paths(data.train)[:images], labels)
    assert classifier.prompt.head is None


def test_of_no_images_nothing_is_learned(tiny_clip_backbone, data):
    classifier = zero_shot(tiny_clip_backbone, data.class_names, data.template)
    classifier.update([], [])
    assert classifier.prompt.head is None


def test_a_head_that_needs_all_its_images_is_refused(tiny_clip_backbone, data):
    classifier = fit(NearestClassMean(), tiny_clip_backbone, data, progress=False).predictor
    with pytest.raises(UserError, match="a head of kind 'class-means', which learns from all"):
        classifier.update(data.train[0].path, data.class_names[0])


@pytest.mark.parametrize("method", ["linear-probe", "nearest-class-mean", "vpt"])
def test_an_image_tower_alone_has_no_text_to_add_images_to(method, tiny_timm_backbone, data):
    classifier = make_method(method).build(tiny_timm_backbone, data.class_names)
    with pytest.raises(UserError, match=r"has no text tower, .*Train again with all images, or on a dual encoder\.$"):
        classifier.update(data.train[0].path, data.class_names[0])


def test_one_with_other_names_learns_alone(tiny_clip_backbone, data):
    classifier = zero_shot(tiny_clip_backbone, data.class_names, data.template)
    classifier.with_class_names(["cat", "car"]).update(data.test[0].path, "car")
    assert classifier.prompt.head is None


@pytest.mark.parametrize(
    "derive", [lambda one: one.with_template("the {}."), lambda one: calibrated(one, 2.0)], ids=["words", "temperature"]
)
def test_one_among_other_words_or_at_another_temperature_learns_alone(derive, tiny_clip_backbone, data):
    classifier = zero_shot(tiny_clip_backbone, data.class_names, data.template)
    classifier.update(data.train[0].path, data.class_names[0])
    before = classifier.predict_proba(paths(data.test))
    derive(classifier).update(data.test[0].path, data.class_names[1])
    np.testing.assert_array_equal(classifier.predict_proba(paths(data.test)), before)
