"""Heads on stored features held to plain versions of their papers: loss, gradient, and ten steps in float64."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from mmprompt.classification.methods import VPT, CoOp, make_method
from mmprompt.classification.methods.heads import CLAP, CLIPAdapter, TaskRes, TipAdapter, TipAdapterF, ZeroShotProbe
from mmprompt.classification.methods.solved import (
    GDA,
    LinearProbe,
    LPPlusPlus,
    TextAndMeans,
    TextProbe,
    folds_of,
    solve_gda,
)
from mmprompt.classification.task import zero_shot
from mmprompt.core.fit import fit
from mmprompt.core.learned import Outputs
from mmprompt.core.method import FrozenFeatures
from mmprompt.data.folder import ImageFolder
from mmprompt.errors import UserError
from mmprompt.training.recipe import Recipe, learning_rate
from mmprompt.training.update import WeightUpdate

NAMES, SHOTS, N_STEPS = ("cat", "dog", "bird", "fish"), 5, 10


def drawn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def classifier(tiny_clip_backbone):
    return zero_shot(tiny_clip_backbone, NAMES)


@pytest.fixture
def scale(tiny_clip_backbone):
    return tiny_clip_backbone.logit_scale


@pytest.fixture
def data(tiny_clip_backbone):
    """Clouds of unit features, five images a class, and three of each held out."""
    width = tiny_clip_backbone.embed_dim

    def cloud(n, seed):
        labels = torch.arange(len(NAMES)).repeat(n)
        centres = drawn(len(NAMES), width, seed=1)
        return F.normalize(centres[labels] + 1.5 * drawn(len(labels), width, seed=seed), dim=-1), labels

    features, labels = cloud(SHOTS, 2)
    generator = torch.Generator().manual_seed(3)
    return FrozenFeatures(features, labels, lambda: cloud(3, 4), generator, lambda: features)


def without_validation(data):
    return FrozenFeatures(data.image_features, data.labels, lambda: None, data.generator, data.wide)


def four_times(data):
    features, labels = data.image_features.repeat_interleave(4, 0), data.labels.repeat_interleave(4)
    return FrozenFeatures(features, labels, lambda: None, data.generator, lambda: features)


def cross_entropy(logits, labels):
    return -logits.log_softmax(1)[torch.arange(len(labels)), labels].mean()


def plain_logits(method, start, text, base, labels, scale):
    """The logits of a batch as a function of what learns, from the paper's formula."""
    if isinstance(method, TipAdapterF):
        hot = F.one_hot(labels, len(text)).double()
        return lambda x, keys: scale * x @ text.T + torch.exp(-1.0 * (1.0 - x @ keys.T)) @ hot
    if isinstance(method, CLIPAdapter):

        def adapted(x, down, up):
            mixed = 0.2 * torch.relu(torch.relu(x @ down.T) @ up.T) + 0.8 * x
            return scale * (mixed / mixed.norm(dim=1, keepdim=True)) @ text.T

        return adapted
    if isinstance(method, TaskRes):

        def moved(x, residual):
            weight = text + 0.5 * residual
            return scale * x @ (weight / weight.norm(dim=1, keepdim=True)).T

        return moved
    return lambda x, weight: scale * x @ (weight / weight.norm(dim=1, keepdim=True)).T


def plain_loss(method, logits_of, features, text, base, labels, scale, parameters):
    loss = cross_entropy(logits_of(features, *parameters), labels)
    if isinstance(method, CLAP):
        zero = scale * features @ (base / base.norm(dim=1, keepdim=True)).T
        own = zero.softmax(1)[torch.arange(len(labels)), labels]
        trust = torch.stack([own[labels == c].mean() for c in range(len(text))])
        loss = loss + (trust * ((parameters[0] - base) ** 2).sum(1)).mean()
    return loss


def optimizer_of(recipe: Recipe, parameters):
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, recipe.lr, eps=recipe.eps, weight_decay=recipe.weight_decay)


@pytest.mark.parametrize(
    "method",
    [TipAdapterF(cache_weight=1.0, sharpness=1.0), CLIPAdapter(), TaskRes(), ZeroShotProbe(), CLAP()],
    ids=lambda one: type(one).__name__,
)
def test_a_trained_head_takes_the_steps_of_its_paper(method, classifier, data, scale):
    method.begin(classifier, data)
    head = classifier.prompt.head.double()
    text, features, labels = classifier.class_features().double(), data.image_features, data.labels
    base = classifier.unscaled_class_features().double()
    parameters = [value.detach().clone().requires_grad_(True) for value in head.parameters() if value.requires_grad]
    logits_of = plain_logits(method, head, text, base, labels, scale)
    update, optimizer = WeightUpdate(head, method.recipe), optimizer_of(method.recipe, parameters)
    for step in range(N_STEPS):
        rate = learning_rate(method.recipe, epoch=step + 1, n_epochs=20)
        outputs = Outputs(head(features, text), labels, features, text, None, head)
        losses = method.loss_terms(outputs)
        expected = plain_loss(method, logits_of, features, text, base, labels, scale, parameters)
        assert sum(losses.values()).item() == pytest.approx(expected.item(), abs=1e-8)
        update.apply(losses, rate)
        optimizer.zero_grad()
        expected.backward()
        for ours, theirs in zip(update.parameters, parameters, strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-8)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    for ours, theirs in zip(update.parameters, parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)


def test_a_cache_holds_the_labelled_images_and_learns_nothing(classifier, data, scale):
    TipAdapter(cache_weight=3.0, sharpness=5.5).finish(classifier, data)
    head, text = classifier.prompt.head.double(), classifier.class_features().double()
    assert not [value for value in head.parameters() if value.requires_grad]
    batch = data.validation()[0]
    votes = torch.zeros(len(batch), len(NAMES), dtype=torch.float64)
    for image, label in zip(data.image_features, data.labels, strict=True):
        votes[:, label] += 3.0 * torch.exp(-5.5 * (1 - batch @ image))
    torch.testing.assert_close(head(batch, text), scale * batch @ text.T + votes, rtol=0, atol=1e-5)


def test_a_cache_is_weighed_by_the_log_loss_of_images_held_out(classifier, data, scale):
    TipAdapter().finish(classifier, data)
    others, truth = data.validation()
    text, hot = classifier.class_features().double(), F.one_hot(data.labels, len(NAMES)).double()
    losses = {
        (weight, sharpness): cross_entropy(
            scale * others @ text.T + weight * torch.exp(-sharpness * (1 - others @ data.image_features.T)) @ hot, truth
        ).item()
        for weight in (0.5, 1.0, 2.0, 4.0, 8.0)
        for sharpness in (1.0, 2.0, 4.0, 8.0)
    }
    assert (classifier.prompt.head.weight, classifier.prompt.head.sharpness) == min(losses, key=losses.get)


def test_gda_is_the_closed_form_of_its_paper(classifier, data, scale):
    GDA(gda_weight=2.0).finish(classifier, data)
    features, labels = data.image_features, data.labels
    means = torch.stack([features[labels == c].mean(0) for c in range(len(NAMES))])
    centred = torch.cat([features[labels == c] - means[c] for c in range(len(NAMES))])
    width, covariance = features.shape[1], torch.from_numpy(np.cov(centred.numpy(), rowvar=False))
    inverse = width * torch.linalg.pinv(
        (len(centred) - 1) * covariance + covariance.trace() * torch.eye(width).double()
    )
    weight = means @ inverse
    bias = math.log(1 / len(NAMES)) - torch.einsum("nd,dc,nc->n", means, inverse, means) / 2
    batch, text = data.validation()[0], classifier.class_features().double()
    expected = scale * batch @ text.T + 2.0 * (batch @ weight.T + bias)
    found = classifier.prompt.head.double()(batch, text)
    torch.testing.assert_close(found.softmax(1), expected.softmax(1), rtol=0, atol=1e-4)


def test_gda_of_one_image_a_class_leaves_the_text_alone(classifier, data, scale):
    first = torch.arange(len(NAMES))
    single = FrozenFeatures(data.image_features[first], data.labels[first], lambda: None, data.generator, data.wide)
    GDA().finish(classifier, single)
    batch, text = data.validation()[0], classifier.class_features().double()
    found = classifier.prompt.head.double()(batch, text).softmax(1)
    torch.testing.assert_close(found, (scale * batch @ text.T).softmax(1), rtol=0, atol=1e-5)
    assert solve_gda(single.image_features, single.labels, len(NAMES))[0].abs().max() == 0


def test_gda_takes_the_weight_with_the_least_log_loss_on_images_held_out(classifier, data, scale):
    GDA().finish(classifier, data)
    others, truth = data.validation()
    text = classifier.class_features().double()
    weight, bias = solve_gda(data.image_features, data.labels, len(NAMES))
    losses = {
        tried: F.cross_entropy(scale * others @ text.T + tried * (others @ weight.T + bias), truth).item()
        for tried in (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
    }
    best = min(losses, key=losses.get)
    torch.testing.assert_close(classifier.prompt.head.weight.double(), best * weight, rtol=1e-5, atol=1e-6)


def test_lp_plus_plus_takes_the_steps_of_its_paper(classifier, data):
    LPPlusPlus(lp_steps=25).finish(classifier, without_validation(data))
    features, labels = data.image_features, data.labels
    text = classifier.class_features().double()
    hot = F.one_hot(labels, len(NAMES)).double()
    weight, bias = (hot.T @ features).requires_grad_(True), torch.zeros(len(NAMES)).double().requires_grad_(True)
    cosines = features @ text.T
    own = torch.stack([cosines[labels == c, c].mean() for c in range(len(NAMES))])
    alpha = torch.full((len(NAMES),), float(250 * own.mean()), dtype=torch.float64, requires_grad=True)
    rate = 4 * len(features) / np.linalg.eigvalsh((features.T @ features).numpy()).max()
    alpha_rate = len(features) / (4 * max(float((cosines[:, c] ** 2).sum()) for c in range(len(NAMES))))
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for step in range(25):
        loss = cross_entropy(features @ weight.T + bias + alpha * cosines, labels)
        gradients = torch.autograd.grad(loss, [weight, bias, alpha])
        with torch.no_grad():
            for value, speed, gradient in zip((weight, bias), velocity, gradients[:2], strict=True):
                speed.mul_(0.9).add_(gradient)
                value -= rate * speed
            if (step + 1) % 10 == 0:
                alpha -= alpha_rate * gradients[2]
    head = classifier.prompt.head
    for found, expected in ((head.weight, weight), (head.bias, bias), (head.text_weight, alpha)):
        torch.testing.assert_close(found.double(), expected.detach(), rtol=1e-5, atol=1e-5)


def test_a_text_probe_is_a_logistic_regression_beside_text_and_images(classifier, data, scale):
    TextProbe(text_share=0.25).finish(classifier, data)
    rows, labels = data.image_features, data.labels
    text = classifier.class_features().double()
    centre = rows.mean(0)
    model = LogisticRegression(C=100, max_iter=40).fit(F.normalize(rows - centre, dim=-1).numpy(), labels.numpy())
    batch = data.validation()[0]
    probe = F.normalize(batch - centre, dim=-1).numpy() @ model.coef_.T + model.intercept_
    sums = torch.stack([rows[labels == c].sum(0) for c in range(len(NAMES))])
    beside = scale * batch @ F.normalize(text + sums, dim=-1).T
    found = classifier.prompt.head(batch, text)
    torch.testing.assert_close(found, torch.from_numpy(probe) + 0.25 * beside, rtol=0, atol=1e-5)


def test_a_text_probe_chooses_its_share_by_folds_of_the_training_images_and_reads_no_validation(classifier, data):
    def refuse():
        raise AssertionError("validation images were read")

    blind = FrozenFeatures(data.image_features, data.labels, refuse, data.generator, data.wide)
    TextProbe().finish(classifier, blind)
    losses = {}
    text, labels = classifier.class_features().double(), data.labels
    fold = torch.arange(len(labels)) // len(NAMES)  # the k-th image of every class
    for share in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0):
        total = 0.0
        for out in range(SHOTS):
            kept, held = fold != out, fold == out
            part = FrozenFeatures(
                data.image_features[kept],
                labels[kept],
                refuse,
                data.generator,
                partial(data.image_features.__getitem__, kept),
            )
            other = zero_shot(classifier.backbone, NAMES)
            TextProbe(text_share=share).finish(other, part)
            logits = other.prompt.head(data.image_features[held], text)
            total += F.cross_entropy(logits, labels[held], reduction="sum").item()
        losses[share] = total
    assert classifier.prompt.head.text_share == min(losses, key=losses.get)


def test_an_image_is_held_out_with_all_its_copies(data):
    once, often = (list(folds_of(each.image_features, each.labels)) for each in (data, four_times(data)))
    for number, (alone, together) in enumerate(zip(once, often, strict=True)):
        assert torch.equal(alone, torch.arange(len(data.labels)) // len(NAMES) == number)
        assert torch.equal(together, alone.repeat_interleave(4))


@pytest.mark.parametrize("method", [GDA(), LinearProbe(), TipAdapter(), TextProbe(), TextAndMeans()])
def test_copies_of_its_images_make_no_head_surer_than_it_may_be(method, classifier, data):
    others, truth = data.validation()
    losses = []
    for images in (without_validation(data), four_times(data)):
        method.finish(classifier, images)
        losses.append(cross_entropy(classifier.prompt.head(others, classifier.class_features().double()), truth))
    assert losses[1] < losses[0] + 0.1


def test_one_image_a_class_is_one_however_often_it_stands(classifier, data, scale):
    single = FrozenFeatures(data.image_features[:4], data.labels[:4], lambda: None, data.generator, data.wide)
    TextAndMeans().finish(classifier, four_times(single))
    assert classifier.prompt.head.scale == scale
    assert not list(folds_of(four_times(single).image_features, four_times(single).labels))


def test_a_weight_of_nothing_is_a_weight(classifier, data):
    TipAdapterF(cache_weight=0.0).begin(classifier, data)
    assert classifier.prompt.head.weight == 0.0
    TipAdapter(cache_weight=0.0).finish(classifier, without_validation(data))
    assert classifier.prompt.head.weight == 0.0


@pytest.mark.usefixtures("feature_store")
def test_a_cache_beside_what_learns_is_of_the_images_as_it_sees_them(picture_folder, tiny_clip_backbone):
    colours = ImageFolder(picture_folder, shots=4, seed=1, augment="none")
    method = VPT(n_visual=2) + TipAdapter(1.0, 1.0)
    classifier = fit(method, tiny_clip_backbone, colours, epochs=1, lr=0.5, warmup_epochs=0, progress=False).predictor
    seen = classifier.features_of([item.path for item in colours.train])
    torch.testing.assert_close(classifier.prompt.head.keys, seen)


@pytest.mark.parametrize("name", ["gda+linear-probe", "auto+gda", "tip-adapter-f+taskres", "two-stage+gda"])
def test_two_heads_are_refused(name, tiny_clip_backbone):
    with pytest.raises(UserError, match="both make the head, but a classifier has one"):
        make_method(name).build(tiny_clip_backbone, NAMES)


@pytest.mark.parametrize("method", [ZeroShotProbe(), CLAP()])
def test_nothing_learns_in_a_text_that_is_read_once(method, tiny_clip_backbone, data):
    joined = CoOp(n_ctx=2) + method
    with pytest.raises(UserError, match="reads the text once, before anything is learned"):
        joined.begin(joined.build(tiny_clip_backbone, NAMES), data)


@pytest.mark.parametrize("method", [LinearProbe(1.0), TextProbe()])
def test_a_probe_needs_images_of_each_class_and_lp_plus_plus_does_not(method, classifier, data):
    some = data.labels != 1
    without = FrozenFeatures(
        data.image_features[some], data.labels[some], lambda: None, data.generator, lambda: data.image_features[some]
    )
    with pytest.raises(UserError, match="3 of 4 classes have training images"):
        method.finish(classifier, without)
    LPPlusPlus(lp_steps=2).finish(classifier, without)
    assert classifier.prompt.head.weight.isfinite().all()
