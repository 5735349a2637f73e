"""`mmprompt caption` on the embedded default: a focus in seconds, captions of a folder, and a measure of all of it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mmprompt.captioning.cli.train import read_train
from mmprompt.captioning.data import load_captions
from mmprompt.cli.main import main

pytestmark = pytest.mark.usefixtures("blank_figures")
FOCUSES = ("objects", "emotions", "actions")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of the embedded scenes as a file of one's own: 24 to learn from, 6 to choose by, 8 to measure on."""
    data = load_captions("openart-scenes")
    folder = tmp_path_factory.mktemp("scenes")
    lines = []
    for part, n in ((data.train, 24), (data.val, 6), (data.test, 8)):
        for item in part[:n]:
            name = item.image_id.replace("/", "-") + ".png"
            shutil.copyfile(item.image, folder / name)
            lines += [
                json.dumps({"image": name, "captions": list(item.of(focus)), "focus": focus, "split": item.split})
                for focus in FOCUSES
            ]
    (folder / "scenes.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "scenes.lexicon.json").write_text(json.dumps(data.lexicon))
    return folder


@pytest.fixture(scope="module")
def runs(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for focus in ("objects", "emotions"):
        words = ["caption", "train", "--data", str(scenes / "scenes.jsonl"), "--focus", focus, "--batch-size", "8"]
        assert main([*words, "--method", "prompt-tuning", "--out", str(folder / focus), "--device", "cpu"]) == 0
    return folder


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_training_says_what_changed_and_what_to_do_next(scenes, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["caption", "train", "--data", str(scenes / "scenes.jsonl"), "--focus", "actions", "--out", str(out)]
    assert main([*words, "--method", "prompt-tuning", "--epochs", "1", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "The weights of tiny are what they were before." in said
    assert f"mmprompt caption write IMAGES --prompt {out}" in said
    assert (out / "prompt.safetensors").stat().st_size < 10_000


def test_the_method_for_data_of_ones_own_is_chosen_on_held_out_captions(scenes, tmp_path, capsys):
    words = ["caption", "train", "--data", str(scenes / "scenes.jsonl"), "--focus", "actions", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "run"), "--epochs", "1"]) == 0
    said = capsys.readouterr().out
    (line,) = re.findall(r"Mean probability of a token of the captions of \d+ held-out images: (.*)\.\n", said)
    found = {name: int(share) for name, share in re.findall(r"([a-z][a-z+ -]+) (\d+) %", line)}
    bare = found.pop("no prompt")
    assert set(found) == {"prompt-tuning", "prefix-tuning", "prompt-tuning+prefix-tuning", "lora"}
    assert max(found.values()) > bare
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert found[run["method"]["name"]] == max(found.values())
    assert run["recipe"]["epochs"] == 1


def test_a_token_file_with_half_of_its_images_is_learned_from(scenes, tmp_path, capsys):
    names = [path.name for path in sorted(scenes.glob("train-*.png"))[:8]]
    lines = [f"{name}#0\tsomebody dancing." for name in names] + [f"gone-{name}#0\ta rose." for name in names]
    (tmp_path / "tokens.txt").write_text("\n".join(lines) + "\n")
    words = ["caption", "train", "--data", str(tmp_path / "tokens.txt"), "--images", str(scenes), "--focus", ""]
    words += ["--method", "prompt-tuning", "--epochs", "1", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--skip-missing" in error
    assert not (tmp_path / "run").exists()
    assert main([*words, "--skip-missing"]) == 0
    assert "Passed over 8 captions of 8 images that are not in" in capsys.readouterr().out


@pytest.fixture(scope="module")
def neutral(scenes: Path) -> Path:
    """The scenes with several captions of no focus each, one image gone."""
    rows = {}
    for row in rows_of(scenes / "scenes.jsonl"):
        rows.setdefault(row["image"], row | {"captions": [], "focus": ""})["captions"] += row["captions"][:1]
    gone = {"image": "gone.png", "captions": ["a rose."], "split": "train"}
    path = scenes.parent / f"{scenes.name}-neutral.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows.values(), gone])) + "\n")
    return path


def test_what_is_to_be_done_next_finds_the_same_captions_and_a_chosen_focus_is_judged_by_a_lexicon(
    scenes, neutral, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = ["caption", "train", "--data", str(neutral), "--images", str(scenes), "--skip-missing", "--choose"]
    words += ["--focus", "actions", "--out", "run", "--method", "prompt-tuning", "--epochs", "1", "--device", "cpu"]
    assert main(words) == 0
    (line,) = re.findall("mmprompt (caption eval .*)\n", capsys.readouterr().out)
    assert main([*shlex.split(line), "--max-tokens", "4", "--device", "cpu"]) == 0
    assert "judged by the lexicon of everyday words" in capsys.readouterr().out
    assert main(["explain", "run", "--device", "cpu"]) == 0
    assert "A token of the captions of actions costs" in capsys.readouterr().out


def test_captions_of_no_focus_are_learned_in_a_folder_of_their_own(scenes, neutral, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["caption", "train", "--data", str(neutral), "--images", str(scenes), "--skip-missing", "--focus", ""]
    assert main([*words, "--method", "prompt-tuning", "--epochs", "1", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "The prompt is in runs/neutral." in said
    assert re.search("image +without a prompt +neutral\n", said)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["neutral"]


def test_a_setting_that_was_typed_holds_for_every_method_also_where_it_is_the_default_of_one(tmp_path):
    words = ["--data", "my.jsonl", "--focus", "mood"]
    assert read_train([*words, "--lr", "0.1"], "train")[1].given == {"lr": 0.1}
    (tmp_path / "settings.yaml").write_text("lr: 0.1\n")
    assert read_train([*words, "--config", str(tmp_path / "settings.yaml")], "train")[1].given == {"lr": 0.1}
    assert read_train(words, "train")[1].given == {}


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--mapper", "linear"], "mapper is linear, but prompt-tuning learns no mapper. Add --method mapper, or leave"),
        (["--n-prefix", "4"], "n_prefix is 4, but prompt-tuning learns no mapper. Add --method mapper, or leave --n-p"),
    ],
)
def test_options_of_a_mapper_are_refused_where_none_is_learned(option, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["caption", "train", *option]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--focus", "moods"], "focus is moods, but a mapper is learned before any focus. Use --method mapper+prompt-"),
        (["--choose"], "choose is True, but a mapper is learned before any focus. Use"),
        (["--n-soft", "4"], "there is no option --n-soft"),
    ],
)
def test_options_of_a_prompt_are_refused_where_a_mapper_alone_is_learned(option, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["caption", "train", "--method", "mapper", *option]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_focus_is_written_for_a_folder_with_a_broken_picture(scenes, runs, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted(scenes.glob("test-*.png"))[:4]:
        shutil.copyfile(path, images / path.name)
    (images / "a-broken.png").write_text("no image")
    out = tmp_path / "captions.jsonl"
    words = [
        "caption",
        "write",
        str(images),
        "--prompt",
        str(runs / "emotions"),
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    assert main(words) == 0
    rows = rows_of(out)
    assert len(rows) == 5
    assert "is not an image" in rows[0]["error"]
    emotions = load_captions("openart-scenes").lexicon["emotions"]
    assert all(any(word in row["caption"] for word in emotions) for row in rows[1:])
    assert "5 rows" in capsys.readouterr().out
    before = out.read_bytes()
    assert main(words) == 0  # nothing left to do
    assert out.read_bytes() == before
    assert main([*words, "--strength", "2"]) == 2
    assert "holds captions of other settings" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_a_mix_names_both_and_what_is_avoided_is_not_named(scenes, runs, capsys):
    lexicon = load_captions("openart-scenes").lexicon
    both = [str(runs / "emotions"), str(runs / "objects")]
    words = ["caption", "write", str(scenes), "--device", "cpu", "--json"]

    def share_naming(focus: str, *options: str) -> float:
        assert main([*words, *options]) == 0
        said = [row["caption"] for row in json.loads(capsys.readouterr().out)["captions"]]
        return sum(any(form in text for form in lexicon[focus]) for text in said) / len(said)

    assert share_naming("emotions", "--prompt", *both) >= 0.6
    assert share_naming("objects", "--prompt", *both, "--weights", "3", "3") >= 0.6
    assert share_naming("emotions") > 0.9
    assert share_naming("emotions", "--avoid", both[0]) < 0.1
    assert share_naming("objects", "--avoid", both[0]) > 0.9


def test_words_and_strength_0_are_baselines_of_their_own(scenes, runs, capsys):
    image = str(sorted(scenes.glob("test-*.png"))[0])
    words = ["caption", "write", image, "--device", "cpu", "--json"]
    said = []
    for more in ([], ["--prompt", str(runs / "emotions"), "--strength", "0"], ["--words", "the feelings are"]):
        assert main([*words, *more]) == 0
        said.append(json.loads(capsys.readouterr().out)["captions"][0]["caption"])
    assert said[0] == said[1]


def test_measuring_shows_every_speaker_and_writes_a_report(scenes, runs, tmp_path, capsys):
    prompts = [str(runs / focus) for focus in ("objects", "emotions")]
    words = ["caption", "eval", "--data", str(scenes / "scenes.jsonl"), "--prompts", *prompts, "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "report"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = [speaker["name"] for speaker in found["speakers"]]
    assert names == ["no prompt", "words: objects", "objects", "words: emotions", "emotions"]
    rows = dict(zip(found["confusion"]["prompts"], found["confusion"]["adherence"], strict=True))
    column = found["confusion"]["focuses"].index("emotions")
    assert rows["emotions"][column] > rows["no prompt"][column] + 0.3
    assert [point["strength"] for point in found["strengths"]["objects"]] == [0.0, 0.5, 1.0, 1.5, 2.0, 3.0]
    assert (tmp_path / "report" / "metrics.json").is_file()


def test_a_focus_of_ones_own_is_measured_by_a_classifier_or_by_a_word_list(scenes, runs, tmp_path, capsys):
    own = tmp_path / "own.jsonl"
    rows = [row | {"focus": "my moods"} for row in rows_of(scenes / "scenes.jsonl") if row["focus"] == "emotions"]
    own.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    run = tmp_path / "moods"
    words = ["--data", str(own), "--images", str(scenes), "--device", "cpu"]
    method = ["--method", "prompt-tuning", "--epochs", "8"]
    assert main(["caption", "train", *words, *method, "--focus", "my moods", "--out", str(run)]) == 0
    capsys.readouterr()
    words = ["caption", "eval", *words, "--prompts", str(run)]
    assert main([*words, "--out", str(tmp_path / "report")]) == 0
    said = capsys.readouterr().out
    assert "8 images, judged by the classifier" in said
    assert "nats a token of the references" in said
    assert "told by a classifier of words and pairs of words" in said
    assert "nats a token of the references" in (tmp_path / "report" / "report.html").read_text()
    lexicon = tmp_path / "words.json"
    lexicon.write_text(json.dumps({"my moods": list(load_captions("openart-scenes").lexicon["emotions"])}))
    assert main([*words, "--lexicon", str(lexicon), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["judge"] == "lexicon of own"
    column = found["confusion"]["focuses"].index("my moods")
    assert found["confusion"]["adherence"][-1][column] > 0.5


def test_what_a_measure_would_pass_over_is_refused(scenes, runs, tmp_path, capsys):
    words = ["caption", "eval", "--data", str(scenes / "scenes.jsonl"), "--prompts", str(runs / "emotions")]
    lexicon = tmp_path / "words.json"
    lexicon.write_text(json.dumps({"emotion": ["joy"]}))
    assert main([*words, "--lexicon", str(lexicon)]) == 2
    assert "words.json: has no words of 'emotions'. Add them." in capsys.readouterr().err
    assert main([*words, "--n-beams", "2", "--n-best", "2"]) == 2
    assert "n_best is 2, but one caption an image is measured. Leave --n-best out." in capsys.readouterr().err


def test_the_tables_have_people_beside_every_number_of_a_focus(scenes, runs, capsys):
    words = ["caption", "eval", "--data", str(scenes / "scenes.jsonl"), "--prompts", str(runs / "emotions")]
    assert main([*words, "--max-tokens", "4", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(line for line in lines if line.startswith("focus "))
    assert header.split()[:4] == ["focus", "measure", "learned", "people"]
    rows = [line for line in lines if line.startswith("emotions  ")]
    for measure in ("adherence", "grounded precision", "recall", "items a caption", "words a caption", "distinct"):
        (row,) = (row for row in rows if measure in row)
        assert row[header.index("people") - 2 : header.index("people") + 6].strip() not in ("", "-")


def test_without_pictures_drawn_scenes_are_captioned(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["caption", "write", "--device", "cpu", "--json"]) == 0
    shown = capsys.readouterr()
    assert "No images were given: these are the first 8 test scenes of openart-scenes." in shown.err
    rows = json.loads(shown.out)["captions"]
    assert [row["image"] for row in rows] == [f"test/{place:04d}" for place in range(8)]
    assert all(row["caption"] for row in rows)
    assert not list(tmp_path.iterdir())


def few_scenes(*place):
    """The embedded scenes, few enough to learn from in seconds."""
    data = load_captions(*place)
    return replace(data, items=(*data.train[:24], *data.val[:6], *data.test[:6]))


def test_without_prompts_those_that_are_missing_are_learned_first(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmprompt.captioning.cli.eval.load_captions", few_scenes)
    shutil.copytree(runs, tmp_path / "runs")
    before = (tmp_path / "runs" / "objects" / "prompt.safetensors").read_bytes()
    words = ["caption", "eval", "--split", "val", "--max-tokens", "4", "--device", "cpu", "--json"]
    assert main(words) == 0
    shown = capsys.readouterr()
    said = [line for line in shown.err.splitlines() if "holds no prompt" in line]
    assert said == ["runs/actions holds no prompt: learning one, as `mmprompt caption train --focus actions` does."]
    assert set(json.loads(shown.out)["lifts"]) == set(FOCUSES)
    assert (tmp_path / "runs" / "actions" / "prompt.safetensors").is_file()
    assert (tmp_path / "runs" / "objects" / "prompt.safetensors").read_bytes() == before


def test_a_prompt_of_another_focus_in_the_way_is_refused_before_any_is_learned(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs / "emotions", tmp_path / "runs" / "objects")
    assert main(["caption", "eval", "--device", "cpu"]) == 2
    assert "runs/objects: is a prompt for emotions, not for objects. Name the" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["objects"]


def test_a_file_where_prompts_are_to_lie_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("")
    assert main(["caption", "eval", "--out", "elsewhere", "--device", "cpu"]) == 2
    assert "runs: is a file, so runs/actions cannot be a folder. Give another --prompts." in capsys.readouterr().err
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval", "--prompts"], "prompts is empty, but one or more run folders are needed after it. Write"),
        (["eval", "--data", "my.jsonl"], "one or more run folders are needed for data of one's own. Write"),
        (["write", "--strength", "2"], "strength is 2.0, but there is no prompt to weigh. Add --prompt RUN or --words"),
        (["write", "--strength", "abc"], "--strength is 'abc', but a number was expected."),
        (["write", "--prompt", "run", "a.png"], "prompt is a.png, but the run folder of a prompt was expected. Name"),
    ],
)
def test_a_call_without_its_prompt_is_refused_in_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["caption", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_pycocoevalcap_no_prompt_is_learned_for_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    assert main(["caption", "eval", "--device", "cpu"]) == 2
    assert "pip install 'mmprompt[captions]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_report_is_written_over_an_earlier_one(scenes, runs, tmp_path, capsys):
    words = ["caption", "eval", "--data", str(scenes / "scenes.jsonl"), "--out", str(tmp_path), "--max-tokens", "4"]
    for focus in ("objects", "emotions"):
        assert main([*words, "--prompts", str(runs / focus), "--device", "cpu"]) == 0
        assert f"adherence to {focus}" in " ".join((tmp_path / "report.html").read_text().split())
