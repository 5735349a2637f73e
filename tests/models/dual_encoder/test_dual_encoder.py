"""Frozen means frozen, for every family."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.sites import Bottleneck, Insert, LowRank, NormDelta, Site, Vectors

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


OTHER_KINDS = {
    "vision.input": LowRank(torch.zeros(2, 32), torch.zeros(32, 2)),
    "vision.layer[0]": NormDelta(torch.zeros(32), torch.zeros(32)),
    "text.layer[1]": Bottleneck(torch.zeros(2, 32), torch.zeros(2), torch.zeros(32, 2), torch.zeros(32)),
    "text.part[ln_final]": NormDelta(torch.zeros(32), torch.zeros(32)),
    "vision.part[visual.proj]": Vectors(torch.zeros(2, 32)),
}


@pytest.mark.parametrize(("site", "insert"), OTHER_KINDS.items(), ids=OTHER_KINDS)
def test_what_a_site_does_not_take_is_refused_and_not_passed_over(
    site: str, insert: Insert, tiny_clip_backbone: FrozenDualEncoder, pixels: Tensor
) -> None:
    vectors: dict[Site, Insert] = {
        Site("text"): Vectors(torch.zeros(2, 32)),
        Site("vision"): Vectors(torch.zeros(2, 32)),
    }
    given = vectors | {Site.parse(site): insert}
    takes = "a weight" if "part" in site else "vectors"
    message = rf"^what is learned at {re.escape(site)} is a {type(insert).__name__}, but .* takes {takes} there\. Learn"
    slots = tiny_clip_backbone.text_slots([[-1, -2, 5]])
    encode = {
        "text": lambda: tiny_clip_backbone.encode_text(slots, given),
        "vision": lambda: tiny_clip_backbone.encode_image(pixels, given),
    }
    with pytest.raises(UserError, match=message):
        encode[Site.parse(site).tower]()
