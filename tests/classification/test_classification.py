import json
import shutil
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch

import mmprompt as mp
from mmprompt.classification.measure import measure
from mmprompt.classification.task import ClassificationTask, evaluate, zero_shot
from mmprompt.core.file import load
from mmprompt.core.fit import fit
from mmprompt.data.folder import ImageFolder
from mmprompt.data.images import read_image
from mmprompt.errors import UserError
from mmprompt.files import read_tensors, tensor_bytes
from mmprompt.models.image_features import ImageFeatures
from mmprompt.training.callbacks import Callback
from mmprompt.training.recipe import Recipe, learning_rate
from mmprompt.training.run_files import run_lock
from mmprompt.training.seeds import batches, epoch_order
from tests.fixtures.coloured_pictures import draw_pictures, pictures_through

pytestmark = pytest.mark.usefixtures("feature_store")

FAST = Recipe(epochs=3, batch_size=4, lr=0.05)
METHODS = [mp.CoOp(n_ctx=4), mp.VPT(n_visual=2, depth=2), mp.CoOp(n_ctx=4) + mp.VPT(n_visual=2)]


def bytes_of(classifier):
    return tensor_bytes(classifier.prompt.state_dict())


@pytest.mark.parametrize("method", METHODS, ids=["coop", "vpt", "coop+vpt"])
def test_fit_equals_plain_pytorch_byte_for_byte(method, tiny_clip_backbone, data):
    trained = fit(method, tiny_clip_backbone, data, recipe=FAST, seed=3).predictor

    model = method.build(tiny_clip_backbone, data.class_names, seed=3)
    images = torch.stack([tiny_clip_backbone.preprocess(read_image(item.path)) for item in data.train])
    labels = torch.tensor([item.label for item in data.train])
    features = model.image_features(images) if not model.prompt.has("vision") else None
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4)
    for epoch in range(3):
        optimizer.param_groups[0]["lr"] = learning_rate(FAST, epoch, 3)
        for batch in batches(epoch_order(3, epoch, len(labels)), 4):
            logits = model(images[batch]) if features is None else model.outputs(features[batch]).logits
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, labels[batch]).backward()
            optimizer.step()
    assert bytes_of(model) == bytes_of(trained)


@pytest.mark.parametrize("method", METHODS, ids=["coop", "vpt", "coop+vpt"])
def test_the_same_seed_gives_the_same_bytes(method, tiny_clip_backbone, data):
    first, again, other = (
        fit(method, tiny_clip_backbone, data, recipe=FAST, seed=seed).predictor for seed in (1, 1, 2)
    )
    assert bytes_of(first) == bytes_of(again)
    assert bytes_of(first) != bytes_of(other)


def test_training_learns(tiny_clip_backbone, data):
    recipe = Recipe(epochs=40, batch_size=4, lr=0.1)
    result = fit(mp.CoOp(n_ctx=4), tiny_clip_backbone, data, recipe=recipe)
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]


def test_frozen_stays_frozen(tiny_clip_backbone, data):
    fit(mp.CoOp(n_ctx=2) + mp.VPT(n_visual=2), tiny_clip_backbone, data, recipe=FAST)
    assert tiny_clip_backbone.compute_fingerprint() == tiny_clip_backbone.fingerprint


def test_text_prompt_encodes_each_training_picture_once(tiny_clip_backbone, data):
    with pictures_through(tiny_clip_backbone) as met:
        fit(mp.CoOp(n_ctx=2), tiny_clip_backbone, data, recipe=FAST)
    assert len(met) == len(data.train)


@pytest.mark.parametrize(
    ("recipe", "n_views"), [(FAST, 1), (replace(FAST, augment="coop", views=2), 2)], ids=["plain", "two views"]
)
def test_text_prompt_needs_no_picture_and_no_image_tower_after_the_first_epoch(
    recipe, n_views, tiny_clip_backbone, tmp_path
):
    pictures = draw_pictures(tmp_path / "own")
    data = ImageFolder(pictures, shots=4, seed=1, augment="none")
    met_so_far = []

    class TakeAway(Callback):
        def on_epoch_end(self, run, epoch, logs):
            shutil.rmtree(pictures, ignore_errors=True)
            met_so_far.append(len(met))

    with pictures_through(tiny_clip_backbone) as met:
        fit(mp.CoOp(n_ctx=2), tiny_clip_backbone, data, recipe=recipe, callbacks=[TakeAway()])
    assert met_so_far == [n_views * len(data.train)] * 3


def test_evaluation_computes_class_features_once(tiny_clip_backbone, data):
    classifier = fit(mp.CoOp(n_ctx=2), tiny_clip_backbone, data, recipe=FAST).predictor
    count = []
    hook = tiny_clip_backbone.model.ln_final.register_forward_hook(lambda *_: count.append(1))
    for _ in range(3):
        evaluate(classifier, data.test)
    hook.remove()
    assert len(count) == 1


def test_stored_views_are_encoded_once_each(tiny_clip_backbone, data):
    recipe = replace(FAST, epochs=6, augment="coop", views=2)
    with pictures_through(tiny_clip_backbone) as met:
        fit(mp.CoOp(n_ctx=2), tiny_clip_backbone, data, recipe=recipe)
    assert len(met) == 2 * len(data.train)


def test_zero_views_draw_fresh_ones_in_every_epoch(tiny_clip_backbone, data):
    n = len(data.train)
    with pictures_through(tiny_clip_backbone) as met:
        fit(mp.CoOp(n_ctx=2), tiny_clip_backbone, data, recipe=replace(FAST, augment="coop", views=0))
    assert len(met) == 3 * n
    assert not torch.equal(torch.stack(met[:n]), torch.stack(met[n : 2 * n]))


def test_pixels_of_a_view_that_never_comes_back_are_not_kept(tiny_clip_backbone, data):
    class Counting(Callback):
        def on_epoch_end(self, run, epoch, logs):
            logs["kept"] = len(run.problem._pixels)

    n = len(data.train)
    for views, expected in ((0, [n] * 3), (2, [n, 2 * n, 2 * n])):
        recipe = replace(FAST, augment="coop", views=views)
        result = fit(mp.VPT(n_visual=2), tiny_clip_backbone, data, recipe=recipe, callbacks=[Counting()])
        assert [record["kept"] for record in result.history] == expected


@pytest.mark.parametrize(("names", "message"), [(("cat",), "'cat' is the only class"), ((), "no class names")])
def test_fewer_than_two_classes_are_refused(names, message, tiny_clip_backbone, data, tmp_path):
    train = tuple(replace(item, label=0) for item in data.train)
    with pytest.raises(UserError, match=message):
        fit(mp.CoOp(n_ctx=2), tiny_clip_backbone, replace(data, class_names=names, train=train), tmp_path / "run", FAST)
    assert not (tmp_path / "run").exists()


def test_features_of_another_backbone_are_refused(tiny_clip_backbone, tiny_hf_clip_backbone, data, tmp_path):
    others = ImageFeatures(tiny_hf_clip_backbone)
    with pytest.raises(UserError, match="Give features of the same frozen model"):
        fit(mp.CoOp(n_ctx=2), tiny_clip_backbone, data.task(others), tmp_path / "run", FAST)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="Give features of the same frozen model"):
        evaluate(zero_shot(tiny_clip_backbone, data.class_names), data.test, others)


def test_early_stopping_without_validation_pictures_is_refused(tiny_clip_backbone, data):
    with pytest.raises(UserError, match="early stopping needs validation images"):
        fit(mp.CoOp(n_ctx=2), tiny_clip_backbone, data, recipe=replace(FAST, patience=2))


def test_early_stopping_keeps_the_best_on_validation(tiny_clip_backbone, data):
    validated = replace(data, val=data.test)
    recipe = Recipe(epochs=30, batch_size=4, lr=0.1, patience=3)
    result = fit(mp.CoOp(n_ctx=4), tiny_clip_backbone, validated, recipe=recipe)
    best = max(record["val_accuracy"] for record in result.history)
    assert result.evaluate(validated.val).accuracy == pytest.approx(best)


@pytest.mark.parametrize("method", ["vpt", "padding-prompt", "tip-adapter-f", "clip-adapter", "taskres"])
def test_training_in_half_precision_keeps_whole_class_features(method, tiny_clip_backbone, data, tmp_path):
    result = fit(method, tiny_clip_backbone, data, tmp_path / "run", recipe=replace(FAST, epochs=1, precision="bf16"))
    words = result.predictor.prompt.template.text
    expected = zero_shot(tiny_clip_backbone, data.class_names, words).class_features()
    assert torch.equal(read_tensors(tmp_path / "run" / "prompt.safetensors")["class_features"], expected)
    assert result.evaluate().n == len(data.test)


def test_zero_shot_is_the_librarys_own(tiny_clip_backbone, tiny_open_clip_folder, data):
    classifier = zero_shot(tiny_clip_backbone, data.class_names, "a photo of a {}.")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tiny_open_clip_folder}")
    text = tokenizer([f"a photo of a {name}." for name in data.class_names])
    with torch.no_grad():
        expected = tiny_clip_backbone.model.encode_text(text, normalize=True)
    torch.testing.assert_close(classifier.class_features(), expected, rtol=1e-5, atol=1e-6)


def test_evaluation_counts_what_predict_says(tiny_clip_backbone, data):
    classifier = zero_shot(tiny_clip_backbone, data.class_names)
    score = evaluate(classifier, data.test)
    said = [prediction.label for prediction in classifier.predict([item.path for item in data.test])]
    assert [data.class_names[p] for p in score.predictions] == said
    assert score.accuracy == np.mean(
        [a == data.class_names[item.label] for a, item in zip(said, data.test, strict=True)]
    )


def test_evaluation_on_names_in_another_order_is_of_those_names(tiny_clip_backbone, data):
    own = zero_shot(tiny_clip_backbone, data.class_names)
    turned = zero_shot(tiny_clip_backbone, data.class_names[::-1])
    assert mp.evaluate(turned, data).accuracy == mp.evaluate(own, data).accuracy


@pytest.mark.parametrize(
    ("names", "labels", "text"),
    [
        (["a", "b"], [0, 7], "label is 7, but there are 2 class names"),
        (["a", "b"], [0], "labels is 1, but there are 2"),
        ([], [0, -1], "label is -1, but there are 0 class names"),
        (np.array(["a", "b"]), [0, -1], "label is -1, but there are 2 class names"),
    ],
)
def test_labels_that_do_not_fit_are_refused(names, labels, text):
    images = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(UserError, match=text):
        ClassificationTask("x", names, images, labels)


def test_class_names_of_numpy_are_what_a_list_of_them_is(tiny_clip_backbone, tmp_path):
    images, names = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), np.uint8), ["a cat", "a dog"]
    for folder, given in {"list": names, "array": np.array(names), "objects": np.array(names, dtype=object)}.items():
        fit("text-probe", tiny_clip_backbone, ClassificationTask("x", given, images, [0, 1, 0, 1]), tmp_path / folder)
    facts = [json.loads((tmp_path / folder / "prompt.json").read_text())["class_names"] for folder in ("list", "array")]
    assert facts == [names, names]
    assert type(zero_shot(tiny_clip_backbone, np.array(names)).predict(images[0]).label) is str
    wanted = bytes_of(load(tmp_path / "list", tiny_clip_backbone))
    assert bytes_of(load(tmp_path / "objects", tiny_clip_backbone)) == wanted


def test_what_can_be_read_but_once_is_refused():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    for names, some, named in ((["a", "b"], iter(images), "images"), (iter("ab"), images, "class_names")):
        with pytest.raises(UserError, match=f"{named} is of type .*iterator, but it must have a length. Give a list."):
            ClassificationTask("x", names, some, [0, 1])


def test_evaluating_on_nothing_is_refused(tiny_clip_backbone, data):
    with pytest.raises(UserError, match="no images to evaluate on"):
        evaluate(zero_shot(tiny_clip_backbone, data.class_names), [])


def test_evaluating_on_a_label_below_zero_is_refused(tiny_clip_backbone, data):
    below = [replace(data.test[0], label=-1), data.test[1]]
    with pytest.raises(UserError, match="label is -1, but the numbers of class names begin at 0"):
        evaluate(zero_shot(tiny_clip_backbone, data.class_names), below)


def test_run_folder_holds_all_that_is_needed_to_repeat(tiny_clip_backbone, data, tmp_path):
    result = fit(mp.CoOp(n_ctx=4), tiny_clip_backbone, data, tmp_path / "run", FAST, seed=5)
    config = json.loads((tmp_path / "run" / "run.json").read_text())
    assert config["method"] == {
        "name": "coop",
        "settings": {"n_ctx": 4, "ctx_init": None, "class_position": "end", "class_specific": False},
    }
    assert config["backbone"]["fingerprint"] == tiny_clip_backbone.fingerprint
    assert config["data"]["fingerprint"] == data.fingerprint
    assert config["recipe"]["epochs"] == 3
    assert config["seed"] == 5
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 3
    assert bytes_of(load(tmp_path / "run", tiny_clip_backbone)) == bytes_of(result.predictor)


def test_finished_run_is_not_overwritten_and_to_resume_it_gives_it_back(tiny_clip_backbone, data, tmp_path):
    first = fit(mp.CoOp(n_ctx=2), tiny_clip_backbone, data, tmp_path, FAST, call={"command": "fit"})
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="already holds a finished run"):
        fit(mp.CoOp(n_ctx=2), tiny_clip_backbone, data, tmp_path, FAST)
    with pytest.raises(UserError, match="holds a run with another method"):
        fit(mp.CoOp(n_ctx=3), tiny_clip_backbone, data, tmp_path, FAST, resume=True)
    again = fit(mp.CoOp(n_ctx=2), tiny_clip_backbone, data, tmp_path, FAST, resume=True)
    assert again.history == first.history
    assert bytes_of(again.predictor) == bytes_of(first.predictor)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    assert json.loads((tmp_path / "run.json").read_text())["call"] == {"command": "fit"}


def test_a_saved_prompt_that_no_training_left_is_not_written_over(tiny_clip_backbone, data, tmp_path):
    mp.save(fit(mp.CoOp(n_ctx=2), tiny_clip_backbone, data, None, FAST).predictor, tmp_path)
    with pytest.raises(UserError, match="already holds a finished run"):
        fit(mp.CoOp(n_ctx=2), tiny_clip_backbone, data, tmp_path, FAST, resume=True)


def test_refused_run_writes_nothing(tiny_resnet_backbone, data, tmp_path):
    with pytest.raises(UserError, match="no image tokens"):
        fit(mp.VPT(), tiny_resnet_backbone, data, tmp_path / "run", FAST)
    assert not (tmp_path / "run").exists()


def test_broken_picture_is_refused_before_anything_is_written(tiny_clip_backbone, data, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(data.train[0].path.read_bytes()[:60])
    train = (replace(data.train[0], path=broken), *data.train[1:])
    with pytest.raises(UserError, match=r"broken\.png"):
        fit(
            mp.CoOp(n_ctx=2),
            tiny_clip_backbone,
            replace(data, root=tmp_path.parent, train=train),
            tmp_path / "run",
            FAST,
        )
    assert not (tmp_path / "run").exists()


def test_a_folder_that_another_process_trains_in_is_refused(tiny_clip_backbone, data, tmp_path):
    with run_lock(tmp_path), pytest.raises(UserError, match="another training"):
        fit(mp.CoOp(n_ctx=2), tiny_clip_backbone, data, tmp_path, FAST)
    fit(mp.CoOp(n_ctx=2), tiny_clip_backbone, data, tmp_path, FAST)
    assert not (tmp_path / "run.lock").exists()


def test_checkpoints_of_another_run_are_refused_and_its_config_stays(tiny_clip_backbone, data, tmp_path):
    fit(mp.CoOp(n_ctx=2), tiny_clip_backbone, data, tmp_path, FAST)
    (tmp_path / "prompt.json").unlink()
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(UserError, match="holds a run with another method"):
        fit(mp.CoOp(n_ctx=4), tiny_clip_backbone, data, tmp_path, FAST, resume=True)
    assert (tmp_path / "run.json").read_bytes() == before


def test_measure_puts_the_prompt_beside_zero_shot(tiny_clip_backbone, data, tmp_path):
    result = fit(mp.CoOp(n_ctx=4), tiny_clip_backbone, data, tmp_path, Recipe(epochs=40, batch_size=4, lr=0.1))
    metrics = measure(result.predictor, data, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    bare = evaluate(zero_shot(tiny_clip_backbone, data.class_names, "{}"), data.test)
    assert metrics["zero_shot_name"]["accuracy"] == bare.accuracy
    gain = metrics["learned"]["gain_over_zero_shot_name"]
    assert gain["gain"] == pytest.approx(metrics["learned"]["accuracy"] - bare.accuracy)
    assert gain["interval"][0] <= gain["gain"] <= gain["interval"][1]
    assert len(metrics["predictions"]) == len(data.test)


def test_measure_gives_novel_concepts_a_row_of_their_own(tiny_clip_backbone, data):
    test = tuple(replace(item, novel=i % 2 == 0) for i, item in enumerate(data.test))
    novel_data = replace(data, test=test)
    result = fit(mp.CoOp(n_ctx=2), tiny_clip_backbone, novel_data, recipe=FAST)
    score = result.evaluate(test)
    novel = measure(result.predictor, novel_data)["learned"]["novel"]
    assert novel["n"] == (len(test) + 1) // 2
    assert novel["accuracy"] == score.correct[::2].mean()
