"""The one `fit`: what it learns through any door, when it runs no loop, what it refuses, and the hooks it calls."""

import json
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import mmprompt as mp
from mmprompt.classification.methods import (
    TPT,
    VPT,
    CLIPLoRA,
    CoCoOp,
    CoOp,
    LinearProbe,
    NearestClassMean,
    ProGrad,
    PromptSRC,
    TipAdapter,
    TipAdapterF,
    ZeroShot,
)
from mmprompt.classification.methods.base import ClassificationMethod
from mmprompt.classification.task import ClassificationProblem, ClassificationTask
from mmprompt.cli.main import main
from mmprompt.core.fit import fit
from mmprompt.data.folder import ImageFolder
from mmprompt.data.images import read_image
from mmprompt.errors import UserError
from mmprompt.files import read_json, read_tensors, tensor_bytes
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.sites import Site
from mmprompt.training.callbacks import Callback
from mmprompt.training.problem import RunFailed
from mmprompt.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("feature_store")

FAST = {"epochs": 3, "batch_size": 4, "lr": 0.05, "progress": False}


def bytes_of(predictor):
    return tensor_bytes(predictor.prompt.state_dict())


def test_every_door_learns_the_same_bytes(picture_folder, tmp_path):
    """Through `fit` with a setting or a recipe, the estimator, and the command line; all else is left to each door."""
    data = ImageFolder(picture_folder, shots=2, seed=1)
    images, labels = [item.path for item in data.train], [data.class_names[item.label] for item in data.train]
    fitted = fit(mp.CoOp(), "tiny", data, epochs=3, progress=False).predictor
    vectors = fitted.prompt.inserts("text")[Site("text")].values
    assert vectors.shape[0] == 4  # what was measured for tiny, not the paper's 16
    by_recipe = fit(mp.CoOp(), "tiny", data, recipe=Recipe(epochs=3), progress=False).predictor
    estimator = mp.PromptClassifier("tiny", recipe=Recipe(epochs=3)).fit(images, labels)
    words = ["--data", str(picture_folder), "--shots", "2", "--epochs", "3", "--device", "cpu"]
    assert main(["train", *words, "--out", str(tmp_path / "run")]) == 0
    saved = read_tensors(tmp_path / "run" / "prompt.safetensors")["text.input"]
    assert bytes_of(by_recipe) == bytes_of(fitted)
    assert bytes_of(estimator.classifier_) == bytes_of(fitted)
    assert torch.equal(saved, vectors.detach())


def test_a_setting_wins_over_the_same_one_of_a_recipe(tiny_clip_backbone, data):
    result = fit(
        CoOp(n_ctx=2), tiny_clip_backbone, data, recipe=Recipe(epochs=9, batch_size=4), epochs=2, progress=False
    )
    assert [len(result.history), result.history[-1]["epoch"]] == [2, 2]


def test_to_go_on_without_a_folder_is_refused(tiny_clip_backbone, data):
    with pytest.raises(UserError, match=r"^resume is True, but .*\. Give `out`, the folder of the run\.$"):
        fit(CoOp(n_ctx=2), tiny_clip_backbone, data, resume=True, **FAST)


def test_a_call_that_no_json_holds_is_refused_before_anything_is_learned(tiny_clip_backbone, data, tmp_path):
    with pytest.raises(UserError, match=r"^call is not JSON-ready \(Object of type object is not JSON serializable\)"):
        fit(CoOp(n_ctx=2), tiny_clip_backbone, data, tmp_path / "run", call={"by": object()}, **FAST)
    assert not (tmp_path / "run").exists()


def test_a_setting_that_there_is_not_is_refused(tiny_clip_backbone, data, tmp_path):
    with pytest.raises(UserError, match=r"no setting of a recipe named 'epcohs'\. Did you mean 'epochs'"):
        fit(CoOp(n_ctx=2), tiny_clip_backbone, data, tmp_path / "run", epcohs=3)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("zero-shot", {"lr": 0.5}, "lr is 0.5, but zero-shot is not trained by steps. Leave `lr` out."),
        ("gda", {"recipe": Recipe(epochs=3)}, "epochs is 3, but gda is not trained by steps. Leave `epochs` out."),
        (TPT(), {"n_steps": 7}, "n_steps is 7, but tpt is not trained by steps. Leave `n_steps` out."),
    ],
)
def test_settings_of_steps_are_refused_where_none_are_taken(method, settings, said, data, tmp_path):
    with pytest.raises(UserError, match=f"^{re.escape(said)}"):
        fit(method, "tiny", data, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", [ZeroShot(), NearestClassMean(), LinearProbe(inverse_strength=1.0), TipAdapter()])
def test_where_nothing_learns_no_loop_runs_and_the_run_is_written(method, tiny_clip_backbone, data, tmp_path):
    class Listener(Callback):
        def on_train_begin(self, run):
            raise AssertionError("a loop ran")

    result = fit(method, tiny_clip_backbone, data, tmp_path / "run", callbacks=[Listener()])
    assert result.history == []
    assert "nothing trained" in repr(result)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.json", "prompt.json", "prompt.safetensors"}
    assert read_json(tmp_path / "run" / "run.json")["data"]["name"] == data.name
    assert mp.load(tmp_path / "run", tiny_clip_backbone).class_names == data.class_names
    with pytest.raises(UserError, match="already holds a finished run"):
        fit(method, tiny_clip_backbone, data, tmp_path / "run")


def test_weights_of_the_backbone_that_changed_are_noticed_and_nothing_is_saved(tiny_open_clip_folder, data, tmp_path):
    backbone = load_backbone(str(tiny_open_clip_folder), device="cpu")

    class Careless(Callback):
        def on_epoch_end(self, run, epoch, logs):
            with torch.no_grad():
                backbone.model.ln_final.weight.mul_(1.0001)

    with pytest.raises(RunFailed, match=r"weights of .* changed while a prompt was trained, so nothing was saved"):
        fit(CoOp(n_ctx=2), backbone, data, tmp_path / "run", callbacks=[Careless()], **FAST)
    assert not (tmp_path / "run" / "prompt.json").exists()


def test_what_no_file_could_keep_is_refused_before_it_is_trained(tiny_clip_backbone, data, tmp_path):
    class Nameless(CoCoOp):
        def prompt(self, backbone, start):
            prompt = super().prompt(backbone, start)
            prompt.sources[0].kind = "no such kind"
            return prompt

    with pytest.raises(UserError, match="'no such kind', which no file could be read with"):
        fit(Nameless(), tiny_clip_backbone, data, tmp_path / "run", **FAST)
    assert not (tmp_path / "run").exists()
    assert fit(Nameless(), tiny_clip_backbone, data, **FAST).history  # without a folder there is nothing to keep


def test_a_task_serves_one_backbone_after_another(tiny_clip_backbone, tiny_hf_clip_backbone, data):
    task = data.task()
    for backbone in (tiny_clip_backbone, tiny_hf_clip_backbone):
        result = fit(NearestClassMean(), backbone, task)
        assert result.evaluate(data.test).n == len(data.test)


def test_a_result_is_scored_on_what_evaluate_takes(tiny_clip_backbone, data):
    result = fit(ZeroShot(), tiny_clip_backbone, data)
    assert result.evaluate(data) == result.evaluate() == result.evaluate(data.test)
    assert result.evaluate(data, "train") == mp.evaluate(result.predictor, data, "train")
    with pytest.raises(UserError, match="the test part alone is at hand"):
        result.evaluate(split="train")
    for wrong in ("val", 5, [data.test[0].path]):
        with pytest.raises(UserError, match=r"must be .*a list, each an Item"):
            result.evaluate(wrong)


def test_a_method_that_is_no_dataclass_is_refused(tiny_clip_backbone, data, tmp_path):
    class Plain(ClassificationMethod):
        def prompt(self, backbone, start):
            return CoOp(n_ctx=2).prompt(backbone, start)

    for method in (Plain(), VPT() + Plain()):
        with pytest.raises(UserError, match=r"^method is of type Plain, but a method is a frozen dataclass"):
            fit(method, tiny_clip_backbone, data, tmp_path / "run", **FAST)
    assert not (tmp_path / "run").exists()


@dataclass(frozen=True)
class Own(mp.Method):
    """The least that a method of one's own says."""

    def prompt(self, backbone, start):
        return VPT(n_visual=1).prompt(backbone, start)


@pytest.mark.parametrize("method", [Own(), CoOp(n_ctx=2) + Own(), Own() + CoOp(n_ctx=2)], ids=str)
def test_a_method_of_ones_own_joins_others_and_meets_an_image_twice(method, tiny_clip_backbone, data):
    twice = replace(data, train=data.train + data.train)
    assert fit(method, tiny_clip_backbone, twice, **FAST).history


@pytest.mark.parametrize("give", [lambda loss: loss, lambda loss: {"loss": loss.item()}], ids=["bare", "a float"])
def test_losses_that_are_no_tensors_by_name_are_refused(give, tiny_clip_backbone, data):
    @dataclass(frozen=True)
    class Own(CoOp):
        def loss_terms(self, outputs):
            return give(super().loss_terms(outputs)["cross_entropy"])

    for method in (Own(n_ctx=2), VPT() + Own(n_ctx=2)):
        with pytest.raises(UserError, match=r"^what Own.loss_terms gives is of type \w+, but tensors by name were"):
            fit(method, tiny_clip_backbone, data, **FAST)


def test_dropout_is_for_training_and_what_is_fitted_is_ready_for_use(tiny_clip_backbone, data, pixels):
    dropped, whole = (
        fit(CLIPLoRA(lora_dropout=share), tiny_clip_backbone, data, **FAST).predictor for share in (0.5, 0.0)
    )
    images = tiny_clip_backbone.normalize(pixels)
    assert torch.equal(dropped(images), dropped(images))
    assert not dropped.prompt.training
    assert bytes_of(dropped) != bytes_of(whole)


def test_looking_at_validation_changes_nothing_that_is_learned(tiny_clip_backbone, data):
    class Watching(Callback):
        def on_epoch_end(self, run, epoch, logs):
            logs["val"] = run.problem.validate()

    validated = replace(data, val=data.test)
    plain = fit(CLIPLoRA(lora_dropout=0.5), tiny_clip_backbone, validated, **FAST)
    watched = fit(CLIPLoRA(lora_dropout=0.5), tiny_clip_backbone, validated, callbacks=[Watching()], **FAST)
    assert bytes_of(watched.predictor) == bytes_of(plain.predictor)
    assert watched.history[-1]["val"] == watched.evaluate(data.test).accuracy


@pytest.mark.parametrize("augment", ["none", "coop"])
@pytest.mark.parametrize("method", [ProGrad(n_ctx=8), PromptSRC(n_ctx=2)], ids=["text", "both towers"])
def test_a_teacher_sees_the_images_of_the_step_without_what_is_learned(method, augment, tiny_clip_backbone, data):
    seen = []

    class Watched(type(method)):
        def loss_terms(self, outputs):
            seen.append(outputs)
            return super().loss_terms(outputs)

    recipe = Recipe(epochs=1, batch_size=4, augment=augment, views=2)
    classifier = method.build(tiny_clip_backbone, data.class_names)
    paths, labels = [item.path for item in data.train], [item.label for item in data.train]
    problem = ClassificationProblem(Watched(n_ctx=method.n_ctx), classifier, paths, labels, recipe, seed=3)
    problem.step([5, 0, 7], 1)
    (outputs,) = seen
    if augment == "none":
        pixels = [tiny_clip_backbone.preprocess(read_image(paths[index])) for index in (5, 0, 7)]
    else:
        pixels = [problem._augmented(index, 1) for index in (5, 0, 7)]
    bare = tiny_clip_backbone.encode_image(torch.stack(pixels))
    teacher = method.teacher(tiny_clip_backbone, data.class_names, data.template)
    torch.testing.assert_close(outputs.frozen.image_features, bare)
    torch.testing.assert_close(outputs.frozen.logits, tiny_clip_backbone.logit_scale * bare @ teacher.T)
    assert torch.equal(outputs.frozen.class_features, teacher)
    assert torch.equal(outputs.labels, torch.tensor(labels)[[5, 0, 7]])
    has_own = method.n_visual if isinstance(method, PromptSRC) else 0
    assert torch.allclose(outputs.image_features, bare, atol=1e-5) == (not has_own)


@pytest.mark.parametrize("length", [{"epochs": 3}, {"n_steps": 8}, {"n_steps": 2}], ids=str)
def test_a_method_is_told_how_many_epochs_there_will_be(length, tiny_clip_backbone, data):
    told = []

    class Told(CoOp):
        def callbacks(self, n_epochs):
            told.append(n_epochs)
            return ()

    fit(Told(n_ctx=2), tiny_clip_backbone, data, batch_size=4, progress=False, **length)
    assert told == [{3: 3, 8: 3, 2: 1}[next(iter(length.values()))]]  # three steps an epoch


def test_a_classifier_that_adapts_to_each_image_leaves_no_trace(tiny_clip_backbone, data, pixels):
    classifier = fit(
        TPT(n_views=4, step_size=0.05), tiny_clip_backbone, replace(data, train=(), val=()), progress=False
    ).predictor
    before = bytes_of(classifier)
    rows = classifier.predict_proba(pixels)
    assert bytes_of(classifier) == before
    assert (rows == classifier.predict_proba(pixels)).all()
    frozen = mp.zero_shot(tiny_clip_backbone, data.class_names, "a photo of a {}.").predict_proba(pixels)
    assert np.abs(rows - frozen).max() > 1e-3
    score = mp.evaluate(classifier, data)
    said = [prediction.label for prediction in classifier.predict([item.path for item in data.test])]
    assert [data.class_names[place] for place in score.predictions] == said


def test_a_head_that_learns_moves_its_keys_and_leaves_their_labels(tiny_clip_backbone, data):
    filled = fit(TipAdapter(), tiny_clip_backbone, data, progress=False).predictor.prompt.head
    tuned = fit(TipAdapterF(), tiny_clip_backbone, data, **FAST).predictor.prompt.head
    assert torch.equal(filled.values, tuned.values)
    assert filled.values.sum(0).tolist() == [4, 4, 4]
    assert not torch.allclose(filled.keys, tuned.keys, atol=1e-3)


def test_a_head_is_filled_with_the_frozen_features_in_the_order_of_the_images(tiny_clip_backbone, data):
    task = ClassificationTask.of(data)
    task.labels, task.images = task.labels[::-1], task.images[::-1]
    head = fit(TipAdapter(), tiny_clip_backbone, task).predictor.prompt.head
    pixels = torch.stack([tiny_clip_backbone.preprocess(read_image(path)) for path in task.images])
    torch.testing.assert_close(head.keys.detach(), tiny_clip_backbone.encode_image(pixels))
    assert head.values.argmax(1).tolist() == list(task.labels)


def test_run_json_says_the_recipe_as_it_was_put_together(tiny_clip_backbone, data, tmp_path):
    fit(CLIPLoRA(), tiny_clip_backbone, replace(data, recipe={"lr": 0.01}), tmp_path / "run", n_steps=4, progress=False)
    config = json.loads((tmp_path / "run" / "run.json").read_text())
    recipe = config["recipe"]
    assert config["method"]["name"] == "clip-lora"
    assert [recipe[name] for name in ("optimizer", "lr", "n_steps", "epochs", "schedule", "min_lr", "augment")] == [
        "adamw",
        2e-4,
        4,
        None,
        "step",
        1e-6,
        "none",
    ]
