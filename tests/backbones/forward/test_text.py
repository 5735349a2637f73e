"""The text forward against plain full-length references, for every family: features and gradients."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmprompt.backbones.forward.text import common_length, encode_slots
from mmprompt.backbones.load import load_backbone
from mmprompt.backbones.sites import Site, Vectors
from mmprompt.prompts.text import TextLayout
from tests.reference import plain_text

NAMES = ["cat", "a dog house", "bird"]
REFERENCE = {"open_clip": plain_text.open_clip_features, "transformers": plain_text.transformers_features}


@pytest.fixture(scope="module")
def open_clip_backbone_64(tiny_open_clip_folder):
    return load_backbone(str(tiny_open_clip_folder), device="cpu", dtype="float64")


@pytest.fixture(scope="module", params=["tiny_open_clip_folder", "tiny_hf_clip_folder", "tiny_siglip_folder"])
def family(request):
    """A float64 backbone and its reference."""
    folder = request.getfixturevalue(request.param)
    kind = "open_clip" if request.param == "tiny_open_clip_folder" else "transformers"
    return load_backbone(str(folder), device="cpu", dtype="float64"), REFERENCE[kind]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def reference_rows(backbone, layout, names):
    """The full-length rows of the reference, built without the package's slots."""
    view, rows, ends = backbone.text, [], []
    for name in names:
        words, n_name = backbone.tokenize(f"{name}."), len(backbone.tokenize(name))
        row, end = plain_text.ids_with_context(
            words,
            n_name,
            layout.n_ctx,
            layout.class_position,
            view.start_id,
            view.end_id,
            view.pad_id,
            view.context_length,
        )
        rows.append(row)
        ends.append(end)
    return rows, ends


def assert_same(backbone, reference, layout, names, vectors):
    """Features and gradients equal those of the reference to 1e-10."""
    leaves = [v.values for v in vectors.values()]
    ours = backbone.encode_text(layout.slots(backbone, names), vectors)
    ctx = vectors[Site("text")].values if Site("text") in vectors else None
    deep = {site.layer: v.values for site, v in vectors.items() if site.layer}
    theirs = reference(backbone.model, *reference_rows(backbone, layout, names), ctx, deep)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    if leaves:
        weight = draw(*ours.shape, seed=9).detach()
        for a, b in zip(*(torch.autograd.grad((f * weight).sum(), leaves) for f in (ours, theirs)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("n_ctx", [1, 3])
def test_shared_context_equals_the_full_length_reference(family, n_ctx, position):
    layout = TextLayout(n_ctx=n_ctx, class_position=position)
    vectors = {Site("text"): Vectors(draw(n_ctx, family[0].text_width))}
    assert_same(*family, layout, NAMES, vectors)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_class_specific_context_equals_the_full_length_reference(family, position):
    layout = TextLayout(n_ctx=2, class_position=position)
    vectors = {Site("text"): Vectors(draw(3, 2, family[0].text_width), "class")}
    assert_same(*family, layout, NAMES, vectors)


@pytest.mark.parametrize("scope", ["shared", "class"])
def test_deep_vectors_replace_context_slots_at_their_layer(family, scope):
    width = family[0].text_width
    shape = (2, width) if scope == "shared" else (3, 2, width)
    vectors = {Site("text"): Vectors(draw(3, width)), Site("text", 1): Vectors(draw(*shape, seed=1), scope)}
    assert_same(*family, TextLayout(n_ctx=3), NAMES, vectors)


def test_words_alone_equal_the_full_length_reference(family):
    assert_same(*family, TextLayout(), NAMES, {})


def test_one_class_equals_the_full_length_reference(family):
    vectors = {Site("text"): Vectors(draw(4, family[0].text_width))}
    assert_same(*family, TextLayout(n_ctx=4), ["dog"], vectors)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    n_ctx=st.integers(1, 6),
    position=st.sampled_from(["end", "middle", "front"]),
    is_class_specific=st.booleans(),
)
def test_any_number_of_classes_and_lengths_equals_the_reference(
    open_clip_backbone_64, lengths, n_ctx, position, is_class_specific
):
    words = ["cat", "dog", "bird", "tree", "car"]
    names = [" ".join([words[i]] * length) for i, length in enumerate(lengths)]
    width = open_clip_backbone_64.text_width
    values = draw(len(names), n_ctx, width) if is_class_specific else draw(n_ctx, width)
    vectors = {Site("text"): Vectors(values, "class" if is_class_specific else "shared")}
    layout = TextLayout(n_ctx=n_ctx, class_position=position)
    assert_same(open_clip_backbone_64, REFERENCE["open_clip"], layout, names, vectors)


def test_single_precision_stays_within_1e_5(tiny_clip_backbone):
    vectors = {Site("text"): Vectors(draw(4, tiny_clip_backbone.text_width).float())}
    layout = TextLayout(n_ctx=4)
    ours = tiny_clip_backbone.encode_text(layout.slots(tiny_clip_backbone, NAMES), vectors)
    rows = reference_rows(tiny_clip_backbone, layout, NAMES)
    theirs = plain_text.open_clip_features(tiny_clip_backbone.model, *rows, vectors[Site("text")].values)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_shared_context_runs_once_for_all_classes(open_clip_backbone_64):
    layout = TextLayout(n_ctx=4)
    slots = layout.slots(open_clip_backbone_64, ["cat", "dog", "bird"])
    assert common_length(slots, shared=True) == 1 + 4


def test_class_specific_context_ends_the_common_slots(open_clip_backbone_64):
    layout = TextLayout(n_ctx=4)
    slots = layout.slots(open_clip_backbone_64, ["cat", "dog", "bird"])
    assert common_length(slots, shared=False) == 1


def test_words_that_all_classes_begin_with_are_common_too(open_clip_backbone_64):
    slots = TextLayout("a dog {}.").slots(open_clip_backbone_64, ["cat", "bird"])
    n_words = len(open_clip_backbone_64.tokenize("a dog"))
    assert common_length(slots, shared=True) == 1 + n_words


def test_every_class_keeps_a_slot_of_its_own(open_clip_backbone_64):
    slots = TextLayout(n_ctx=2).slots(open_clip_backbone_64, ["cat"])
    assert common_length(slots, shared=True) == int(slots.lengths[0]) - 1


def test_only_real_tokens_reach_the_blocks(open_clip_backbone_64):
    seen = []
    block = open_clip_backbone_64.model.transformer.resblocks[0]
    hook = block.mlp.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[:-1].numel()))
    slots = TextLayout(n_ctx=4).slots(open_clip_backbone_64, ["cat", "a dog house"])
    encode_slots(open_clip_backbone_64.text, slots, {Site("text"): Vectors(draw(4, open_clip_backbone_64.text_width))})
    hook.remove()
    assert sum(seen) == 5 + int((slots.lengths - 5).sum())
