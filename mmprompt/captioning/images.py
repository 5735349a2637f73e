"""Captions of picture files, broken ones as errors, and the n best captions of each ordered by likeness too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mmprompt.captioning.metrics.clip_score import clip_score
from mmprompt.captioning.predictor import Caption, Captioner
from mmprompt.captioning.writing import Describe
from mmprompt.data.images import read_image
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.image_features import encode_pictures


def describe_pictures(captioner: Captioner, ranker: DualEncoder | None = None, weight: float = 1.0) -> Describe:
    """What writes captions of picture files, a broken one as its error.

    Args:
        captioner: with its steering and decoding.
        ranker: a dual encoder that orders the n best captions of a picture (see `rank`).
        weight: of its score.
    """

    def describe(paths: Sequence[Path], numbers: Sequence[int]) -> list[Caption | UserError]:
        images: dict[int, Image.Image] = {}
        found: dict[int, Caption | UserError] = {}
        for path, number in zip(paths, numbers, strict=True):
            try:
                images[number] = read_image(path)
            except UserError as error:
                found[number] = error
        if images:
            pixels = torch.stack([captioner.backbone.preprocess(image) for image in images.values()])
            features = captioner.backbone.encode_image(pixels)
            captions = captioner.caption_features(features, numbers=list(images))
            if ranker is not None:
                captions = rank(captions, encode_pictures(ranker, list(images.values())), ranker, weight)
            found.update(zip(images, captions, strict=True))
        return [found[number] for number in numbers]

    return describe


def rank(captions: Sequence[Caption], image_features: Tensor, ranker: DualEncoder, weight: float) -> list[Caption]:
    """Order the n best captions of every picture by likeness to it too; all scores are kept.

    Args:
        captions: of N pictures, each with its others.
        image_features: [N, E] of the ranker.
        ranker: a dual encoder.
        weight: the score becomes the search's own plus weight times CLIPScore (Hessel et al. 2021).
    """
    ranked = []
    for caption, features in zip(captions, image_features, strict=True):
        some = [replace(caption, others=()), *caption.others]
        likeness = clip_score(ranker, [one.text for one in some], features.expand(len(some), -1)).by_image
        scored = [
            replace(one, score=one.score + weight * value, clip_score=value)
            for one, value in zip(some, likeness, strict=True)
        ]
        best, *others = sorted(scored, key=lambda one: -one.score)
        ranked.append(replace(best, others=tuple(others)))
    return ranked
