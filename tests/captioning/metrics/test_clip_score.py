from __future__ import annotations

import pytest
import torch
from PIL import Image

from mmprompt.captioning.metrics.caption_metrics import clip_score
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.image_features import encode_images


@pytest.fixture(scope="module")
def features(tiny_clip_backbone: DualEncoder) -> torch.Tensor:
    """Of four images that are little alike; a small model of random weights gives all images nearly the same."""
    noise = torch.randn(4, tiny_clip_backbone.embed_dim, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(noise, dim=-1)


CAPTIONS = ["red", "a dog", "blue sky", "x"]


def test_scores_are_the_published_formula(tiny_clip_backbone: DualEncoder, features: torch.Tensor) -> None:
    scores = clip_score(tiny_clip_backbone, CAPTIONS, features)
    for caption, feature, score in zip(CAPTIONS, features, scores.by_image, strict=True):
        slots = tiny_clip_backbone.text_slots([tiny_clip_backbone.tokenize("A photo depicts " + caption)])
        cosine = float(tiny_clip_backbone.encode_text(slots)[0].detach() @ feature)
        assert score == pytest.approx(2.5 * max(cosine, 0), abs=1e-5)
    assert sum(score > 0.1 for score in scores.by_image) >= 2
    assert scores.mean == pytest.approx(sum(scores.by_image) / 4)
    assert scores.encoder == tiny_clip_backbone.name
    assert (scores.n_cut, scores.notes) == (0, ())


def test_features_of_pictures_are_taken_as_they_are(tiny_clip_backbone: DualEncoder) -> None:
    images = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green")]
    scores = clip_score(tiny_clip_backbone, CAPTIONS[:2], encode_images(tiny_clip_backbone, images))
    assert all(0 <= score <= 2.5 for score in scores.by_image)


def test_negative_cosines_count_nothing(tiny_clip_backbone: DualEncoder, features: torch.Tensor) -> None:
    ours, turned = (clip_score(tiny_clip_backbone, CAPTIONS, sign * features) for sign in (1, -1))
    assert all(min(a, b) == 0 < max(a, b) for a, b in zip(ours.by_image, turned.by_image, strict=True))


def test_captions_in_many_batches_score_as_alone(tiny_clip_backbone: DualEncoder, features: torch.Tensor) -> None:
    many = clip_score(tiny_clip_backbone, CAPTIONS[:3] * 25, features[:3].repeat(25, 1)).by_image
    assert many == pytest.approx(clip_score(tiny_clip_backbone, CAPTIONS[:3], features[:3]).by_image * 25, abs=1e-5)


def test_captions_that_are_too_long_are_cut_and_said(tiny_clip_backbone: DualEncoder, features: torch.Tensor) -> None:
    room = tiny_clip_backbone.context_length - 2 - len(tiny_clip_backbone.tokenize("A photo depicts "))
    n_fit = max(n for n in range(40) if len(tiny_clip_backbone.tokenize("a " * n)) <= room)
    whole, longer = ("a " * n for n in (n_fit, n_fit + 9))
    scores = clip_score(tiny_clip_backbone, [whole, longer], features[:1].repeat(2, 1))
    assert scores.n_cut == 1
    assert scores.notes[0].startswith("1 of 2 captions are longer than the 16 slots of")
    assert scores.by_image[0] == pytest.approx(scores.by_image[1], abs=1e-5)


def test_a_judge_that_wrote_the_captions_is_said(tiny_clip_backbone: DualEncoder, features: torch.Tensor) -> None:
    scores = clip_score(tiny_clip_backbone, CAPTIONS, features, [tiny_clip_backbone.fingerprint])
    assert "flatters them" in scores.notes[0]


def test_unequal_numbers_are_refused(tiny_clip_backbone: DualEncoder, features: torch.Tensor) -> None:
    with pytest.raises(UserError, match="given 3 captions and 4 images"):
        clip_score(tiny_clip_backbone, CAPTIONS[:3], features)
    with pytest.raises(UserError, match="given 0 captions and 0 images"):
        clip_score(tiny_clip_backbone, [], features[:0])
