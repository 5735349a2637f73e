"""Image features with and without visual prompts, held to the libraries and to the plain reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder
from mmprompt.models.dual_encoder.forward.vision import NORMED
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.sites import Site, Vectors
from tests import small_models
from tests.models.dual_encoder.forward.test_text import CASES, N_IMAGES, NAMES, draw_vectors, reference_features
from tests.reference import plain_vision

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
OPEN_CLIP_FORMS: dict[str, tuple[dict, dict, dict]] = {
    "open_clip": ({}, {}, {}),
    "quick_gelu": ({}, {"quick_gelu": True}, {"activation": plain_vision.quick_gelu}),
    "average": ({"pool_type": "avg"}, {}, {"pool": "avg"}),
    "norm_after_average": (
        {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
        {},
        {"pool": "avg", "norm_after_pool": True},
    ),
    "layer_scale": ({"ls_init_value": 0.5}, {}, {}),
    "norms": ({"qk_norm": True, "scale_attn": True, "scale_fc": True}, {}, {}),
    "timm": ({"timm_model_name": "small_timm_vit", "timm_pool": "token"}, {}, {}),
    "timm_map": ({"timm_model_name": "small_timm_map_vit", "timm_pool": ""}, {}, {}),
}
FORMS = [*OPEN_CLIP_FORMS, "hf_clip", "siglip", "tiny"]

Reference = Callable[[Tensor, list[dict[int, Tensor]]], Tensor]


@pytest.fixture(scope="module", params=FORMS)
def folder(request: pytest.FixtureRequest, model_folder: Path) -> Path:
    name, place = request.param, model_folder / f"vision_{request.param}"
    if name == "tiny":
        return Path("tiny")
    if name == "hf_clip":
        return small_models.save_hf_clip(place)
    if name == "siglip":
        return small_models.save_siglip(place)
    vision, model, _ = OPEN_CLIP_FORMS[name]
    return small_models.save_open_clip(place, vision, **model)


@pytest.fixture(scope="module", params=list(TOLERANCE))
def backbone(request: pytest.FixtureRequest, folder: Path) -> FrozenDualEncoder:
    return load_backbone(str(folder), device="cpu", dtype=request.param)


@pytest.fixture
def reference(backbone: FrozenDualEncoder, folder: Path) -> Reference:
    settings = {"n_layers": small_models.LAYERS, "n_heads": small_models.HEADS}
    weights = backbone.model.state_dict()
    form = folder.name.removeprefix("vision_")
    if form == "tiny":
        return partial(plain_vision.open_clip_features, weights, n_layers=6, n_heads=3)
    if form == "hf_clip":
        return partial(plain_vision.transformers_clip_features, weights, **settings)
    if form == "siglip":
        return partial(plain_vision.siglip_features, weights, **settings)
    if form.startswith("timm"):
        return partial(plain_vision.timm_features, weights, **settings)
    return partial(plain_vision.open_clip_features, weights, **settings, **OPEN_CLIP_FORMS[form][2])


@pytest.fixture
def images(backbone: FrozenDualEncoder) -> Tensor:
    side = backbone.image_size
    pixels = torch.rand(N_IMAGES, 3, side, side, generator=torch.Generator().manual_seed(7))
    return backbone.normalize(pixels).to(backbone.dtype)


def vectors(backbone: FrozenDualEncoder, *layers: int, n_images: int | None = None, m: int = 3) -> dict[Site, Vectors]:
    generator = torch.Generator().manual_seed(3)
    shape = (m, backbone.vision_width) if n_images is None else (n_images, m, backbone.vision_width)
    scope = "shared" if n_images is None else "sample"
    return {
        (Site("vision", layer) if layer >= 0 else NORMED): Vectors(
            torch.randn(shape, generator=generator).to(backbone.dtype).requires_grad_(), scope
        )
        for layer in layers
    }


def per_image(given: dict[Site, Vectors], n_images: int) -> list[dict[int, Tensor]]:
    """The same vectors as the reference takes them."""
    return [
        {
            plain_vision.AFTER_NORM if site == NORMED else site.layer: v.values
            if v.scope == "shared"
            else v.values[image]
            for site, v in given.items()
        }
        for image in range(n_images)
    ]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def tolerance(backbone: FrozenDualEncoder) -> float:
    return TOLERANCE[str(backbone.dtype).removeprefix("torch.")]


def library_features(backbone: FrozenDualEncoder, images: Tensor) -> Tensor:
    model = backbone.model
    if hasattr(model, "get_image_features"):
        raw = model.get_image_features(pixel_values=images).pooler_output
        return raw / raw.norm(dim=-1, keepdim=True)
    return model.encode_image(images, normalize=True)


def test_without_prompts_features_are_the_library_s_own(backbone: FrozenDualEncoder, images: Tensor) -> None:
    assert relative_error(backbone.encode_image(images), library_features(backbone, images)) < tolerance(backbone)


@pytest.mark.parametrize("layers", [(0,), (0, 1), (1,), (-1,), (-1, 1)], ids=str)
@pytest.mark.parametrize("scope", ["shared", "sample"])
def test_prompted_features_and_gradients_are_the_papers(
    backbone: FrozenDualEncoder, images: Tensor, reference: Reference, layers: tuple[int, ...], scope: str
) -> None:
    given = vectors(backbone, *layers, n_images=len(images) if scope == "sample" else None)
    leaves = [v.values for v in given.values()]
    weighting = torch.randn(len(images), backbone.embed_dim, generator=torch.Generator().manual_seed(5)).to(
        images.dtype
    )
    found = backbone.encode_image(images, given)
    expected = reference(images, per_image(given, len(images)))
    assert relative_error(found, expected) < tolerance(backbone)
    found_gradients = torch.autograd.grad((found * weighting).sum(), leaves)
    expected_gradients = torch.autograd.grad((expected * weighting).sum(), leaves)
    for got, wanted in zip(found_gradients, expected_gradients, strict=True):
        assert wanted.norm() > 0
        assert relative_error(got, wanted) < tolerance(backbone)


@pytest.mark.parametrize("scope", ["shared", "sample"])
@pytest.mark.parametrize("case", ["deep", "per image in the middle", "per class", "words"])
def test_a_step_with_prompts_in_both_towers_is_the_papers(
    backbone: FrozenDualEncoder, images: Tensor, reference: Reference, case: str, scope: str
) -> None:
    """Logits, loss and the gradient of every prompt of both towers, from pictures and class names."""
    visual = vectors(backbone, 0, 1, n_images=len(images) if scope == "sample" else None)
    given = draw_vectors(backbone, CASES[case], len(NAMES)) | visual
    leaves = [v.values for v in given.values()]
    template = CASES[case].whole_template
    text = {site: v for site, v in given.items() if site.tower == "text"}
    found = step(
        backbone,
        backbone.encode_image(images, given),
        backbone.encode_text(template.slots(backbone, NAMES), given),
        leaves,
    )
    expected = step(
        backbone,
        reference(images, per_image(visual, len(images))),
        reference_features(backbone, CASES[case], NAMES, text),
        leaves,
    )
    for got, wanted in zip(found, expected, strict=True):
        assert wanted.norm() > 0
        assert relative_error(got, wanted) < tolerance(backbone)


def step(backbone: FrozenDualEncoder, image_features: Tensor, class_features: Tensor, leaves: list[Tensor]) -> list:
    """Logits, cross entropy, and the gradient of every leaf."""
    logits = (
        backbone.logit_scale * (class_features @ image_features[:, :, None])[..., 0] + backbone.logit_bias
    )  # [B, C]
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(len(logits)))
    return [logits, loss, *torch.autograd.grad(loss, leaves)]


def test_no_vectors_at_all_change_nothing(tiny_clip_backbone: FrozenDualEncoder, pixels: Tensor) -> None:
    images = tiny_clip_backbone.normalize(pixels)
    none = {Site("vision"): Vectors(torch.empty(0, small_models.WIDTH))}
    assert torch.equal(tiny_clip_backbone.encode_image(images, none), tiny_clip_backbone.encode_image(images))


def test_layers_below_the_first_prompt_keep_no_graph(tiny_clip_backbone: FrozenDualEncoder, pixels: Tensor) -> None:
    kept: list[Tensor] = []
    images = tiny_clip_backbone.normalize(pixels)

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    counts = {}
    for layer in (0, 1):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            tiny_clip_backbone.encode_image(images, vectors(tiny_clip_backbone, layer))
        counts[layer] = len(kept)
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        tiny_clip_backbone.encode_image(images)
    assert kept == []
    assert counts[1] < 0.6 * counts[0]


def test_text_vectors_do_not_touch_the_image_tower(tiny_clip_backbone: FrozenDualEncoder, pixels: Tensor) -> None:
    images = tiny_clip_backbone.normalize(pixels)
    text = {Site("text"): Vectors(torch.ones(2, small_models.WIDTH))}
    assert torch.equal(tiny_clip_backbone.encode_image(images, text), tiny_clip_backbone.encode_image(images))


def test_resnet_features_are_the_library_s_own(tiny_resnet_backbone: FrozenDualEncoder, pixels: Tensor) -> None:
    images = tiny_resnet_backbone.normalize(pixels)
    assert torch.equal(tiny_resnet_backbone.encode_image(images), library_features(tiny_resnet_backbone, images))


def test_resnet_refuses_visual_prompts(tiny_resnet_backbone: FrozenDualEncoder, pixels: Tensor) -> None:
    given = {Site("vision"): Vectors(torch.zeros(2, small_models.WIDTH))}
    with pytest.raises(UserError, match=r"\(ModifiedResNet\) has no image tokens"):
        tiny_resnet_backbone.encode_image(pixels, given)
    assert tiny_resnet_backbone.vision_width is None


def test_unequal_numbers_of_vectors_are_refused(tiny_clip_backbone: FrozenDualEncoder, pixels: Tensor) -> None:
    given = vectors(tiny_clip_backbone, 0, m=2) | vectors(tiny_clip_backbone, 1, m=3)
    with pytest.raises(UserError, match=r"vision.input 2, vision.layer\[1\] 3"):
        tiny_clip_backbone.encode_image(pixels, given)


def test_vectors_before_and_after_the_first_norm_are_refused(
    tiny_clip_backbone: FrozenDualEncoder, pixels: Tensor
) -> None:
    with pytest.raises(UserError, match=r"at vision.input and at vision.layer\[0\], .* the same slots"):
        tiny_clip_backbone.encode_image(pixels, vectors(tiny_clip_backbone, 0, -1))


def test_a_layer_that_the_tower_lacks_is_refused(tiny_clip_backbone: FrozenDualEncoder, pixels: Tensor) -> None:
    with pytest.raises(UserError, match=r"site is vision.layer\[2\], but this image tower has 2 layers"):
        tiny_clip_backbone.encode_image(pixels, vectors(tiny_clip_backbone, 2))


@pytest.mark.parametrize(
    "given",
    [Vectors(torch.zeros(2, 31)), Vectors(torch.zeros(2, 2, 32), "sample"), Vectors(torch.zeros(3, 2, 32), "class")],
    ids=["width", "images", "scope"],
)
def test_vectors_of_another_shape_are_refused(
    tiny_clip_backbone: FrozenDualEncoder, pixels: Tensor, given: Vectors
) -> None:
    with pytest.raises(UserError, match=r"takes shared \[M, 32\] or sample \[3, M, 32\]"):
        tiny_clip_backbone.encode_image(pixels, {Site("vision"): given})


def test_images_of_another_size_are_refused(tiny_clip_backbone: FrozenDualEncoder) -> None:
    with pytest.raises(UserError, match=r"images are \[2, 3, 16, 32\], but .* takes \[B, 3, 32, 32\]"):
        tiny_clip_backbone.encode_image(torch.zeros(2, 3, 16, 32))


@pytest.mark.parametrize(
    ("trunk", "part"), [("small_timm_twice_vit", "TwiceBlock"), ("test_efficientnet", "EfficientNet")]
)
def test_a_timm_trunk_without_views_gives_its_own_features_and_refuses_visual_prompts(
    tmp_path: Path, pixels: Tensor, trunk: str, part: str
) -> None:
    vision = {"timm_model_name": trunk, "timm_pool": "avg"}
    backbone = load_backbone(str(small_models.save_open_clip(tmp_path / "trunk", vision)), device="cpu")
    images = backbone.normalize(pixels)
    assert relative_error(backbone.encode_image(images), library_features(backbone, images)) < 1e-6
    assert backbone.encode_text(backbone.text_slots([[5]])).shape == (1, backbone.embed_dim)
    with pytest.raises(UserError, match=rf"this image tower \({part}\) has no image tokens"):
        backbone.encode_image(images, {Site("vision"): Vectors(torch.zeros(2, 32))})


@pytest.mark.parametrize(
    ("vision", "raw_width"),
    [({"timm_pool": "avg"}, 256), ({"timm_pool": "avg", "timm_proj": None}, 0), ({"timm_pool": "abs_attn"}, 0)],
    ids=["projection in the head", "projection in the trunk", "pool in the head"],
)
def test_raw_features_of_a_timm_trunk_are_told_apart_where_one_vector_is_projected_behind_it(
    tmp_path: Path, vision: dict, raw_width: int
) -> None:
    folder = small_models.save_open_clip(
        tmp_path / "trunk", {"timm_model_name": "test_efficientnet", "image_size": 160} | vision
    )
    backbone = load_backbone(str(folder), device="cpu")
    features = backbone.encode_image(torch.zeros(1, 3, 160, 160), raw=True)
    assert (backbone.raw_width, features.shape[1]) == (raw_width, backbone.embed_dim + raw_width)
