"""What an export promises: the same probabilities elsewhere, or a line that says why there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import mmprompt as mp
from mmprompt.classification.methods import METHODS
from mmprompt.cli.main import main
from mmprompt.core import heads
from mmprompt.core.learned import Learned, Prompt
from mmprompt.exports import graph
from mmprompt.exports.export import FORMS
from mmprompt.language.peft import load_peft
from mmprompt.models.sites import LM_INPUT
from mmprompt.training.problem import RunFailed
from tests import small_models
from tests.language.test_peft_lora import frozen_model

NAMES = ["cat", "dog", "red car"]
ELSEWHERE = """
import json, sys
import numpy as np, onnxruntime
sys.modules["torch"] = None
session = onnxruntime.InferenceSession(sys.argv[1])
said = session.get_modelmeta().custom_metadata_map
probabilities = session.run(["probabilities"], {"images": np.load(sys.argv[2])})[0]
assert "mmprompt" not in sys.modules
print(json.dumps({"names": json.loads(said["class_names"]), "rows": probabilities.tolist()}))
"""


SETTINGS = {"coop": {"n_ctx": 2}, "maple": {"n_ctx": 2, "depth": 2}}
HEADS = {
    "linear": lambda width: heads.Linear(3, width),
    "residual": lambda width: heads.Residual(3, width, 20.0, 0.0, 0.5),
    "text-and-means": lambda width: heads.TextAndMeans(3, width, 20.0, 0.0),
    "blend": lambda width: heads.Blend(3, width),
    "text-started": lambda width: heads.TextStarted(3, width, 20.0, 0.0),
    "feature-adapter": lambda width: heads.FeatureAdapter(width, 20.0, 0.0, 0.5),
}


def learned(method: str, backbone, seed: int = 3):
    """A classifier of a method, or with a head, with numbers in every learned part: a training's form without one."""
    name = "zero-shot" if method in HEADS else method
    classifier = METHODS[name](**SETTINGS.get(method, {})).build(backbone, NAMES)
    if method in HEADS:
        classifier.prompt.head = HEADS[method](backbone.embed_dim)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in classifier.prompt.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter)
    if method == "text-started":
        classifier.prompt.head.is_learned[1:] = True
    return classifier.requires_grad_(False).eval()


def pictures(backbone, n: int = 3) -> list[Image.Image]:
    """Pictures of the size that the image tower takes, which no transform has to change."""
    generator = np.random.default_rng(5)
    size = backbone.image_size
    return [Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(n)]


def as_input(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_clip_backbone):
    """Prompts in both towers, as ONNX: the classifier and the folder."""
    classifier = learned("maple", tiny_clip_backbone)
    return classifier, mp.export(classifier, "onnx", tmp_path_factory.mktemp("exports") / "maple")


def test_onnx_gives_the_same_probabilities_where_there_is_no_torch(exported, tmp_path):
    classifier, folder = exported
    images = pictures(classifier.backbone, 5)
    np.save(tmp_path / "images.npy", as_input(images))
    command = [sys.executable, "-c", ELSEWHERE, str(folder / "classifier.onnx"), str(tmp_path / "images.npy")]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert said["names"] == NAMES
    assert np.abs(np.array(said["rows"]) - classifier.predict_proba(images)).max() < 1e-4


def test_an_export_says_what_goes_in_and_what_comes_out(exported):
    facts = json.loads((exported[1] / "export.json").read_text())
    assert facts["class_names"] == NAMES
    assert facts["image_size"] == small_models.IMAGE
    assert facts["largest_difference"] < 1e-4
    assert "uint8" in facts["input"]["images"]


GRAPHS = [
    ("text-started", "tiny_clip_backbone"),
    ("clip-lora", "tiny_hf_clip_backbone"),
    ("vpt", "tiny_siglip_backbone"),
    ("vpt", "tiny_timm_backbone"),
]


@pytest.mark.parametrize(("method", "name"), GRAPHS)
def test_a_program_of_torch_gives_the_same_probabilities(method, name, request, tmp_path):
    backbone = request.getfixturevalue(name)
    classifier = learned(method, backbone)
    folder = mp.export(classifier, "pt2", tmp_path / "program")
    program = torch.export.load(folder / "classifier.pt2").module()
    images = pictures(backbone, 1)
    pixels = torch.from_numpy(as_input(images))
    expected = classifier(backbone.normalize(pixels / 255)).softmax(-1)
    assert (program(pixels) - expected).abs().max() < 1e-5


def test_the_text_tower_is_not_in_the_graph(exported):
    backbone = exported[0].backbone
    n_vision = sum(weight.numel() for weight in backbone.weights_of("vision").values())
    assert (exported[1] / "classifier.onnx").stat().st_size < 4 * n_vision + 120_000


def test_large_weights_lie_beside_the_file(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "LARGEST_FILE", 1000)
    folder = mp.export(exported[0], "onnx", tmp_path / "large")
    assert {"classifier.onnx", "classifier.onnx.data"} <= {path.name for path in folder.iterdir()}


def test_a_graph_that_differs_is_refused(exported):
    with pytest.raises(RunFailed, match=r"onnxruntime differs from the classifier by 0\.\d"):
        graph.compare(exported[0], lambda images: np.zeros((len(images), 3)), "onnxruntime")


@pytest.mark.parametrize("method", ["coop", "residual", "blend", "linear", "text-and-means"])
def test_class_weights_give_the_logits(method, tiny_clip_backbone, tmp_path):
    classifier = learned(method, tiny_clip_backbone)
    folder = mp.export(classifier, "npy", tmp_path / "weights")
    weights, facts = np.load(folder / "class_weights.npy"), json.loads((folder / "export.json").read_text())
    features = classifier.image_features(torch.randn(4, 3, 32, 32)).numpy()
    logits = facts["logit_scale"] * features @ weights.T + np.array(facts["bias"])
    assert np.abs(logits - classifier.outputs(torch.from_numpy(features)).logits.numpy()).max() < 1e-3


def test_open_clip_multiplies_with_its_zero_shot_classifier(tiny_open_clip_folder, tiny_clip_backbone, tmp_path):
    classifier = learned("coop", tiny_clip_backbone)
    folder = mp.export(classifier, "open_clip", tmp_path / "theirs")
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tiny_open_clip_folder}")
    weights = load_file(folder / "zero_shot_classifier.safetensors")["classifier"]
    image = pictures(tiny_clip_backbone, 1)[0]
    with torch.no_grad():
        features = model.eval().encode_image(preprocess(image)[None], normalize=True)
        probabilities = (model.logit_scale.exp() * features @ weights).softmax(-1)
    assert np.abs(probabilities.numpy() - classifier.predict_proba(image)).max() < 1e-4


REFUSED = [
    ("cocoop", "tiny_clip_backbone", "onnx", "made anew for each image"),
    ("cocoop", "tiny_clip_backbone", "npy", r"made anew for each image.*Serve it with this package"),
    ("tpt", "tiny_clip_backbone", "pt2", "learns anew on each image"),
    ("tpt", "tiny_clip_backbone", "npy", r"learns anew on each image.*Serve it with this package"),
    ("tpt", "tiny_clip_backbone", "open_clip", "learns anew on each image"),
    ("vpt", "tiny_clip_backbone", "npy", r"learned in the image tower, at vision\.input"),
    ("feature-adapter", "tiny_clip_backbone", "npy", r"\(feature-adapter\) are not linear"),
    ("coop", "tiny_hf_clip_backbone", "open_clip", "is no model of open_clip's"),
    ("linear", "tiny_clip_backbone", "open_clip", "a bias for each class"),
    ("coop", "tiny_clip_backbone", "peft", "this is a prompt for classification. Use `to=onnx`"),
    ("coop", "tiny_clip_backbone", "torchscript", "torch has replaced TorchScript"),
    ("coop", "tiny_clip_backbone", "onxx", "Did you mean 'onnx'"),
]


@pytest.mark.parametrize(("method", "name", "to", "said"), REFUSED)
def test_a_form_that_a_run_cannot_have_is_refused(method, name, to, said, request, tmp_path):
    classifier = learned(method, request.getfixturevalue(name))
    with pytest.raises(mp.UserError, match=said):
        mp.export(classifier, to, tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_an_export_never_replaces_anything_else(tiny_clip_backbone, tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(mp.UserError, match="holds something that is no export"):
        mp.export(learned("coop", tiny_clip_backbone), "npy", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("facts", [{"mine": 1}, {"form": "npy"}, {"form": ["npy"]}, ["npy"]])
def test_a_folder_with_anything_beside_an_export_is_no_export(facts, tiny_clip_backbone, tmp_path):
    classifier = learned("coop", tiny_clip_backbone)
    for name in ("export.json", "notes.txt"):
        (tmp_path / name).write_text(json.dumps(facts))
    with pytest.raises(mp.UserError, match="holds something that is no export"):
        mp.export(classifier, "npy", tmp_path)
    assert {path.read_text() for path in tmp_path.iterdir()} == {json.dumps(facts)}


@pytest.mark.parametrize("place", [".", "link", "dangling"])
def test_an_export_takes_no_link_and_not_the_folder_it_is_made_from(place, tiny_clip_backbone, tmp_path, monkeypatch):
    for name in ("here", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name, target in (("link", "other"), ("dangling", "nowhere")):
        (tmp_path / name).symlink_to(target)
    with pytest.raises(mp.UserError, match="Give a new folder"):
        mp.export(learned("coop", tiny_clip_backbone), "npy", tmp_path / place if place != "." else place)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["dangling", "here", "link", "other"]


def test_an_export_of_one_form_is_replaced_by_one_of_another(tiny_clip_backbone, tmp_path):
    classifier = learned("coop", tiny_clip_backbone)
    for to in ("npy", "open_clip", "npy"):
        folder = mp.export(classifier, to, tmp_path / "one")
        assert {path.name for path in folder.iterdir()} == {"export.json", *FORMS[to].files}


def test_a_run_in_memory_takes_no_other_model(tiny_clip_backbone, tmp_path):
    with pytest.raises(mp.UserError, match=r"model is 'tiny', but a run in memory has its own\. Leave it out\."):
        mp.export(learned("coop", tiny_clip_backbone), "npy", tmp_path / "new", model="tiny")
    assert not (tmp_path / "new").exists()


def test_a_missing_library_is_said_before_the_work(run_folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["export", str(run_folder), "--to", "onnx"]) == 2
    assert 'onnxscript, which is not installed. Run pip install "mmprompt[export]"' in capsys.readouterr().err


def test_the_command_writes_into_the_run_and_again_over_it(run_folder, capsys):
    for _ in range(2):
        assert main(["export", str(run_folder), "--to", "npy", "--json"]) == 0
    said = json.loads(capsys.readouterr().out.split("\n}\n")[0] + "\n}")
    assert Path(said["folder"]) == run_folder / "npy"
    assert set(said["files"]) == {"class_weights.npy", "export.json"}


TEMPLATES = [("{soft}{bos}{text}{answer}", "PROMPT_TUNING"), ("{bos}{soft}{text}{answer}", "PREFIX_TUNING")]


@pytest.mark.parametrize(("template", "form"), TEMPLATES)
def test_peft_reads_the_prompt_of_a_language_model(template, form, tmp_path):
    model = frozen_model("llama", torch.float32)
    prompt = Prompt(mp.Template.parse(template).with_soft(2), Learned(LM_INPUT, torch.randn(2, model.width)))
    prompted = mp.LanguagePredictor(model, prompt.requires_grad_(False))
    folder = mp.export(prompted, "peft", tmp_path / "peft")
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == form
    assert {path.name for path in folder.iterdir()} <= {"export.json", *FORMS["peft"].files}
    assert load_peft(folder, model).prompt.sites == prompted.prompt.sites or form == "PREFIX_TUNING"
    with pytest.raises(mp.UserError, match=r"this is a prompt for language\. Use `to=peft`"):
        mp.export(prompted, "onnx", tmp_path / "none")


def test_every_form_is_in_the_help(capsys):
    assert main(["export", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in FORMS)
