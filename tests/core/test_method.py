"""What a method brings, how methods combine, and the one order in which a recipe is put together."""

from dataclasses import asdict, dataclass
from typing import ClassVar

import pytest
import torch

from mmprompt.classification.methods import (
    GDA,
    METHODS,
    TPT,
    VPT,
    CLIPLoRA,
    CoCoOp,
    Consistency,
    CoOp,
    LinearProbe,
    ProGrad,
    PromptSRC,
    TipAdapterF,
    ZeroShot,
)
from mmprompt.classification.methods.base import Combination, Part
from mmprompt.core import method as module
from mmprompt.core.fit import describe_method
from mmprompt.core.learned import Outputs
from mmprompt.core.method import Measured, measured_for, overrides, resolved_recipe, settled
from mmprompt.errors import UserError
from mmprompt.training.recipe import LENGTHS, Recipe

PLACES = ("tiny", "classification")


@dataclass(frozen=True)
class Paper(CoOp):
    """CoOp by another paper's recipe."""

    __module__ = CoOp.__module__  # as if it were one of the package

    recipe: ClassVar[Recipe] = Recipe(lr=1.0, batch_size=11, warmup_epochs=3, min_lr=0.5)


@pytest.fixture
def measured(monkeypatch):
    """What was measured for that method on one backbone, and for all of classification."""
    monkeypatch.setitem(module.MEASURED, ("tiny", "Paper"), Measured(recipe=Recipe(batch_size=22, warmup_epochs=4)))
    monkeypatch.setitem(module.MEASURED, ("classification", "Paper"), Measured({"n_ctx": 7}, Recipe(momentum=0.1)))


@pytest.mark.usefixtures("measured")
def test_the_order_is_paper_measured_data_user():
    recipe = resolved_recipe(Paper(), PLACES, {"warmup_epochs": 5, "momentum": 0.5, "epochs": 33}, Recipe(epochs=30))
    assert recipe.given == {
        "lr": 1.0,
        "batch_size": 22,
        "warmup_epochs": 4,
        "min_lr": 0.5,
        "momentum": 0.5,
        "epochs": 30,
    }
    assert recipe == Recipe(lr=1.0, batch_size=22, warmup_epochs=4, min_lr=0.5, momentum=0.5, epochs=30)


def test_a_data_set_speaks_where_the_paper_is_silent():
    data = {"lr": 0.02, "epochs": 50}
    assert resolved_recipe(CoOp(), (), data, None).given == data
    assert resolved_recipe(CoCoOp(), PLACES, data, None).given == {"batch_size": 1, "epochs": 10, "lr": 0.02}
    assert resolved_recipe(CLIPLoRA(), PLACES, data, None) == CLIPLoRA.recipe


def test_what_was_measured_stands_before_the_data_sets_word_of_all_but_the_length():
    data = {"lr": 0.5, "epochs": 7, "momentum": 0.25}
    assert resolved_recipe(CoOp(), ("tiny",), data, None).given == data | {"lr": 0.006}
    assert resolved_recipe(CoOp(), ("photo",), data, None).epochs == 7


@pytest.mark.usefixtures("measured")
def test_the_narrowest_place_is_where_it_was_measured():
    assert measured_for(Paper, "tiny", "classification").recipe.given == {"batch_size": 22, "warmup_epochs": 4}
    assert measured_for(Paper, "other", "classification").recipe.given == {"momentum": 0.1}
    assert measured_for(CoOp, "other", "classification") == Measured()


def test_what_was_measured_for_a_method_gives_its_settings_to_those_that_inherit_from_it_and_not_its_recipe():
    assert settled(Paper(), "tiny") == Paper(n_ctx=4)
    assert measured_for(CoOp, "photo").recipe.given
    assert measured_for(Paper, "photo").recipe.given == {}


@pytest.mark.parametrize("setting", [{"epochs": 30}, {"lr": 0.002}, {"batch_size": 8}, {"n_steps": 12}], ids=str)
@pytest.mark.parametrize(
    "method", [CoOp(), VPT(), CLIPLoRA(), PromptSRC(), CoOp() + VPT()], ids=lambda one: type(one).__name__
)
def test_a_setting_that_is_given_changes_that_setting_alone(method, setting):
    data = {"lr": 0.02, "epochs": 100}
    without, changed = (asdict(resolved_recipe(method, PLACES, data, user)) for user in (None, Recipe(**setting)))
    cleared = dict.fromkeys(LENGTHS) if setting.keys() & set(LENGTHS) else {}
    assert changed == without | cleared | setting


@dataclass(frozen=True)
class Stepped(CoOp):
    """CoOp counted in steps."""

    recipe: ClassVar[Recipe] = Recipe(n_steps=500)


@pytest.mark.parametrize(
    ("data", "user", "expected"),
    [
        ({}, None, (500, None)),
        ({"epochs": 100}, None, (500, None)),
        ({"n_steps": 9}, None, (500, None)),
        ({"epochs": 100}, Recipe(n_steps=7), (7, None)),
        ({}, Recipe(epochs=3), (None, 3)),
        ({"epochs": 100}, Recipe(lr=0.1), (500, None)),
        ({"n_steps": 9}, Recipe(epochs=3), (None, 3)),
    ],
)
def test_steps_and_epochs_take_each_others_place(data, user, expected):
    recipe = resolved_recipe(Stepped(), PLACES, data, user)
    assert (recipe.n_steps, recipe.epochs) == expected


def test_a_setting_that_no_recipe_has_is_refused_in_what_the_data_set_says():
    with pytest.raises(
        UserError, match=r"named 'epoch'\. Did you mean 'epochs'\? Correct the recipe of the data set\."
    ):
        resolved_recipe(CoOp(), (), {"epoch": 3}, None)


def test_a_combination_is_trained_by_the_recipe_of_its_first_method():
    assert resolved_recipe(CLIPLoRA() + CoOp(), (), {}, None).given == CLIPLoRA.recipe.given
    assert resolved_recipe(CoOp() + CLIPLoRA(), (), {}, None).given == {}


@pytest.mark.usefixtures("measured")
def test_what_was_measured_fills_in_what_a_method_leaves_open():
    assert settled(Paper(), "other", "classification") == Paper(n_ctx=7)
    assert settled(Paper(n_ctx=3), "other", "classification") == Paper(n_ctx=3)
    assert settled(Paper(ctx_init="a photo"), "other", "classification") == Paper(ctx_init="a photo")


def test_a_settled_combination_is_still_one_that_can_be_built(tiny_clip_backbone):
    combined = settled(CoOp() + VPT(n_visual=2), "tiny")
    assert combined == Combination((CoOp(n_ctx=4), VPT(n_visual=2)))
    assert combined.build(tiny_clip_backbone, ["cat", "dog"]).prompt.has("vision")


def test_a_combination_of_combinations_is_one():
    three = (CoOp(n_ctx=2) + VPT()) + LinearProbe(inverse_strength=1.0)
    assert describe_method(three, METHODS)["name"] == "coop+vpt+linear-probe"
    assert overrides(three, "finish")
    assert not overrides(CoOp() + VPT(), "begin")


def test_one_method_alone_is_no_combination(tiny_clip_backbone):
    with pytest.raises(UserError, match="a combination needs two methods, one of which learns"):
        Combination((CoOp(n_ctx=2),)).build(tiny_clip_backbone, ["cat", "dog"])


def test_a_combination_has_the_hooks_of_its_methods():
    combined = VPT() + ProGrad(n_ctx=8)
    own, general = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    rule = combined.gradient_rule(3)
    assert rule is not None
    assert rule({"cross_entropy": [own], "general": [general]})[0].tolist() == [0.5, 0.5]
    assert (VPT() + CoOp()).gradient_rule(3) is None
    assert len((PromptSRC() + CLIPLoRA()).callbacks(3)) == 1
    assert [type(callback).__name__ for callback in (VPT() + PromptSRC()).callbacks(3)] == ["WeightAverage"]


@pytest.mark.parametrize(
    ("combined", "what"),
    [
        (lambda one, other, backbone: (one + other).gradient_rule(3), "gradient_rule"),
        (lambda one, other, backbone: (one + Consistency()).teacher(backbone, ["cat", "dog"], "a {}"), "teacher"),
    ],
    ids=["rule", "teacher"],
)
def test_two_of_what_there_is_one_of_are_refused(combined, what, tiny_clip_backbone):
    with pytest.raises(UserError, match=f"2 of the methods bring a {what} of their own, but one can be used"):
        combined(ProGrad(n_ctx=8), ProGrad(n_ctx=9), tiny_clip_backbone)


def test_two_classifiers_of_their_own_are_refused(tiny_clip_backbone):
    with pytest.raises(UserError, match="2 of the methods bring a predictor of their own"):
        (CoOp(n_ctx=2) + TPT() + TPT()).build(tiny_clip_backbone, ["cat", "dog"])


@dataclass(frozen=True)
class Term(Part):
    """A loss term."""

    weight: float = 1.0

    def loss_terms(self, outputs):
        return {"term": self.weight * outputs.logits.square().mean()}


@dataclass(frozen=True)
class OtherTerm(Term):
    """Another one, with the same setting."""


def test_settings_of_one_name_are_all_described():
    joined = [CoOp(n_ctx=2) + Term(weight) + OtherTerm(2.0) for weight in (1.0, 50.0)]
    one, other = (describe_method(method, METHODS)["settings"] for method in joined)
    assert (one["weight"], one["OtherTerm.weight"], other["weight"]) == (1.0, 2.0, 50.0)


def test_a_loss_of_one_name_is_refused_twice():
    outputs = Outputs(torch.zeros(2, 3), torch.tensor([0, 1]), torch.zeros(2, 4), torch.zeros(3, 4))
    assert set((CoOp() + VPT() + Term()).loss_terms(outputs)) == {"cross_entropy", "term"}
    with pytest.raises(UserError, match="two methods both bring the loss 'term'"):
        (CoOp() + Term() + OtherTerm()).loss_terms(outputs)


@pytest.mark.parametrize("in_order", [1, -1])
def test_words_of_ones_own_are_kept_in_any_order_and_refused_twice(in_order, tiny_clip_backbone):
    words, names = ZeroShot(words="the {}."), ["cat", "dog"]
    one, other = (words, GDA())[::in_order]
    assert (one + other).build(tiny_clip_backbone, names).prompt.template.text == "the {}."
    one, other = (words, CoOp(n_ctx=2))[::in_order]
    with pytest.raises(UserError, match="two methods bring words of their own"):
        (one + other).build(tiny_clip_backbone, names)


def test_a_method_from_elsewhere_that_has_the_name_of_one_of_ours_is_another():
    class CoOp:
        pass

    assert measured_for(CoOp, "tiny") == Measured()


def test_coop_needs_no_hook_but_its_prompt():
    hooks = ("loss_terms", "gradient_rule", "teacher", "begin", "callbacks", "predictor")
    assert not [hook for hook in hooks if hook in vars(CoOp)]
    assert not overrides(CoOp(), "begin")
    assert overrides(TipAdapterF(), "begin")


def test_losses_of_a_combination_are_each_counted_once(tiny_clip_backbone, pixels):
    images = tiny_clip_backbone.normalize(pixels)
    combined = CoOp(n_ctx=2) + VPT(n_visual=1)
    classifier = combined.build(tiny_clip_backbone, ["cat", "dog", "bird"])
    outputs = classifier.outputs(classifier.image_features(images), torch.tensor([0, 1, 2]))
    losses = combined.loss_terms(outputs)
    assert list(losses) == ["cross_entropy"]
    torch.testing.assert_close(losses["cross_entropy"], CoOp().loss_terms(outputs)["cross_entropy"])
