"""Low-rank terms beside the projections, held to weights that hold B A: features and gradients, and recomputation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mmprompt.classification.template import ClassTemplate
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder
from mmprompt.models.dual_encoder.forward import text as text_module
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.sites import Insert, LowRank, Site, Tower, Vectors
from tests import small_models
from tests.models.dual_encoder.forward import test_text, test_vision
from tests.models.dual_encoder.forward.test_text import NAMES, TOLERANCE, Case, draw, reference_features
from tests.models.dual_encoder.forward.test_vision import library_features, relative_error

PARTS: tuple[str, ...] = ("query", "key", "value")
SCALE = 0.7
VISION = {f"vision {name}": form[:2] for name, form in test_vision.OPEN_CLIP_FORMS.items()}
FAMILIES = [*test_text.FAMILIES, *VISION]


def load(family: str, place: Path, dtype: str) -> FrozenDualEncoder:
    if family in VISION:
        vision, model = VISION[family]
        return load_backbone(str(small_models.save_open_clip(place, vision, **model)), device="cpu", dtype=dtype)
    return test_text.load(family, place, dtype)


@pytest.fixture(scope="module", params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request: pytest.FixtureRequest, model_folder: Path, dtype: str) -> FrozenDualEncoder:
    return load(request.param, model_folder / f"low_rank_{request.param.replace(' ', '_')}", dtype)


def terms(backbone: FrozenDualEncoder, tower: Tower, dropout: float = 0.0) -> dict[Site, Insert]:
    """Terms of rank 3 beside every query, key and value of a tower."""
    n_layers, width = {
        "text": (backbone.text_layers, backbone.text_width),
        "vision": (backbone.vision_layers, backbone.vision_width or 0),
    }[tower]
    given: dict[Site, Insert] = {}
    for layer in range(n_layers):
        for seed, part in enumerate(PARTS):
            a = 0.3 * draw(3, width, dtype=backbone.dtype, seed=10 * layer + seed)
            b = 0.3 * draw(width, 3, dtype=backbone.dtype, seed=100 + 10 * layer + seed)
            given[Site(tower, layer, part)] = LowRank(a.requires_grad_(), b.requires_grad_(), SCALE, dropout)
    return given


def leaves_of(given: dict[Site, Insert]) -> list[Tensor]:
    return [tensor for insert in given.values() for tensor in insert.tensors]


class Adapted(nn.Module):
    """A weight plus scale B A in those of its rows that belong to each part."""

    def __init__(self, own: dict[str, LowRank], parts: tuple[str, ...]) -> None:
        super().__init__()
        self.own, self.parts = own, parts

    def forward(self, weight: Tensor) -> Tensor:
        return weight + torch.cat([self.own[part].scale * self.own[part].b @ self.own[part].a for part in self.parts])


def adapted_model(backbone: FrozenDualEncoder, tower: Tower, given: dict[Site, Insert]) -> Any:
    """A copy of the library's own model whose weights hold the terms."""
    model: Any = copy.deepcopy(backbone.model)
    for layer, attention in enumerate(attentions(model, tower)):
        own: dict[str, LowRank] = {part: given[Site(tower, layer, part)] for part in PARTS}  # type: ignore[misc]
        if hasattr(attention, "q_proj") or hasattr(attention, "query"):
            names = PARTS if hasattr(attention, "query") else ("q_proj", "k_proj", "v_proj")
            for part, name in zip(PARTS, names, strict=True):
                adapt(getattr(attention, name), "weight", Adapted(own, (part,)))
        elif hasattr(attention, "qkv"):
            adapt(attention.qkv, "weight", Adapted(own, PARTS))
        else:
            adapt(attention, "in_proj_weight", Adapted(own, PARTS))
    return model


def adapt(module: nn.Module, name: str, adapted: Adapted) -> None:
    parametrize.register_parametrization(module, name, adapted, unsafe=True)


def attentions(model: Any, tower: Tower) -> Iterator[nn.Module]:
    """The attention of every block, as each library stores it."""
    if hasattr(model, "text_model"):
        side = model.text_model if tower == "text" else model.vision_model
        yield from (block.self_attn for block in side.encoder.layers)
    elif tower == "text" and hasattr(model, "text") and hasattr(model.text, "pooler"):
        yield from (block.attention.self for block in model.text.transformer.encoder.layer)
    elif tower == "text":
        yield from (block.attn for block in getattr(model, "text", model).transformer.resblocks)
    elif hasattr(model.visual, "trunk"):
        yield from (block.attn for block in model.visual.trunk.blocks)
    else:
        yield from (block.attn for block in model.visual.transformer.resblocks)


def assert_equal_with_gradients(found: Tensor, expected: Tensor, leaves: list[Tensor], dtype: torch.dtype) -> None:
    weighting = draw(*found.shape, dtype=found.dtype, seed=5)
    assert relative_error(found, expected) < TOLERANCE[dtype]
    pairs = zip(
        torch.autograd.grad((found * weighting).sum(), leaves),
        torch.autograd.grad((expected * weighting).sum(), leaves),
        strict=True,
    )
    for place, (gradient, plain) in enumerate(pairs):
        error = (gradient - plain).norm() / plain.norm().clamp_min(1e-3 * weighting.norm())
        assert error < TOLERANCE[dtype], f"{place}: {error:.1e}"


def test_class_features_are_those_of_weights_that_hold_the_terms(backbone: FrozenDualEncoder) -> None:
    given, case = terms(backbone, "text"), Case({}, n_ctx=0, template="a photo of a {}.")
    found = backbone.encode_text(case.whole_template.slots(backbone, NAMES[:2]), given)
    copied = copy.copy(backbone)
    copied.model = adapted_model(backbone, "text", given)
    expected = reference_features(copied, case, NAMES[:2], {})
    assert_equal_with_gradients(found, expected, leaves_of(given), backbone.dtype)
    frozen = backbone.encode_text(case.whole_template.slots(backbone, NAMES[:2]))
    assert relative_error(found, frozen) > 1e-2


def test_image_features_are_those_of_weights_that_hold_the_terms(backbone: FrozenDualEncoder) -> None:
    given, side = terms(backbone, "vision"), backbone.image_size
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(7))
    images = backbone.normalize(pixels).to(backbone.dtype)
    found = backbone.encode_image(images, given)
    copied = copy.copy(backbone)
    copied.model = adapted_model(backbone, "vision", given)
    assert_equal_with_gradients(found, library_features(copied, images), leaves_of(given), backbone.dtype)
    assert relative_error(found, backbone.encode_image(images)) > 1e-2


@pytest.fixture
def prompted(backbone: FrozenDualEncoder) -> Callable[[int, float], list[Tensor]]:
    """The gradients of terms and of context vectors beside them, with some memory and some dropout."""

    def gradients(memory_bytes: int, dropout: float) -> list[Tensor]:
        vectors = draw(3, backbone.text_width, dtype=backbone.dtype).requires_grad_()
        given = {Site("text"): Vectors(vectors), **terms(backbone, "text", dropout)}
        slots = ClassTemplate.of_context(3).slots(backbone, NAMES)
        before, backbone.text_memory_bytes = backbone.text_memory_bytes, memory_bytes
        torch.manual_seed(3)
        features = backbone.encode_text(slots, given)
        backbone.text_memory_bytes = before
        weighting = draw(*features.shape, dtype=features.dtype, seed=5)
        return [features, *torch.autograd.grad((features * weighting).sum(), leaves_of(given))]

    return gradients


def test_computing_classes_again_changes_no_gradient_of_a_term(
    prompted: Callable[[int, float], list[Tensor]], backbone: FrozenDualEncoder
) -> None:
    for again, kept in zip(prompted(1, 0.0), prompted(2**40, 0.0), strict=True):
        assert relative_error(again, kept) < TOLERANCE[backbone.dtype]


def test_what_was_dropped_is_dropped_when_classes_are_computed_again(
    prompted: Callable[[int, float], list[Tensor]], backbone: FrozenDualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = prompted(1, 0.3)
    monkeypatch.setattr(text_module, "recomputed", lambda run, tensors: run(tensors))  # the same chunks, all kept
    for one, kept in zip(again, prompted(1, 0.3), strict=True):
        assert relative_error(one, kept) < TOLERANCE[backbone.dtype]
    without = prompted(1, 0.0)[0]
    assert relative_error(again[0], without) > 1e-3


def test_a_backward_pass_leaves_the_generator_as_it_was(tiny_clip_backbone: FrozenDualEncoder) -> None:
    given = terms(tiny_clip_backbone, "text", dropout=0.3)
    slots = ClassTemplate("{}").slots(tiny_clip_backbone, NAMES)
    features = text_module.encode_slots(tiny_clip_backbone.text, slots, given, memory_bytes=1)
    before = torch.get_rng_state()
    features.sum().backward()
    assert torch.equal(before, torch.get_rng_state())


def test_terms_that_learn_nothing_change_nothing(tiny_clip_backbone: FrozenDualEncoder, pixels: Tensor) -> None:
    nothing = {
        site: LowRank(insert.tensors[0], torch.zeros_like(insert.tensors[1]))
        for tower in ("text", "vision")
        for site, insert in terms(tiny_clip_backbone, tower).items()  # type: ignore[arg-type]
    }
    slots = ClassTemplate("a {}").slots(tiny_clip_backbone, NAMES)
    images = tiny_clip_backbone.normalize(pixels)
    assert torch.equal(tiny_clip_backbone.encode_text(slots, nothing), tiny_clip_backbone.encode_text(slots))
    assert torch.equal(tiny_clip_backbone.encode_image(images, nothing), tiny_clip_backbone.encode_image(images))


@pytest.mark.parametrize(
    ("site", "shapes", "message"),
    [
        (Site("text", 2, "query"), ((2, 32), (32, 2)), r"site is text\.block\[2\]\.query, but this text tower has 2"),
        (Site("vision", 7, "key"), ((2, 32), (32, 2)), r"site is vision\.block\[7\]\.key, but this vision tower has 2"),
        (
            Site("text", 0, "value"),
            ((2, 31), (32, 2)),
            r"text\.block\[0\]\.value is a LowRank of \[2, 31\] and \[32, 2\], but .* 32",
        ),
        (
            Site("vision", 1, "key"),
            ((2, 32), (33, 2)),
            r"vision\.block\[1\]\.key is a LowRank of \[2, 32\] and \[33, 2\], but .* 32",
        ),
        (
            Site("text", 0, "key"),
            ((3, 32), (32, 2)),
            r"text\.block\[0\]\.key is a LowRank of \[3, 32\] and \[32, 2\], but",
        ),
    ],
)
def test_terms_that_do_not_fit_are_refused(
    tiny_clip_backbone: FrozenDualEncoder, pixels: Tensor, site: Site, shapes: tuple[tuple[int, int], ...], message: str
) -> None:
    given: dict[Site, Insert] = {site: LowRank(*(torch.zeros(shape) for shape in shapes))}
    slots, images = ClassTemplate("{}").slots(tiny_clip_backbone, NAMES), tiny_clip_backbone.normalize(pixels)
    encode = {
        "text": lambda: tiny_clip_backbone.encode_text(slots, given),
        "vision": lambda: tiny_clip_backbone.encode_image(images, given),
    }
    with pytest.raises(UserError, match=message):
        encode[site.tower]()


def test_a_resnet_refuses_terms(tiny_resnet_backbone: FrozenDualEncoder, pixels: Tensor) -> None:
    with pytest.raises(UserError, match=r"\(ModifiedResNet\) has no"):
        tiny_resnet_backbone.encode_image(
            pixels, {Site("vision", 0, "query"): LowRank(torch.zeros(1, 32), torch.zeros(32, 1))}
        )


def test_blocks_that_no_view_describes_refuse_terms(model_folder: Path) -> None:
    backbone = test_text.load("open_clip", model_folder / "low_rank_whole", "float32")
    backbone.model.transformer.resblocks[1].__class__ = test_text.PostNormBlock  # type: ignore[union-attr,index]
    backbone.text = test_text.read_text(backbone.model, backbone._tokenizer)
    with pytest.raises(UserError, match="those of this text tower have no parts that are known"):
        backbone.encode_text(ClassTemplate("{}").slots(backbone, NAMES), terms(backbone, "text"))
