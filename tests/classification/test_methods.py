"""What is particular to CoOp, VPT and the frozen methods, and what every method refuses; conformance does the rest."""

import pytest
import torch

from mmprompt.classification.methods import METHODS, TPT, VPT, CoOp, DeepText, MaPLe, ProGrad, make_method
from mmprompt.classification.task import zero_shot
from mmprompt.core.file import load, save
from mmprompt.core.fit import describe_method
from mmprompt.core.template import escaped
from mmprompt.errors import UserError
from mmprompt.models.sites import Site

NAMES = ["cat", "red car", "dog"]
TRAINED = ["coop", "vpt", "coop+vpt"]
EVERY = [*METHODS, "coop+vpt"]
ALONE = [name for name in EVERY if name not in METHODS or METHODS[name].learns]


def small(name):
    """A method with few vectors, so that it fits the small backbones."""
    settings = {"n_ctx": 8} if name == "prograd" else {"n_ctx": 4} if "coop" in name else {}
    return make_method(name, settings)


@pytest.fixture
def images(tiny_clip_backbone, pixels):
    return tiny_clip_backbone.normalize(pixels)


@pytest.mark.parametrize("name", TRAINED)
def test_parameters_are_the_prompt_alone_and_each_gets_a_gradient(name, tiny_clip_backbone, images):
    model = small(name).build(tiny_clip_backbone, NAMES)
    torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2])).backward()
    assert sum(p.numel() for p in model.parameters()) < 2000
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_of_training_leaves_the_backbone_as_it_was(name, tiny_clip_backbone, images):
    model = small(name).build(tiny_clip_backbone, NAMES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2])).backward()
    optimizer.step()
    assert tiny_clip_backbone.compute_fingerprint() == tiny_clip_backbone.fingerprint
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", TRAINED)
def test_the_same_seed_gives_the_same_start(name, tiny_clip_backbone):
    starts = [
        [p.detach() for p in small(name).build(tiny_clip_backbone, NAMES, seed=seed).parameters()] for seed in (1, 1, 2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(starts[0], starts[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(starts[0], starts[2], strict=True))


@pytest.mark.parametrize("name", EVERY)
def test_name_and_settings_make_the_same_method_again(name):
    method = small(name)
    facts = describe_method(method, METHODS)
    assert facts["name"] == name
    assert make_method(facts["name"], facts["settings"]) == method


@pytest.mark.parametrize("name", [name for name in ALONE if name != "zero-shot-ensemble"])  # ImageNet's need more slots
def test_one_class_and_one_image_are_enough(name, tiny_clip_backbone, images):
    assert small(name).build(tiny_clip_backbone, ["cat"])(images[:1]).shape == (1, 1)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("names", ["cat", None, [], ["cat", ""], ["cat", 3]], ids=repr)
def test_names_that_are_no_list_of_words_are_refused(name, names, tiny_clip_backbone):
    with pytest.raises(UserError, match=r"class.name"):
        small(name).build(tiny_clip_backbone, names)


def test_coop_starts_from_the_embeddings_of_words(tiny_clip_backbone):
    model = CoOp(ctx_init="a photo of a").build(tiny_clip_backbone, NAMES)
    ids = torch.tensor(tiny_clip_backbone.tokenize("a photo of a"))
    (values,) = model.parameters()
    torch.testing.assert_close(values.detach(), tiny_clip_backbone.token_vectors(ids))


def test_coop_started_from_words_is_those_words(tiny_clip_backbone):
    learned = CoOp(ctx_init="a photo of a").build(tiny_clip_backbone, NAMES)
    written = zero_shot(tiny_clip_backbone, NAMES, "a photo of a {}.")
    torch.testing.assert_close(learned.class_features().detach(), written.class_features())


def test_an_underscore_in_the_words_is_a_space(tiny_clip_backbone, images):
    published = CoOp(ctx_init="a_photo_of_a").build(tiny_clip_backbone, NAMES)
    written = CoOp(ctx_init="a photo of a").build(tiny_clip_backbone, NAMES)
    assert torch.equal(published(images), written(images))


@pytest.mark.parametrize(
    "classifier",
    [
        lambda backbone, names: CoOp(n_ctx=3).build(backbone, names),
        lambda backbone, names: CoOp(n_ctx=3, class_position="middle").build(backbone, names),
        lambda backbone, names: VPT(n_visual=1).build(backbone, names),
        zero_shot,
        lambda backbone, names: CoOp(n_ctx=3).build(backbone, ["fish"]).with_class_names(names),
    ],
    ids=["end", "middle", "visual", "zero-shot", "with_class_names"],
)
def test_an_underscore_in_a_class_name_is_a_space(classifier, tiny_clip_backbone, images):
    published = classifier(tiny_clip_backbone, ["dog", "happy_red_bird", "cat"])
    written = classifier(tiny_clip_backbone, ["dog", "happy red bird", "cat"])
    assert torch.equal(published(images), written(images))
    assert published.class_names[1] == "happy_red_bird"


def test_names_that_differ_in_an_underscore_alone_are_refused(tiny_clip_backbone):
    with pytest.raises(UserError, match="'red_car' stands twice"):
        zero_shot(tiny_clip_backbone, ["red car", "red_car"])


def test_class_specific_words_start_alike_for_every_class(tiny_clip_backbone):
    (values,) = CoOp(ctx_init="a photo", class_specific=True).build(tiny_clip_backbone, NAMES).parameters()
    assert values.shape == (3, 2, tiny_clip_backbone.text_width)
    assert torch.equal(values[0], values[2])


def test_coop_has_sixteen_vectors_unless_told(tiny_clip_backbone):
    with pytest.raises(UserError, match="takes 20 slots"):
        CoOp().build(tiny_clip_backbone, ["cat"])


def test_random_start_has_the_published_spread(tiny_clip_backbone):
    (values,) = CoOp(n_ctx=12).build(tiny_clip_backbone, ["cat"]).parameters()
    assert values.std().item() == pytest.approx(0.02, rel=0.1)


def test_n_ctx_that_contradicts_the_words_is_refused(tiny_clip_backbone):
    with pytest.raises(UserError, match="n_ctx is 3, but the words 'a photo of a' are 4 tokens"):
        CoOp(n_ctx=3, ctx_init="a photo of a").build(tiny_clip_backbone, NAMES)


@pytest.mark.parametrize("method", [CoOp(ctx_init=""), ProGrad(ctx_init=" "), TPT(tpt_init="")])
def test_no_words_to_start_from_are_refused(method, tiny_clip_backbone):
    with pytest.raises(UserError, match=r"^the words to start from are ' ?', but one at least was expected"):
        method.build(tiny_clip_backbone, NAMES)


@pytest.mark.parametrize("words", ["a photo {of} a", "a photo {} a", "a photo }} {"])
def test_braces_in_the_words_that_stay_are_braces(words, tiny_clip_backbone):
    learned = MaPLe(n_ctx=2, ctx_init=words, depth=1).build(tiny_clip_backbone, NAMES)
    written = zero_shot(tiny_clip_backbone, NAMES, f"{escaped(words)} {{}}.")
    torch.testing.assert_close(learned.class_features().detach(), written.class_features())


@pytest.mark.parametrize("kind", [DeepText, MaPLe])
def test_words_that_would_be_cut_within_a_character_are_refused(kind, tiny_clip_backbone):
    with pytest.raises(UserError, match=r"^ctx_init is 'a 😀 photo', but it cannot be cut behind its first 2 tokens"):
        kind(n_ctx=2, ctx_init="a 😀 photo").build(tiny_clip_backbone, NAMES)


@pytest.mark.parametrize("kind", [DeepText, MaPLe])
def test_a_folder_in_the_place_of_words_is_refused(kind, tiny_clip_backbone, tmp_path):
    with pytest.raises(UserError, match=r"but words were expected, not a folder. Start coop from a prompt\.$"):
        kind(n_ctx=2, ctx_init=str(tmp_path)).build(tiny_clip_backbone, NAMES)


def test_more_words_than_a_file_name_has_letters_are_words(tiny_clip_backbone):
    with pytest.raises(UserError, match="n_ctx is 80, but the text tower"):
        CoOp(ctx_init="a photo of a " * 20).build(tiny_clip_backbone, NAMES)


def test_deep_visual_prompts_have_vectors_of_their_own_in_each_layer(tiny_clip_backbone):
    model = VPT(n_visual=3, depth=2).build(tiny_clip_backbone, NAMES)
    assert model.prompt.sites == (Site("vision"), Site("vision", 1))
    assert [tuple(p.shape) for p in model.parameters()] == [(3, tiny_clip_backbone.vision_width)] * 2


def test_visual_prompts_have_two_published_forms(tiny_clip_backbone):
    clip, jia = (VPT(n_visual=64, depth=2, form=form).build(tiny_clip_backbone, NAMES) for form in ("clip", "jia"))
    assert [str(site) for site in clip.prompt.sites] == ["vision.input", "vision.layer[1]"]
    assert [str(site) for site in jia.prompt.sites] == ["vision.layer[0]", "vision.layer[1]"]
    bound = (6 / (3 * tiny_clip_backbone.find_patch_size() ** 2 + tiny_clip_backbone.vision_width)) ** 0.5
    for start in jia.parameters():
        assert 0.98 * bound < start.abs().max() <= bound
        assert start.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert all(start.std().item() == pytest.approx(0.02, rel=0.1) for start in clip.parameters())
    (first, *_) = VPT(form="jia", init="normal").build(tiny_clip_backbone, NAMES).parameters()
    assert torch.equal(first, next(VPT().build(tiny_clip_backbone, NAMES).parameters()))


def test_the_form_of_visual_prompts_survives_saving(tiny_clip_backbone, tmp_path):
    classifier = VPT(form="jia").build(tiny_clip_backbone, NAMES)
    save(classifier, tmp_path / "run")
    read = load(tmp_path / "run", tiny_clip_backbone)
    image = torch.rand(3, tiny_clip_backbone.image_size, tiny_clip_backbone.image_size)
    assert [str(site) for site in read.prompt.sites] == ["vision.layer[0]"]
    assert (read.predict_proba(image) == classifier.predict_proba(image)).all()


def test_depth_beyond_the_tower_is_refused(tiny_clip_backbone):
    with pytest.raises(UserError, match=r"depth is 3, but the image tower of .* has 2 layers"):
        VPT(depth=3).build(tiny_clip_backbone, NAMES)


def test_visual_prompts_on_a_resnet_are_refused(tiny_resnet_backbone):
    with pytest.raises(UserError, match=r"\(ModifiedResNet\) has no image tokens"):
        VPT().build(tiny_resnet_backbone, NAMES)


def test_two_methods_at_the_same_site_are_refused(tiny_clip_backbone):
    with pytest.raises(UserError, match=r"both learn at text\.input"):
        (CoOp(n_ctx=2) + CoOp(n_ctx=4)).build(tiny_clip_backbone, NAMES)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("cop", {}, "no method named 'cop'. Did you mean 'coop'"),
        ("coop", {"n_ctxt": 4}, "no setting of coop named 'n_ctxt'. Did you mean 'n_ctx'"),
        ("coop", {"n_ctx": 0}, "n_ctx is 0"),
        ("coop", {"class_position": "left"}, "no class_position named 'left'. Known: end, front, middle"),
        ("vpt", {"n_visual": 0}, "n_visual is 0"),
        ("vpt", {"depth": 0}, "depth is 0"),
        ("coop+kgcoop", {}, "CoOp and KgCoOp both have a setting named n_ctx, but a combination has one of each"),
        ("coop+maple+vpt", {"depth": 3}, "CoOp and MaPLe both have a setting named n_ctx"),
        ("zero-shot+zero-shot", {}, "ZeroShot stands twice"),
        ("maple+vpt", {}, "MaPLe and VPT both have a setting named depth"),
    ],
)
def test_settings_out_of_range_are_refused(name, settings, message):
    with pytest.raises(UserError, match=message):
        make_method(name, settings)


@pytest.mark.parametrize("n_ctx", [0, -1, 2.5, "4", True])
def test_context_vectors_are_counted_in_whole_numbers(n_ctx):
    with pytest.raises(UserError, match="it must be a whole number, 1 or more"):
        CoOp(n_ctx=n_ctx)


@pytest.mark.parametrize(
    "settings", [{"n_visual": 0}, {"n_visual": 10**9}, {"n_visual": 1.5}, {"depth": 0}, {"depth": 2.0}]
)
def test_visual_prompts_are_counted_in_whole_numbers_and_bounded(settings):
    with pytest.raises(UserError, match="whole number"):
        VPT(**settings)
