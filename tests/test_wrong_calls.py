"""Wrong calls of the public functions: one line that names what was wrong, and no trace of our insides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmprompt as mp
from mmprompt.errors import UserError
from tests.language_models import frozen_model


@dataclass(frozen=True)
class Given:
    """What is right, for calls of which one argument is wrong."""

    backbone: Any
    data: mp.classification.Dataset
    classifier: mp.Classifier
    captioner: mp.Captioner
    captions: mp.captioning.CaptionData
    lm: Any
    texts: mp.language.TextData
    prompted: mp.LanguagePredictor
    labelled: mp.LanguagePredictor
    image: Path
    folder: Path


@pytest.fixture(scope="module")
def given(tiny_clip_backbone, picture_folder, tmp_path_factory) -> Given:
    data = mp.ImageFolder(picture_folder, shots=2)
    lm, tiny = frozen_model("llama"), mp.load_captioner("tiny", device="cpu")
    rows = (mp.language.TextRow({"text": "a red car"}, "good"), mp.language.TextRow({"text": "a sad cat"}, "bad"))
    words = mp.Verbalizer({"good": "red", "bad": "sad"})
    return Given(
        tiny_clip_backbone,
        data,
        mp.zero_shot(tiny_clip_backbone, data.class_names),
        mp.Captioner(tiny),
        mp.load_captions("openart-scenes"),
        lm,
        mp.language.TextData("rows", rows, rows, rows, ("bad", "good")),
        mp.LanguagePredictor(lm, mp.HardPrompt().prompt(lm, mp.Start(None, mp.Template.parse("{text} is {answer}")))),
        mp.LanguagePredictor(
            lm, mp.HardPrompt().prompt(lm, mp.Start(None, mp.Template.parse("{text} {answer}"))), words
        ),
        data.test[0].path,
        tmp_path_factory.mktemp("wrong"),
    )


def quick(given: Given, method: Any, **more: Any) -> Any:
    return mp.fit(method, given.backbone, given.data, **({"epochs": 1, "progress": False} | more))


def labelled(given: Given, **wrong: Any) -> Any:
    right = {"class_names": ["cat", "dog"], "images": [given.image] * 2, "labels": [0, 1]}
    return mp.classification.ClassificationTask("pets", **right | wrong)


CALLS: dict[str, Callable[[Given], Any]] = {
    "load_backbone(3)": lambda g: mp.load_backbone(3),
    "load_backbone(None)": lambda g: mp.load_backbone(None),
    "load_backbone(Path)": lambda g: mp.load_backbone(g.folder),
    "load_backbone('tinny')": lambda g: mp.load_backbone("tinny"),
    "load_backbone(device=3)": lambda g: mp.load_backbone("tiny", device=3),
    "load_backbone(dtype=torch)": lambda g: mp.load_backbone("tiny", device="cpu", dtype=np.float32),
    "load_backbone('aaa...')": lambda g: mp.load_backbone("a" * 300),
    "load_captioner(3)": lambda g: mp.load_captioner(3),
    "load_captioner('tinny')": lambda g: mp.load_captioner("tinny"),
    "load_language_model(3)": lambda g: mp.load_language_model(3),
    "load_language_model('tinny')": lambda g: mp.load_language_model("tinny"),
    "load_dataset(None)": lambda g: mp.load_dataset(None),
    "load_dataset('openart-lef')": lambda g: mp.load_dataset("openart-lef"),
    "load_dataset(shots='x')": lambda g: mp.load_dataset("openart-left", shots="x"),
    "load_dataset(shots=0)": lambda g: mp.load_dataset("openart-left", shots=0),
    "load_dataset(seed=None)": lambda g: mp.load_dataset("openart-left", seed=None),
    "load_dataset(protocol='cop')": lambda g: mp.load_dataset("openart-left", protocol="cop"),
    "list_datasets(3)": lambda g: mp.list_datasets(3),
    "ImageFolder(7)": lambda g: mp.ImageFolder(7),
    "ImageFolder(None)": lambda g: mp.ImageFolder(None),
    "ImageFolder('aaa...')": lambda g: mp.ImageFolder("a" * 5000),
    "ImageFolder(nowhere)": lambda g: mp.ImageFolder("nowhere"),
    "ImageFolder(shots='2')": lambda g: mp.ImageFolder(g.image.parents[1], shots="2"),
    "ImageFolder(shots=1.5)": lambda g: mp.ImageFolder(g.image.parents[1], shots=1.5),
    "ImageFolder(template=3)": lambda g: mp.ImageFolder(g.image.parents[1], template=3),
    "ImageFolder(augment='cop')": lambda g: mp.ImageFolder(g.image.parents[1], augment="cop"),
    "ImageTable(3)": lambda g: mp.ImageTable(3),
    "load_captions(3)": lambda g: mp.load_captions(3),
    "load_captions('openart-scene')": lambda g: mp.load_captions("openart-scene"),
    "captions.focus(3)": lambda g: g.captions.focus(3),
    "captions.focus('emotion')": lambda g: g.captions.focus("emotion"),
    "load_texts(4)": lambda g: mp.load_texts(4),
    "load_texts('nosuch')": lambda g: mp.load_texts("nosuch"),
    "sample_shots(shots='4')": lambda g: mp.language.sample_shots(g.texts, "4", 1),
    "sample_shots(3)": lambda g: mp.language.sample_shots(3, 4, 1),
    "texts.rows('tset')": lambda g: g.texts.rows("tset"),
    "CoOp('4')": lambda g: mp.CoOp("4"),
    "CoOp(n_ctx=2.5)": lambda g: mp.CoOp(n_ctx=2.5),
    "CoOp(n_ctx=True)": lambda g: mp.CoOp(n_ctx=True),
    "CoOp(ctx_init=3)": lambda g: mp.CoOp(ctx_init=3),
    "CoOp(class_position='left')": lambda g: mp.CoOp(class_position="left"),
    "CoOp(class_specific='yes')": lambda g: mp.CoOp(class_specific="yes"),
    "VPT(depth='x')": lambda g: mp.VPT(depth="x"),
    "VPT(n_visual=10**6)": lambda g: mp.VPT(n_visual=10**6),
    "PromptTuning('8')": lambda g: mp.PromptTuning("8"),
    "PrefixTuning(reparametrise='no')": lambda g: mp.PrefixTuning(reparametrise="no"),
    "PTuning(encoder='gru')": lambda g: mp.PTuning(encoder="gru"),
    "HardPrompt(3)": lambda g: mp.HardPrompt(3),
    "LinearProbe('x')": lambda g: mp.LinearProbe("x"),
    "ZeroShot(3)": lambda g: mp.classification.ZeroShot(3),
    "CoOp().build(3)": lambda g: mp.CoOp().build(3, ["cat", "dog"]),
    "CoOp().build('tiny', 'cat')": lambda g: mp.CoOp().build(g.backbone, "cat"),
    "CoOp().build('tiny', [1])": lambda g: mp.CoOp().build(g.backbone, [1, 2]),
    "CoOp().build(seed='x')": lambda g: mp.CoOp().build(g.backbone, ["cat", "dog"], seed="x"),
    "CoOp().build(seed=2**70)": lambda g: mp.CoOp().build(g.backbone, ["cat", "dog"], seed=2**70),
    "Combination(())": lambda g: quick(g, mp.classification.Combination(())),
    "ClassificationTask(images=5)": lambda g: labelled(g, images=5),
    "ClassificationTask(labels=5)": lambda g: labelled(g, labels=5),
    "ClassificationTask(labels=names)": lambda g: labelled(g, labels=["cat", "dog"]),
    "ClassificationTask(labels=[0.5, 1])": lambda g: labelled(g, labels=[0.5, 1]),
    "ClassificationTask(labels=array of floats)": lambda g: labelled(g, labels=np.array([0.0, 1.0])),
    "ClassificationTask(labels=hot rows)": lambda g: labelled(g, labels=np.eye(2, dtype=int)),
    "ClassificationTask(labels=[0, 2])": lambda g: labelled(g, labels=[0, 2]),
    "ClassificationTask(features=5)": lambda g: labelled(g, features=5),
    "Recipe(lr='x')": lambda g: mp.Recipe(lr="x"),
    "Recipe(optimizer=3)": lambda g: mp.Recipe(optimizer=3),
    "Recipe(epochs='3')": lambda g: mp.Recipe(epochs="3"),
    "EarlyStopping('x')": lambda g: mp.EarlyStopping("x"),
    "EarlyStopping(0)": lambda g: mp.EarlyStopping(0),
    "EarlyStopping(3, min_delta=2)": lambda g: mp.EarlyStopping(3, min_delta=2),
    "ProgressBar(console=5)": lambda g: mp.ProgressBar(console=5),
    "fit('cop')": lambda g: quick(g, "cop"),
    "fit(3)": lambda g: quick(g, 3),
    "fit(CoOp)": lambda g: quick(g, mp.CoOp),
    "fit(CoOp(), 3)": lambda g: mp.fit(mp.CoOp(), 3, g.data),
    "fit(CoOp(), data, backbone)": lambda g: mp.fit(mp.CoOp(), g.data, g.backbone),
    "fit(CoOp(), a captioner's model)": lambda g: mp.fit(mp.CoOp(), g.captioner.backbone, g.data),
    "fit(CoOp(), a language model)": lambda g: mp.fit(mp.CoOp(), g.lm, g.data),
    "fit(PromptTuning(), a classifier's data)": lambda g: quick(g, mp.PromptTuning()),
    "fit(CoOp(), texts)": lambda g: mp.fit(mp.CoOp(), g.lm, g.texts),
    "fit(MultitaskPrompt(), captions)": lambda g: mp.fit(
        mp.language.MultitaskPrompt(), g.captioner.backbone, g.captions.focus("emotions")
    ),
    "fit(data=5)": lambda g: mp.fit(mp.CoOp(), "tiny", 5),
    "fit(data='openart-lef')": lambda g: mp.fit(mp.CoOp(), "tiny", "openart-lef"),
    "fit(data=captions)": lambda g: mp.fit(mp.PromptTuning(), "tiny", g.captions),
    "fit(out=3)": lambda g: quick(g, mp.CoOp(), out=3),
    "fit(recipe={'lr': 1})": lambda g: quick(g, mp.CoOp(), recipe={"lr": 1}),
    "fit(seed='1')": lambda g: quick(g, mp.CoOp(), seed="1"),
    "fit(callbacks=one)": lambda g: quick(g, mp.CoOp(), callbacks=mp.EarlyStopping(1)),
    "fit(callbacks=[3])": lambda g: quick(g, mp.CoOp(2), callbacks=[3]),
    "fit(resume='yes')": lambda g: quick(g, mp.CoOp(), resume="yes"),
    "fit(lrr=1)": lambda g: quick(g, mp.CoOp(), lrr=1),
    "fit(epochs='3')": lambda g: quick(g, mp.CoOp(), epochs="3"),
    "predict(3)": lambda g: g.classifier.predict(3),
    "predict(None)": lambda g: g.classifier.predict(None),
    "predict(nowhere)": lambda g: g.classifier.predict("nowhere.jpg"),
    "predict([3])": lambda g: g.classifier.predict([3]),
    "predict([None])": lambda g: g.classifier.predict([None]),
    "predict_proba({})": lambda g: g.classifier.predict_proba(object()),
    "with_class_names('cat')": lambda g: g.classifier.with_class_names("cat"),
    "with_class_names(None)": lambda g: g.classifier.with_class_names(None),
    "with_class_names(5) of a head": lambda g: (
        mp.classification.methods.TwoStage().build(g.backbone, ["cat", "dog"]).with_class_names(5)
    ),
    "with_class_names([1])": lambda g: g.classifier.with_class_names([1, 2]),
    "zero_shot(backbone, None)": lambda g: mp.zero_shot(g.backbone, None),
    "zero_shot('tiny', names)": lambda g: mp.zero_shot(3, ["cat", "dog"]),
    "zero_shot(template=3)": lambda g: mp.zero_shot(g.backbone, ["cat", "dog"], 3),
    "zero_shot(template='photo')": lambda g: mp.zero_shot(g.backbone, ["cat", "dog"], "photo"),
    "evaluate(3, data)": lambda g: mp.evaluate(3, g.data),
    "evaluate(classifier, 3)": lambda g: mp.evaluate(g.classifier, 3),
    "evaluate(classifier, [])": lambda g: mp.evaluate(g.classifier, []),
    "evaluate(classifier, [path])": lambda g: mp.evaluate(g.classifier, [str(g.image)]),
    "evaluate(classifier, split='tset')": lambda g: mp.evaluate(g.classifier, g.data, "tset"),
    "evaluate(classifier, texts)": lambda g: mp.evaluate(g.classifier, g.texts),
    "evaluate(classifier, labels beyond)": lambda g: mp.evaluate(
        g.classifier.with_class_names(["a", "b"]), g.data.test
    ),
    "evaluate(captioner, data)": lambda g: mp.evaluate(g.captioner, g.data),
    "evaluate(language, data)": lambda g: mp.evaluate(g.labelled, g.data),
    "evaluate(language, ['a text'])": lambda g: mp.evaluate(g.labelled, ["a text"]),
    "load(3)": lambda g: mp.load(3),
    "load('nosuch')": lambda g: mp.load("nosuch"),
    "load(folder without)": lambda g: mp.load(g.folder),
    "save(None)": lambda g: mp.save(None, g.folder / "run"),
    "save(backbone)": lambda g: mp.save(g.backbone, g.folder / "run"),
    "save(folder=3)": lambda g: mp.save(g.classifier, 3),
    "save(swapped)": lambda g: mp.save(g.folder / "run", g.classifier),
    "explain(5)": lambda g: mp.explain(5),
    "explain(classifier, 5)": lambda g: mp.explain(g.classifier, 5),
    "explain(classifier, texts)": lambda g: mp.explain(g.classifier, g.texts),
    "explain(classifier, model=)": lambda g: mp.explain(g.classifier, g.data, model="tiny"),
    "explain(classifier, device=)": lambda g: mp.explain(g.classifier, g.data, device="cpu"),
    "Captioner(3)": lambda g: mp.Captioner(3).caption([g.image]),
    "caption(3)": lambda g: g.captioner.caption(3),
    "caption(guidance=3)": lambda g: g.captioner.caption([g.image], guidance=3),
    "caption(decoding={})": lambda g: g.captioner.caption([g.image], decoding={"n_beams": 3}),
    "predict captions(None)": lambda g: g.captioner.predict(None),
    "Decoding(n_beams='3')": lambda g: mp.captioning.Decoding(n_beams="3"),
    "Guidance(strength='x')": lambda g: mp.captioning.Guidance(strength="x"),
    "Guidance(prompts=prompt)": lambda g: mp.captioning.Guidance(g.labelled.prompt),
    "hard_prompt(words=3)": lambda g: mp.captioning.hard_prompt(g.captioner.backbone, "emotions", 3),
    "load_focus(3)": lambda g: mp.captioning.load_focus(3, g.captioner.backbone),
    "measure_captions(prompts=3)": lambda g: mp.captioning.measure_captions(g.captioner.backbone, g.captions, 3),
    "Generation(max_tokens='8')": lambda g: mp.language.Generation(max_tokens="8"),
    "Template.parse(3)": lambda g: mp.Template.parse(3),
    "Template.parse('{')": lambda g: mp.Template.parse("{"),
    "Verbalizer([])": lambda g: mp.Verbalizer([]),
    "Verbalizer({})": lambda g: mp.Verbalizer({}),
    "Verbalizer({'a': 1})": lambda g: mp.Verbalizer({"a": 1, "b": 2}),
    "LanguagePredictor(3)": lambda g: mp.LanguagePredictor(3, g.labelled.prompt),
    "LanguagePredictor(prompt=3)": lambda g: mp.LanguagePredictor(g.lm, 3),
    "answer(3)": lambda g: g.labelled.predict(3),
    "answer([3])": lambda g: g.labelled.predict([3]),
    "answer(other field)": lambda g: g.labelled.predict({"txt": "a"}),
    "generate_texts(settings={})": lambda g: mp.language.generate_texts(g.prompted, g.texts.test, {"n": 1}),
    "generate_texts(rows='a')": lambda g: mp.language.generate_texts(g.prompted, "a"),
    "stream_text(row='a')": lambda g: list(mp.language.stream_text(g.prompted, "a")),
    "texts.task(objectve=...)": lambda g: g.texts.task(objective="choice"),
    "texts.task(template=3)": lambda g: g.texts.task(template=3),
    "load_peft(3)": lambda g: mp.language.load_peft(3, g.lm),
    "read_openprompt(5)": lambda g: mp.language.read_openprompt(5),
    "read_promptsource(3)": lambda g: mp.language.read_promptsource(3),
    "search_words(5)": lambda g: mp.language.search_words(5, g.lm),
    "meta_init(model=5)": lambda g: mp.language.meta_init([g.texts, g.texts], 5),
    "PromptInit('word')": lambda g: mp.language.PromptInit("word"),
    "paired_bootstrap(lists)": lambda g: mp.classification.paired_bootstrap([[1, 0]], [[0, 0]]),
    "paired_bootstrap(one axis)": lambda g: mp.classification.paired_bootstrap(np.ones(3), np.ones(3)),
    "paired_bootstrap(other shapes)": lambda g: mp.classification.paired_bootstrap(np.ones((1, 3)), np.ones((1, 4))),
    "paired_bootstrap(nothing)": lambda g: mp.classification.paired_bootstrap(np.ones((1, 0)), np.ones((1, 0))),
    "nearest_words(k='x')": lambda g: mp.classification.nearest_words(g.backbone, torch.zeros(1, 32), "x"),
    "write_report(3)": lambda g: mp.classification.write_report(3),
    "read_image(3)": lambda g: mp.classification.read_image(3),
    "PromptClassifier lengths": lambda g: mp.PromptClassifier(g.backbone).fit([g.image, g.image], ["a"]),
    "PromptClassifier one class": lambda g: mp.PromptClassifier(g.backbone).fit([g.image, g.image], ["a", "a"]),
    "PromptClassifier y=None": lambda g: mp.PromptClassifier(g.backbone).fit([g.image, g.image], None),
    "PromptClassifier X=3": lambda g: mp.PromptClassifier(g.backbone).fit(3, ["a"]),
    "PromptClassifier method": lambda g: mp.PromptClassifier(g.backbone, method=3).fit([g.image] * 2, ["a", "b"]),
}


SIGNATURES: dict[str, Callable[[], Any]] = {
    "CoOp(nctx=4)": lambda: mp.CoOp(nctx=4),
    "CoOp() + 3": lambda: mp.CoOp() + 3,
    "load_backbone(nam='tiny')": lambda: mp.load_backbone(nam="tiny"),
    "load_texts()": lambda: mp.load_texts(),
    "fit()": lambda: mp.fit(),
    "Recipe(lrr=1)": lambda: mp.Recipe(lrr=1),
    "save(one)": lambda: mp.save(1),
}


@pytest.mark.parametrize("call", SIGNATURES)
def test_which_arguments_there_are_python_says_itself(call: str) -> None:
    with pytest.raises(TypeError):
        SIGNATURES[call]()


@pytest.mark.usefixtures("feature_store")
@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_call_is_one_line(call: str, given: Given) -> None:
    with pytest.raises(UserError) as caught:
        CALLS[call](given)
    assert "\n" not in str(caught.value)
    assert "object at 0x" not in str(caught.value)
