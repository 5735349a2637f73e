"""Maps of relevance against the method spelled out: whole matrices, one image and one head at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmprompt.models.dual_encoder.forward.relevance import GRID, relevance
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.sites import Site, Vectors
from tests.reference import plain_vision

WANTED = torch.randn(512, generator=torch.Generator().manual_seed(5))


def score(features: Tensor) -> Tensor:
    return features @ WANTED[: features.shape[1]].to(features)


def watched_attention(seen: list[list[Tensor]]):
    def attend(query: Tensor, key: Tensor, value: Tensor, n_heads: int) -> Tensor:
        size, heads, weights = query.shape[-1] // n_heads, [], []
        for head in range(n_heads):
            part = slice(head * size, (head + 1) * size)
            weights.append(torch.softmax(query[:, part] @ key[:, part].T / math.sqrt(size), dim=-1))
            heads.append(weights[-1] @ value[:, part])
        seen.append(weights)
        return torch.cat(heads, dim=-1)

    return attend


def plain_map(
    weights: dict[str, Tensor], image: Tensor, prompts: dict[int, Tensor], seen: list[list[Tensor]]
) -> Tensor:
    """R = R + A' R from the first block to the last, and of it the row of the class token."""
    seen.clear()
    image = image.clone().requires_grad_()
    features = plain_vision.open_clip_features(weights, image[None], [prompts], len_of(weights), 4)
    flat = [attention for heads in seen for attention in heads]
    gradients = iter(torch.autograd.grad(score(features).sum(), flat))
    relevance = torch.eye(flat[0].shape[0], dtype=image.dtype)
    for heads in seen:
        through = sum((attention * next(gradients)).clamp(min=0) for attention in heads) / len(heads)
        relevance = relevance + through.detach() @ relevance
    n_patches = weights["visual.positional_embedding"].shape[0] - 1
    side = math.isqrt(n_patches)
    return relevance[0, 1 : 1 + n_patches].reshape(side, side)


def len_of(weights: dict[str, Tensor]) -> int:
    return 1 + max(int(name.split(".")[3]) for name in weights if name.startswith("visual.transformer.resblocks"))


@pytest.mark.parametrize("n_prompts", [0, 3])
def test_relevance_through_attentions_is_that_of_whole_matrices(
    tiny_clip_backbone: DualEncoder, pixels: Tensor, n_prompts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, seen = tiny_clip_backbone, []
    monkeypatch.setattr(plain_vision, "attend", watched_attention(seen))
    weights = {name: value.double() for name, value in backbone.model.state_dict().items()}
    values = torch.randn(n_prompts, backbone.vision_width, generator=torch.Generator().manual_seed(1))
    inserts = {Site("vision"): Vectors(values)} if n_prompts else {}
    images = backbone.normalize(pixels)
    found = relevance(backbone, images, score, inserts)
    for image, own in zip(images, found, strict=True):
        prompts = {0: values.double()} if n_prompts else {}
        expected = plain_map(weights, image.double(), prompts, seen)
        assert torch.allclose(own.double(), expected, rtol=1e-3, atol=1e-6)
        assert expected.max() > 2 * expected.min()


def test_a_map_is_of_one_image_alone_and_leaves_the_backbone_as_it_was(
    tiny_clip_backbone: DualEncoder, pixels: Tensor
) -> None:
    images = tiny_clip_backbone.normalize(pixels)
    before = tiny_clip_backbone.encode_image(images)
    together = relevance(tiny_clip_backbone, images, score)
    alone = torch.cat([relevance(tiny_clip_backbone, image[None], score) for image in images])
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.equal(tiny_clip_backbone.encode_image(images), before)


def test_a_tower_with_an_attention_pool_is_read_at_all_its_patches(
    tiny_siglip_backbone: DualEncoder, pixels: Tensor
) -> None:
    found = relevance(tiny_siglip_backbone, tiny_siglip_backbone.normalize(pixels), score)
    assert found.shape[0] == 3
    assert (found > 0).all()


def test_without_image_tokens_it_is_the_gradient_times_the_input(
    tiny_resnet_backbone: DualEncoder, pixels: Tensor
) -> None:
    backbone = tiny_resnet_backbone
    images = backbone.normalize(pixels[:1])
    found = relevance(backbone, images, score)
    leaf = images.clone().requires_grad_()
    score(torch.nn.functional.normalize(backbone.model.encode_image(leaf), dim=-1)).sum().backward()
    each = (leaf.grad * leaf).detach().abs().sum(1)[0]
    side = each.shape[0]
    for row, column in ((0, 0), (5, 9), (GRID - 1, 3)):
        top, bottom = row * side // GRID, -(-(row + 1) * side // GRID)
        left, right = column * side // GRID, -(-(column + 1) * side // GRID)
        expected = each[top:bottom, left:right].mean()
        assert found[0, row, column] == pytest.approx(expected.item(), rel=1e-4)
