"""Prompts on the Hub, against a stand-in of its interface; and a Hub that is not there."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml
from huggingface_hub import constants, snapshot_download

import mmprompt as mp
from mmprompt.cli.main import main
from mmprompt.core.file import save
from mmprompt.core.hub import pull


@pytest.fixture
def pushed(hub, run_folder, capsys):
    assert main(["prompt", "push", str(run_folder), "ada/colours"]) == 0
    return hub.files["ada/colours"]


def test_what_is_pushed_is_pulled_and_predicts_the_same(
    hub, pushed, run_folder, tiny_open_clip_folder, pictures, capsys
):
    folder = run_folder.parent / "pulled"
    assert main(["prompt", "pull", "ada/colours", "--out", str(folder)]) == 0
    image = pictures / "red" / "0.png"
    expected = mp.load(run_folder).predict_proba(image)
    model = str(tiny_open_clip_folder)
    for again in (mp.load(folder, model), mp.from_pretrained("ada/colours", model), mp.from_pretrained(folder, model)):
        assert np.array_equal(again.predict_proba(image), expected)
    shutil.rmtree(folder)


def test_only_the_prompt_and_its_card_leave_the_machine(pushed, run_folder, tiny_open_clip_folder):
    assert set(pushed) == {"README.md", "prompt.json", "prompt.safetensors"}
    assert pushed["prompt.safetensors"] == (run_folder / "prompt.safetensors").read_bytes()
    told = b"".join(pushed.values())
    assert str(tiny_open_clip_folder.parent).encode() not in told
    assert json.loads(pushed["prompt.json"])["backbone"]["name"] == tiny_open_clip_folder.name


def test_folders_in_the_notes_on_the_data_do_not_leave_the_machine(hub, tiny_clip_backbone, tmp_path):
    classifier = mp.CoOp(n_ctx=2).build(tiny_clip_backbone, ["cat", "dog"])
    data = {"name": "pets", "root": "/home/ada/pets", "notes": ["Passed over 1 image that is not in /home/ada/pets."]}
    save(classifier, tmp_path / "run", {"data": data})
    mp.push_to_hub(tmp_path / "run", "ada/pets")
    pushed = hub.files["ada/pets"]
    assert b"/home/ada" not in b"".join(pushed.values())
    assert json.loads(pushed["prompt.json"])["training"]["data"] == {"name": "pets", "root": "pets"}


@pytest.mark.parametrize("start", ["/home/acme/run", "~/acme/run", "../acme/run", "acme/run"])
def test_of_the_folder_that_a_context_started_from_its_name_leaves_the_machine(
    start, hub, tiny_clip_backbone, tmp_path
):
    classifier = mp.CoOp(n_ctx=2).build(tiny_clip_backbone, ["cat", "dog"])
    starts = {"ctx_init": start, "tpt_init": start}
    training = {"method": {"name": "coop", "settings": starts}, "data": {"template": "a photo/drawing {}"}}
    save(classifier, tmp_path / "run", training)
    mp.push_to_hub(tmp_path / "run", "ada/pets")
    pushed = hub.files["ada/pets"]
    assert b"acme" not in b"".join(pushed.values())
    told = json.loads(pushed["prompt.json"])["training"]
    assert told["method"]["settings"] == {"ctx_init": "run", "tpt_init": "run"}
    assert told["data"] == {"template": "a photo/drawing {}"}


def test_words_that_a_context_started_from_are_pushed_whole(hub, tiny_clip_backbone, tmp_path):
    classifier = mp.CoOp(n_ctx=2).build(tiny_clip_backbone, ["cat", "dog"])
    training = {"method": {"name": "maple", "settings": {"ctx_init": "a photo/picture of a"}}}
    save(classifier, tmp_path / "run", training)
    mp.push_to_hub(tmp_path / "run", "ada/pets")
    told = json.loads(hub.files["ada/pets"]["prompt.json"])["training"]
    assert told["method"]["settings"] == {"ctx_init": "a photo/picture of a"}


def test_of_what_else_lies_in_a_repository_nothing_is_pulled(hub, pushed, tmp_path):
    pushed["onnx/model.onnx"] = pushed["notes.txt"] = b"more"
    snapshot_download("ada/colours")
    pull("ada/colours", tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"README.md", "prompt.json", "prompt.safetensors"}


def test_the_card_is_made_of_the_run(pushed, run_folder):
    _, head, body = pushed["README.md"].decode().split("---\n", 2)
    metrics = json.loads((run_folder / "metrics.json").read_text())
    said = yaml.safe_load(head)
    assert said["library_name"] == "mmprompt"
    assert said["pipeline_tag"] == "image-classification"
    assert {"mmprompt", "prompt-tuning", "coop"} <= set(said["tags"])
    (result,) = said["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == round(metrics["learned"]["accuracy"], 4)
    assert "license" not in said
    for name in ("zero_shot_name", "zero_shot_template", "learned"):
        assert f"{100 * metrics[name]['accuracy']:.1f} %" in body
    for fact in ("blue, green, red", "n_ctx 2", 'mp.from_pretrained("ada/colours")', "## Licence"):
        assert fact in body


def test_a_card_that_somebody_edited_stays(hub, pushed, run_folder):
    pushed["README.md"] = b"---\nlicense: mit\n---\nOurs."
    url = mp.push_to_hub(run_folder, "ada/colours")
    assert url.startswith(f"{hub.url}/ada/colours/commit/")
    assert hub.files["ada/colours"]["README.md"].endswith(b"Ours.")


def test_a_classifier_without_a_run_folder_is_pushed(hub, tiny_clip_backbone):
    classifier = mp.CoOp(n_ctx=2).build(tiny_clip_backbone, ["cat", "dog"])
    classifier.push_to_hub("ada/untrained", private=True)
    assert "ada/untrained" in hub.private
    again = mp.from_pretrained("ada/untrained", tiny_clip_backbone)
    assert again.class_names == ("cat", "dog")


WRONG = [
    (["push", "RUN", "somebody-else/colours"], "answered 403 (You are not allowed to write there). Log in"),
    (["push", "RUN", "no//name"], "repo_id is 'no//name', but a name of the Hub was expected. Write USER/NAME."),
    (["pull", "ada/nothing"], "ada/nothing: is not on http://127.0.0.1"),
    (["pull", "ada/empty"], "ada/empty: holds no prompt.json, so it is no prompt of mmprompt"),
    (["pull", "ada/empty", "--revision", "v9"], "ada/empty: has no such revision on http://127.0.0.1"),
]


@pytest.mark.parametrize(("words", "said"), WRONG)
def test_what_the_hub_refuses_is_one_line(hub, words, said, run_folder, tmp_path, capsys):
    hub.files["ada/empty"] = {"model.bin": b"0"}
    out = ["--out", str(tmp_path / "new")] if words[0] == "pull" else []
    assert main(["prompt", *(str(run_folder) if word == "RUN" else word for word in words), *out]) == 2
    refusal = capsys.readouterr().err.strip().splitlines()[-1]
    assert refusal.startswith("mmprompt: error: ")
    assert said in refusal
    assert not (tmp_path / "new").exists()


def test_a_token_that_is_not_there_is_one_line(hub, run_folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(mp.UserError, match=r"Log in with `hf auth login`"):
        mp.push_to_hub(run_folder, "ada/colours")


@pytest.mark.parametrize("verb", ["push", "pull"])
def test_a_hub_that_is_not_there_is_one_line(verb, hub, run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    words = {"push": [str(run_folder), "ada/colours"], "pull": ["ada/colours", "--out", str(tmp_path / "new")]}[verb]
    assert main(["prompt", verb, *words]) == 2
    (refusal,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmprompt: error")]
    assert "the Hub at http://127.0.0.1:9 cannot be reached" in refusal


def test_without_a_network_a_prompt_that_was_fetched_before_still_loads(pushed, tiny_clip_backbone, monkeypatch):
    mp.from_pretrained("ada/colours", tiny_clip_backbone)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert mp.from_pretrained("ada/colours", tiny_clip_backbone).class_names == ("blue", "green", "red")
