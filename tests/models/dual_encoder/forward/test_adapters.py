"""Adapters behind sublayers, held to the libraries' own blocks with hooks on their attention and MLP."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprompt.classification.template import ClassTemplate
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder
from mmprompt.models.sites import Bottleneck, Insert, Site, Tower, Vectors
from tests.models.dual_encoder.forward.test_low_rank import assert_equal_with_gradients, leaves_of, load
from tests.models.dual_encoder.forward.test_text import NAMES, Case, draw, reference_features
from tests.models.dual_encoder.forward.test_vision import library_features, relative_error

FAMILIES = ("open_clip", "hf_clip", "siglip", "bidirectional", "bert")


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request: pytest.FixtureRequest, model_folder: Path) -> FrozenDualEncoder:
    return load(request.param, model_folder / f"adapters_{request.param}", "float64")


def adapters(backbone: FrozenDualEncoder, tower: Tower) -> dict[Site, Insert]:
    """Networks of width 3 behind every sublayer of a tower."""
    is_text = tower == "text"
    n_layers, width = backbone.text_layers if is_text else backbone.vision_layers, backbone.text_width
    given: dict[Site, Insert] = {}
    for seed, site in enumerate(Site(tower, i, part) for i in range(n_layers) for part in ("attention", "mlp")):
        shapes = enumerate(((3, width), (3,), (width, 3), (width,)))
        drawn = (0.3 * draw(*shape, dtype=torch.float64, seed=10 * seed + place) for place, shape in shapes)
        given[site] = Bottleneck(*(tensor.requires_grad_() for tensor in drawn))
    return given


def plain(adapter: Any, x: Tensor) -> Tensor:
    hidden = x @ adapter.down.T + adapter.down_bias
    return x + (hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))) @ adapter.up.T + adapter.up_bias


def adapted_model(backbone: FrozenDualEncoder, tower: Tower, given: dict[Site, Insert]) -> FrozenDualEncoder:
    """The backbone about a copy of the library's model, whose sublayers' outputs go through the networks."""
    copied = copy.copy(backbone)
    copied.model = model = copy.deepcopy(backbone.model)  # type: Any
    if hasattr(model, "text_model"):
        blocks = (model.text_model if tower == "text" else model.vision_model).encoder.layers
    elif tower == "text" and hasattr(model, "text") and hasattr(model.text, "pooler"):
        blocks = model.text.transformer.encoder.layer
    else:
        blocks = (getattr(model, "text", model) if tower == "text" else model.visual).transformer.resblocks
    for layer, block in enumerate(blocks):
        for part, names in (("attention", ("self_attn", "attn", "attention")), ("mlp", ("mlp", "output"))):
            adapter = given[Site(tower, layer, part)]  # type: ignore[arg-type]
            sublayer = next(getattr(block, name) for name in names if hasattr(block, name))
            if hasattr(sublayer, "LayerNorm") or hasattr(getattr(sublayer, "output", None), "LayerNorm"):
                sublayer = getattr(sublayer, "output", sublayer).dense  # BERT's, before the sum and its norm

            def hook(_: Any, __: Any, output: Any, adapter: Any = adapter) -> Any:
                return (plain(adapter, output[0]), *output[1:]) if isinstance(output, tuple) else plain(adapter, output)

            sublayer.register_forward_hook(hook)
    return copied


def test_class_features_are_those_of_blocks_with_the_networks(backbone: FrozenDualEncoder) -> None:
    given, case = adapters(backbone, "text"), Case({}, n_ctx=0, template="a photo of a {}.")
    slots = case.whole_template.slots(backbone, NAMES[:2])
    found = backbone.encode_text(slots, given)
    expected = reference_features(adapted_model(backbone, "text", given), case, NAMES[:2], {})
    assert_equal_with_gradients(found, expected, leaves_of(given), backbone.dtype)
    assert relative_error(found, backbone.encode_text(slots)) > 1e-2


def test_image_features_are_those_of_blocks_with_the_networks(backbone: FrozenDualEncoder) -> None:
    given, side = adapters(backbone, "vision"), backbone.image_size
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    found = backbone.encode_image(images, given)
    expected = library_features(adapted_model(backbone, "vision", given), images)
    assert_equal_with_gradients(found, expected, leaves_of(given), backbone.dtype)
    assert relative_error(found, backbone.encode_image(images)) > 1e-2


def test_computing_classes_again_changes_no_gradient_of_a_network(backbone: FrozenDualEncoder) -> None:
    def gradients(memory_bytes: int) -> list[Tensor]:
        vectors = draw(3, backbone.text_width, dtype=backbone.dtype).requires_grad_()
        given = {Site("text"): Vectors(vectors), **adapters(backbone, "text")}
        slots = ClassTemplate.of_context(3).slots(backbone, NAMES)
        before, backbone.text_memory_bytes = backbone.text_memory_bytes, memory_bytes
        features = backbone.encode_text(slots, given)
        backbone.text_memory_bytes = before
        return [features, *torch.autograd.grad(features.sum(), leaves_of(given))]

    for again, kept in zip(gradients(1), gradients(2**40), strict=True):
        assert relative_error(again, kept) < 1e-9


def test_networks_that_do_not_fit_are_refused(tiny_clip_backbone: FrozenDualEncoder) -> None:
    wrong = Bottleneck(*(torch.zeros(shape) for shape in ((2, 31), (2,), (32, 2), (32,))))
    with pytest.raises(UserError, match=r"text\.block\[0\]\.mlp is a Bottleneck of \[2, 31\] and \[2\] and"):
        tiny_clip_backbone.encode_text(
            ClassTemplate("{}").slots(tiny_clip_backbone, NAMES), {Site("text", 0, "mlp"): wrong}
        )
