"""Frozen means frozen, for every family."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.sites import Site, Vectors

FAMILIES = ["tiny_clip", "tiny_hf_clip", "tiny_siglip", "tiny_resnet"]


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest) -> Iterator[FrozenDualEncoder]:
    return request.getfixturevalue(f"{request.param}_backbone")


def test_a_backbone_keeps_the_protocol(backbone: FrozenDualEncoder) -> None:
    assert isinstance(backbone, DualEncoder)


def test_no_weight_can_learn_and_no_layer_is_in_training_mode(backbone: FrozenDualEncoder) -> None:
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert not any(module.training for module in backbone.model.modules())


def test_weights_are_unchanged_by_a_backward_pass(backbone: FrozenDualEncoder, pixels: Tensor) -> None:
    ctx = torch.randn(4, backbone.text_width, requires_grad=True)
    slots = backbone.text_slots([[-1, -2, -3, -4, *backbone.tokenize(name)] for name in ("cat", "the dog")])
    class_features = backbone.encode_text(slots, {Site("text"): Vectors(ctx)})
    logits = backbone.logit_scale * backbone.encode_image(backbone.normalize(pixels)) @ class_features.T
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0])).backward()
    assert ctx.grad is not None
    assert ctx.grad.norm() > 0
    assert all(parameter.grad is None for parameter in backbone.model.parameters())
    assert backbone.compute_fingerprint() == backbone.fingerprint


def test_features_have_unit_norm_and_joint_width(backbone: FrozenDualEncoder, pixels: Tensor) -> None:
    image_features = backbone.encode_image(backbone.normalize(pixels))
    class_features = backbone.encode_text(backbone.text_slots([backbone.tokenize("cat")]))
    assert image_features.shape == (3, backbone.embed_dim)
    assert class_features.shape == (1, backbone.embed_dim)
    for features in (image_features, class_features):
        assert torch.allclose(features.norm(dim=-1), torch.ones(len(features)))


def test_token_vectors_are_the_table_of_the_text_tower(backbone: FrozenDualEncoder) -> None:
    ids = torch.tensor([[3, 5], [7, 3]])
    found = backbone.token_vectors(ids)
    assert found.shape == (2, 2, backbone.text_width)
    assert torch.equal(found[0, 0], found[1, 1])
