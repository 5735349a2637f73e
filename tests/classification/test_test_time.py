"""Tuning on each image held to a plain version of Shu et al. 2022, section 3.2, and the views that it is tuned on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

import mmprompt as mp
from mmprompt.classification.forms import TestTimeClassifier
from mmprompt.classification.methods import TPT, CoOp
from mmprompt.core.header import read_header, write_header
from mmprompt.data.transforms import augment_augmix, augment_coop
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder
from mmprompt.models.dual_encoder.load import load_backbone
from tests import small_models
from tests.classification.side_by_side import TOLERANCE, assert_close
from tests.reference.plain_methods import AdamW, Frozen

NAMES = ["cat", "red_car", "a dog house", "sad bird"]
N_VIEWS = 24
IMAGE = np.random.default_rng(3).integers(0, 256, (48, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=["open_clip", "transformers"])
def clip(request: pytest.FixtureRequest, tiny_open_clip_folder: Path, tiny_hf_clip_folder: Path) -> Frozen:
    folder = tiny_open_clip_folder if request.param == "open_clip" else tiny_hf_clip_folder
    backbone: FrozenDualEncoder = load_backbone(str(folder), device="cpu", dtype="float64")  # type: ignore[assignment]
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=small_models.CONTEXT)
    frozen = Frozen(backbone.model, tokenizer, NAMES, "{}", 2, small_models.HEADS, length=small_models.CONTEXT)
    object.__setattr__(frozen, "backbone", backbone)
    return frozen


def entropy(probabilities: Tensor) -> Tensor:
    return -(probabilities * probabilities.log()).sum(-1)


def plain_tuning(
    clip: Frozen, words: str, ctx: Tensor, views: Tensor, n_steps: int
) -> tuple[list[float], Tensor, Tensor, Tensor]:
    """The loss of each step, the last gradient, the context after it, and the logits of the image, the first view."""
    optimizer, features, losses, confident = AdamW(5e-3), clip.image(views), [], None
    for _ in range(n_steps):
        leaf = ctx.detach().requires_grad_()
        probabilities = clip.logits(features, clip.text(words, [leaf])).softmax(1)
        if confident is None:
            confident = entropy(probabilities).argsort()[: int(len(views) * 0.1)]
        loss = entropy(probabilities[confident].mean(0))
        (gradient,) = torch.autograd.grad(loss, leaf)
        (ctx,) = optimizer.moved([leaf.detach()], [gradient], 5e-3)
        losses.append(loss.item())
    return losses, gradient, ctx, clip.logits(features[:1], clip.text(words, [ctx]))


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("start", ["words", "learned"])
def test_loss_gradient_context_and_logits_are_the_paper_s(clip: Frozen, start: str, n_steps: int) -> None:
    backbone: FrozenDualEncoder = clip.backbone  # type: ignore[attr-defined]
    tuning = TPT(n_views=N_VIEWS, n_tuning_steps=n_steps)
    method = tuning if start == "words" else CoOp(n_ctx=3) + tuning
    classifier = method.build(backbone, NAMES).double()
    assert isinstance(classifier, TestTimeClassifier)
    (ctx,) = (parameter for parameter in classifier.prompt.parameters())
    before, views = ctx.detach().clone(), classifier.views(IMAGE).double()
    if start == "words":
        torch.testing.assert_close(before, backbone.token_vectors(torch.tensor(backbone.tokenize("a photo of a"))))
    words = "a photo of a" if start == "words" else "X X X"
    losses, gradient, after, logits = plain_tuning(clip, words, before, views, n_steps)
    features = classifier.image_features(views)
    with classifier.tuned_on(features) as found:
        assert found == pytest.approx(losses, rel=TOLERANCE)
        assert ctx.grad is not None
        assert_close([ctx.grad], [gradient])
        assert_close([ctx.detach()], [after], [before])
        tuned = classifier.outputs(features[:1]).logits.detach()
    assert_close([tuned], [logits])
    assert torch.equal(ctx, before)
    np.testing.assert_allclose(classifier.predict_proba(IMAGE), logits.softmax(1).numpy(), rtol=TOLERANCE)


def test_the_settings_are_the_published_ones() -> None:
    method = TPT()
    assert (method.n_views, method.confident_share, method.step_size, method.n_tuning_steps) == (64, 0.1, 5e-3, 1)
    assert (method.tpt_init, method.augmix) == ("a photo of a", True)


def test_views_are_the_image_and_crops_that_augmix_changes(tiny_clip_backbone: FrozenDualEncoder) -> None:
    image = Image.fromarray(IMAGE)
    for augmix, augment in ((True, augment_augmix), (False, augment_coop)):
        classifier = TPT(n_views=3, augmix=augmix).build(tiny_clip_backbone, NAMES)
        assert isinstance(classifier, TestTimeClassifier)
        first, *others = classifier.views(image)
        assert torch.equal(first, tiny_clip_backbone.preprocess(image))
        expected = [tiny_clip_backbone.normalize(augment(image, 32, 0, view, 0)) for view in range(2)]
        assert torch.equal(torch.stack(others), torch.stack(expected))


def test_a_file_keeps_how_views_are_drawn(tiny_clip_backbone: FrozenDualEncoder, tmp_path: Path) -> None:
    for augmix in (True, False):
        classifier = TPT(n_views=4, augmix=augmix).build(tiny_clip_backbone, NAMES)
        mp.save(classifier, tmp_path / str(augmix))
        loaded = mp.load(tmp_path / str(augmix), tiny_clip_backbone)
        assert loaded.augmix is augmix
        np.testing.assert_array_equal(loaded.predict_proba(IMAGE), classifier.predict_proba(IMAGE))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("n_views", "abc", "a whole number, 2 or more"),
        ("confident_share", 0.0, "a number, above 0 and at most 1"),
        ("step_size", None, "a number, above 0"),
        ("n_tuning_steps", 0.5, "a whole number, 1 or more"),
        ("augmix", 1, "True or False"),
    ],
)
def test_a_file_with_settings_that_tune_nothing_is_refused_in_one_line(
    name: str, value: object, expected: str, tiny_clip_backbone: FrozenDualEncoder, tmp_path: Path
) -> None:
    mp.save(TPT(n_views=4).build(tiny_clip_backbone, NAMES), tmp_path)
    header = read_header(tmp_path)
    settings = header["form_settings"] | {name: value}
    kept = {key: one for key, one in header.items() if key != "header_sha256"}
    write_header(tmp_path, kept | {"form_settings": settings})
    with pytest.raises(UserError, match=rf"prompt\.json: {name} is .*, but it must be {expected}"):
        mp.load(tmp_path, tiny_clip_backbone)
