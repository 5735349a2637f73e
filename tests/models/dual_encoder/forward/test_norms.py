"""Moved layer norms, held to the libraries' own towers with norms that hold the moves, and recomputation."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mmprompt.classification.template import ClassTemplate
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder
from mmprompt.models.dual_encoder.forward.views import BlockView, run_moved
from mmprompt.models.sites import Insert, NormDelta, Site, Tower, Vectors
from tests.models.dual_encoder.forward.test_low_rank import FAMILIES, assert_equal_with_gradients, leaves_of, load
from tests.models.dual_encoder.forward.test_text import NAMES, Case, draw, reference_features
from tests.models.dual_encoder.forward.test_vision import library_features, relative_error

WHOLE_MODEL = ("open_clip", "quick_gelu", "layer_scale", "hf_clip")  # all of whose layer norms are at sites


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request: pytest.FixtureRequest, model_folder: Path) -> FrozenDualEncoder:
    return load(request.param, model_folder / f"norms_{request.param.replace(' ', '_')}", "float64")


def deltas(backbone: FrozenDualEncoder, tower: Tower) -> dict[Site, Insert]:
    """Moves of every norm of a tower."""
    width = backbone.text_width if tower == "text" else backbone.vision_width or 0
    return {
        site: NormDelta(
            *((0.3 * draw(width, dtype=backbone.dtype, seed=2 * number + part)).requires_grad_() for part in (0, 1))
        )
        for number, site in enumerate(backbone.norm_sites)
        if site.tower == tower
    }


def norm_at(backbone: FrozenDualEncoder, site: Site) -> nn.Module:
    view = backbone.text if site.tower == "text" else backbone.vision
    if site.part in ("pre_norm", "final_norm"):
        return getattr(view, site.part)
    block = view.blocks[site.layer]  # type: ignore[union-attr]
    assert isinstance(block, BlockView)
    return getattr(block, site.part)


class Moved(nn.Module):
    """A weight plus something."""

    def __init__(self, added: Tensor) -> None:
        super().__init__()
        self.added = [added]

    def forward(self, frozen: Tensor) -> Tensor:
        return frozen + self.added[0]


def moved_model(backbone: FrozenDualEncoder, given: dict[Site, Insert]) -> FrozenDualEncoder:
    """The backbone about a copy of the library's own model, whose norms hold the moves."""
    names = {id(module): name for name, module in backbone.model.named_modules()}
    copied = copy.copy(backbone)
    copied.model = copy.deepcopy(backbone.model)
    for site, delta in given.items():
        norm = copied.model.get_submodule(names[id(norm_at(backbone, site))])
        for name, added in zip(("weight", "bias"), delta.tensors, strict=True):
            parametrize.register_parametrization(norm, name, Moved(added), unsafe=True)
    return copied


def test_class_features_are_those_of_norms_that_hold_the_moves(backbone: FrozenDualEncoder) -> None:
    given, case = deltas(backbone, "text"), Case({}, n_ctx=0, template="a photo of a {}.")
    slots = case.whole_template.slots(backbone, NAMES[:2])
    found, expected = backbone.encode_text(slots, given), moved_model(backbone, given)
    assert_equal_with_gradients(
        found, reference_features(expected, case, NAMES[:2], {}), leaves_of(given), backbone.dtype
    )
    assert relative_error(found, backbone.encode_text(slots)) > 1e-2
    assert backbone.compute_fingerprint() == backbone.fingerprint


def test_image_features_are_those_of_norms_that_hold_the_moves(backbone: FrozenDualEncoder) -> None:
    given, side = deltas(backbone, "vision"), backbone.image_size
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    images = backbone.normalize(images)
    found, expected = backbone.encode_image(images, given), moved_model(backbone, given)
    assert_equal_with_gradients(found, library_features(expected, images), leaves_of(given), backbone.dtype)
    assert relative_error(found, backbone.encode_image(images)) > 1e-2


def test_computing_classes_again_changes_no_gradient_of_a_move(backbone: FrozenDualEncoder) -> None:
    def gradients(memory_bytes: int) -> list[Tensor]:
        vectors = draw(3, backbone.text_width, dtype=backbone.dtype).requires_grad_()
        given = {Site("text"): Vectors(vectors), **deltas(backbone, "text")}
        slots = ClassTemplate.of_context(3).slots(backbone, NAMES)
        before, backbone.text_memory_bytes = backbone.text_memory_bytes, memory_bytes
        features = backbone.encode_text(slots, given)
        backbone.text_memory_bytes = before
        weighting = draw(*features.shape, dtype=features.dtype, seed=5)
        return [features, *torch.autograd.grad((features * weighting).sum(), leaves_of(given))]

    for again, kept in zip(gradients(1), gradients(2**40), strict=True):
        assert relative_error(again, kept) < 1e-10


@pytest.mark.parametrize("family", WHOLE_MODEL)
def test_every_layer_norm_of_a_clip_is_at_a_site(family: str, model_folder: Path) -> None:
    backbone = load(family, model_folder / f"norms_all_{family}", "float64")
    at_sites = {id(norm_at(backbone, site)) for site in backbone.norm_sites}
    assert at_sites == {id(module) for module in backbone.model.modules() if isinstance(module, nn.LayerNorm)}
    assert len(at_sites) == len(backbone.norm_sites)


def test_small_moves_of_a_norm_are_not_lost_in_half_precision() -> None:
    norm, x = nn.LayerNorm(8).bfloat16(), draw(3, 8, dtype=torch.bfloat16)
    with torch.no_grad():
        norm.weight.copy_(1 + draw(8, dtype=torch.bfloat16, seed=1))
    moves = draw(8, dtype=torch.float32, seed=2) * 1e-3, draw(8, dtype=torch.float32, seed=3) * 1e-3
    plain = (
        nn.functional.layer_norm(x.double(), (8,)) * (norm.weight + moves[0].double()) + norm.bias + moves[1].double()
    )
    assert torch.equal(run_moved(norm, *moves, x), plain.bfloat16())


def test_norms_that_do_not_move_change_nothing(tiny_clip_backbone: FrozenDualEncoder, pixels: Tensor) -> None:
    nothing: dict[Site, Insert] = {
        site: NormDelta(torch.zeros(32), torch.zeros(32)) for site in tiny_clip_backbone.norm_sites
    }
    slots, images = ClassTemplate("a {}").slots(tiny_clip_backbone, NAMES), tiny_clip_backbone.normalize(pixels)
    assert torch.equal(tiny_clip_backbone.encode_text(slots, nothing), tiny_clip_backbone.encode_text(slots))
    assert torch.equal(tiny_clip_backbone.encode_image(images, nothing), tiny_clip_backbone.encode_image(images))


@pytest.mark.parametrize(
    ("site", "width", "message"),
    [
        (Site("text", 2, "norm1"), 32, r"site is text\.block\[2\]\.norm1, but this text tower has 2 layers"),
        (Site("text", 1, "norm2"), 31, r"text\.block\[1\]\.norm2 is a NormDelta of \[31\] and \[31\], but .* \[32\]"),
        (Site("text", part="final_norm"), 31, r"text\.final_norm is a NormDelta of \[31\] and \[31\], but"),
        (Site("vision", part="pre_norm"), 31, r"vision\.pre_norm is a NormDelta of \[31\] and \[31\], but"),
    ],
)
def test_moves_that_do_not_fit_are_refused(
    tiny_clip_backbone: FrozenDualEncoder, pixels: Tensor, site: Site, width: int, message: str
) -> None:
    given: dict[Site, Insert] = {site: NormDelta(torch.zeros(width), torch.zeros(width))}
    slots, images = ClassTemplate("{}").slots(tiny_clip_backbone, NAMES), tiny_clip_backbone.normalize(pixels)
    encode = partial(tiny_clip_backbone.encode_text, slots)
    if site.tower == "vision":
        encode = partial(tiny_clip_backbone.encode_image, images)
    with pytest.raises(UserError, match=message):
        encode(given)


def test_a_norm_that_a_tower_lacks_is_refused(tiny_siglip_backbone: FrozenDualEncoder, pixels: Tensor) -> None:
    site = Site("vision", part="pre_norm")
    with pytest.raises(UserError, match=r"site is vision\.pre_norm, but this vision tower has no layer norm there"):
        tiny_siglip_backbone.encode_image(pixels, {site: NormDelta(torch.zeros(32), torch.zeros(32))})
