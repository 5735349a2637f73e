from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mmprompt.classification.cli.train import read_call
from mmprompt.classification.methods import CoOp, TextProbe
from mmprompt.cli.main import main
from mmprompt.files import read_json
from mmprompt.terminal.images import Images

Capture = pytest.CaptureFixture[str]
Words = Callable[..., list[str]]
FILES = {
    "run.json",
    "metrics.json",
    "log.jsonl",
    "prompt.json",
    "prompt.safetensors",
    "nearest_words.json",
    "report.html",
    "accuracy.png",
    "confusion.png",
    "learning_curve.png",
}


def test_train_leaves_a_whole_run_folder(run_folder: Path) -> None:
    assert {path.name for path in run_folder.iterdir()} >= FILES


def test_train_says_what_came_out(train_words: Words, tmp_path: Path, capsys: Capture) -> None:
    assert main(train_words(tmp_path / "run")) == 0
    shown = capsys.readouterr()
    for said in ("Learning a prompt (coop)", "bare class name", "“a photo of a {}.”", "learned prompt", "Try next:"):
        assert said in shown.out
    assert f"report      {tmp_path / 'run' / 'report.html'}" in shown.out
    assert "epoch 3/3" in shown.err


def test_what_to_try_next_can_be_typed_for_a_folder_with_a_space(
    train_words: Words, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "my run"
    assert main(train_words(folder)) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("  mmprompt ")]
    assert [words[:3] for words in commands] == [
        ["mmprompt", verb, str(folder)] for verb in ("predict", "eval", "inspect")
    ]


def test_without_a_method_photo_takes_the_head_that_was_measured_and_others_coop() -> None:
    read = partial(read_call, prog="mmprompt train")
    assert type(read(["--backbone", "photo"]).method) is TextProbe
    assert read(["--backbone", "photo"]).run.method == read(["--backbone", "photo-small"]).run.method == "text-probe"
    assert read(["--backbone", "photo"]).reason == "chosen on Caltech101's validation images"
    assert type(read([]).method) is CoOp
    named = read(["--backbone", "photo", "--method", "coop"])
    assert (type(named.method), named.reason) == (CoOp, "")


def test_a_method_in_a_file_is_a_method_that_was_named(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("backbone: photo\nmethod: vpt\n")
    call = read_call(["--config", str(config)], "mmprompt train")
    assert (call.run.method, call.reason) == ("vpt", "")
    config.write_text("backbone: photo\n")
    assert read_call(["--config", str(config)], "mmprompt train").run.method == "text-probe"


def test_train_says_why_it_took_a_method_that_nobody_named(train_words: Words, tmp_path: Path, capsys: Capture) -> None:
    assert main(train_words(tmp_path / "run")) == 0
    assert "The method is coop, for want of a method measured to be better here" in capsys.readouterr().out
    assert main(train_words(tmp_path / "named", "--method", "coop")) == 0
    assert "The method is" not in capsys.readouterr().out


def test_train_with_json_prints_one_document(train_words: Words, tmp_path: Path, capsys: Capture) -> None:
    assert main(train_words(tmp_path / "run", "--json")) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["folder"] == str(tmp_path / "run")
    assert set(found["metrics"]) == {"zero_shot_name", "zero_shot_template", "learned"}
    assert "Learning a prompt" in shown.err


def test_the_saved_command_is_the_one_given(run_folder: Path, train_words: Words) -> None:
    assert read_json(run_folder / "run.json")["call"]["command"].split() == ["mmprompt", *train_words(run_folder)]


def test_train_from_the_run_json_of_a_run_repeats_it(run_folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    config = str(run_folder / "run.json")
    assert main(["train", "--config", config, "--out", str(again), "--device", "cpu"]) == 0
    assert (again / "prompt.safetensors").read_bytes() == (run_folder / "prompt.safetensors").read_bytes()


def test_the_command_line_wins_over_the_file(train_words: Words, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("lr: 1e-2\nepochs: 9\noptimizer: adamw\n")
    assert main(train_words(tmp_path / "run", "--config", str(config))) == 0
    recipe = read_json(tmp_path / "run" / "run.json")["recipe"]
    assert (recipe["lr"], recipe["epochs"], recipe["optimizer"]) == (0.01, 3, "adamw")


def test_methods_combine_with_a_plus(train_words: Words, tmp_path: Path) -> None:
    words = train_words(tmp_path / "run", "--method", "coop+vpt", "--n-visual", "2", "--depth", "2")
    assert main(words) == 0
    sources = read_json(tmp_path / "run" / "prompt.json")["sources"]
    assert {site for source in sources for site in source["sites"]} == {"text.input", "vision.input", "vision.layer[1]"}


@pytest.mark.parametrize("method", ["zero-shot", "nearest-class-mean", "linear-probe"])
def test_a_method_without_a_loop_trains_measures_and_predicts(
    method: str, train_words: Words, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    run, own = tmp_path / "run", {"linear-probe": ["--inverse-strength", "2"]}
    words = [word for word in train_words(run) if word not in ("--n-ctx", "--epochs", "3")]
    words.remove("2")  # of --n-ctx
    assert main([*words, "--method", method, *own.get(method, [])]) == 0
    assert not (run / "checkpoint").exists()
    assert main(["eval", str(run), "--json"]) == 0
    shown = capsys.readouterr().out
    assert json.loads(shown[shown.index("{\n") :])["metrics"]["learned"] == read_json(run / "metrics.json")["learned"]
    assert main(["predict", str(run), str(pictures / "red" / "0.png")]) == 0
    assert "red" in capsys.readouterr().out
    assert main(["train", "--config", str(run / "run.json"), "--out", str(tmp_path / "again"), "--device", "cpu"]) == 0
    assert (tmp_path / "again" / "prompt.safetensors").read_bytes() == (run / "prompt.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train --method zero-shot --epochs 7", "epochs is 7, but zero-shot is not trained by steps. Leave --epochs"),
        ("train --method linear-probe+tpt --lr=5", "lr is 5, but linear-probe+tpt is not trained by steps. Leave --lr"),
        ("llm train --method hard --n-steps 7", "n_steps is 7, but hard is not trained by steps. Leave --n-steps out"),
        ("llm train --method searched-words --lr 5", "lr is 5, but searched-words is not trained by steps. Leave"),
        ("caption train --method hard --words red --epochs 7", "epochs is 7, but hard is not trained by steps. Leave"),
    ],
)
def test_a_recipe_for_a_method_without_a_loop_is_refused(
    line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["coop+tpt", "coop+dp-sgd", "tip-adapter-f", "clap"])
def test_a_recipe_for_a_method_with_a_loop_is_read(method: str) -> None:
    assert read_call(["--method", method, "--epochs", "7"], "mmprompt train").recipe.epochs == 7


def test_a_number_of_steps_takes_the_place_of_the_data_sets_epochs() -> None:
    from mmprompt.classification.cli.train import read_call

    recipe = read_call(["--n-steps", "30"], "mmprompt train").recipe
    assert (recipe.n_steps, recipe.epochs, recipe.lr) == (30, None, 0.006)


def test_without_the_report_extra_the_run_ends_well(
    train_words: Words, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmprompt.reports.pages.missing_extra", lambda: "no report was written: install")
    assert main(train_words(tmp_path / "run")) == 0
    assert "no report was written: install" in capsys.readouterr().out
    assert not (tmp_path / "run" / "report.html").exists()


def test_four_vectors_are_the_default_of_the_embedded_backbone_only() -> None:
    from mmprompt.classification.cli.train import read_call

    assert read_call([], "mmprompt train").method.n_ctx == 4  # type: ignore[attr-defined]
    assert read_call(["--backbone", "other"], "mmprompt train").method.n_ctx is None  # type: ignore[attr-defined]
    assert read_call(["--ctx-init", "a photo"], "mmprompt train").method.n_ctx is None  # type: ignore[attr-defined]


def test_a_file_wins_over_what_suits_the_backbone(tmp_path: Path) -> None:
    from mmprompt.classification.cli.train import read_call

    (tmp_path / "mine.yaml").write_text("n_ctx: 3\n")
    call = read_call(["--config", str(tmp_path / "mine.yaml")], "mmprompt train")
    assert call.method.n_ctx == 3  # type: ignore[attr-defined]


def test_a_finished_run_is_refused_before_anything_is_announced(run_folder: Path, capsys: Capture) -> None:
    assert main(["train", "--out", str(run_folder)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "finished run" in shown.err


def test_without_options_it_is_the_run_of_the_readme() -> None:
    from mmprompt.classification.cli.train import default_folder, read_call

    call = read_call([], "mmprompt train")
    assert (call.run.backbone, call.images.data, call.run.shots, call.run.seed) == ("tiny", "openart-large", 16, 1)
    assert default_folder(call) == Path("runs/openart-large-coop-16shots-seed1")


def test_eval_repeats_the_numbers_of_the_run(run_folder: Path, capsys: Capture) -> None:
    assert main(["eval", str(run_folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["learned"] == read_json(run_folder / "metrics.json")["learned"]
    assert not [path for path in run_folder.iterdir() if path.name.startswith(".")]


def test_eval_of_the_training_part_takes_the_shots_of_the_run(run_folder: Path, capsys: Capture) -> None:
    assert main(["eval", str(run_folder), "--split", "train", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["learned"]["n"] == 6


@pytest.mark.parametrize(("drawn", "seed"), [({"seed": 0}, 0), ({"seed": None}, 1), ({}, 1)])
def test_images_are_drawn_again_by_the_seed_of_their_run(drawn: dict[str, Any], seed: int, pictures: Path) -> None:
    assert Images(data=str(pictures)).load_as_drawn({"data": {"shots": 2} | drawn}).seed == seed


def test_a_protocol_named_for_eval_wins_over_the_run_s(run_folder: Path, capsys: Capture) -> None:
    assert main(["eval", str(run_folder), "--split", "train", "--protocol", "clip-laro"]) == 2
    assert "Did you mean 'clip-lora'" in capsys.readouterr().err


def test_eval_takes_other_pictures_with_other_class_names(run_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    from tests.fixtures.cli_run import write_pictures

    other = write_pictures(tmp_path / "other", {"cat": (200, 0, 0), "dog": (0, 0, 200)})
    assert main(["eval", str(run_folder), "--data", str(other), "--split", "train", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["dataset"], found["split"]) == ("other", "train")
    assert set(found["metrics"]["learned"]["per_class"]) == {"cat", "dog"}


def test_predict_ranks_labels(run_folder: Path, pictures: Path, capsys: Capture) -> None:
    paths = [str(pictures / "red" / "0.png"), str(pictures / "blue" / "0.png")]
    assert main(["predict", str(run_folder), *paths, "--top-k", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["predictions"]
    assert [one["path"] for one in found] == paths
    for one in found:
        first, second = one["top"]
        assert first == {"label": one["label"], "probability": one["probability"]}
        assert first["probability"] >= second["probability"]


def test_predict_takes_other_class_names(run_folder: Path, pictures: Path, capsys: Capture) -> None:
    picture = str(pictures / "red" / "0.png")
    assert main(["predict", str(run_folder), picture, "--class-names", "cat, dog"]) == 0
    shown = capsys.readouterr().out
    assert "cat" in shown
    assert "dog" in shown
    assert "green" not in shown


def test_tables_in_a_pipe_have_no_frames_and_no_trailing_blanks(run_folder: Path, capsys: Capture) -> None:
    assert main(["eval", str(run_folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line == line.rstrip() for line in lines)
    assert not set("".join(lines)) & set("│─━╭\x1b")


def test_inspect_shows_sites_and_words(run_folder: Path, capsys: Capture) -> None:
    assert main(["inspect", str(run_folder)]) == 0
    shown = capsys.readouterr().out
    for said in ("text.input", "2 x 32", "3: blue, green, red", "vector 2", "coop: n_ctx 2"):
        assert said in shown
    assert main(["inspect", str(run_folder), "--words", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nearest_words"] == []


def test_data_list_shows_every_card(capsys: Capture) -> None:
    assert main(["data", "list", "--json"]) == 0
    assert "openart-left" in {card["name"] for card in json.loads(capsys.readouterr().out)}


def test_data_check_counts(pictures: Path, capsys: Capture) -> None:
    assert main(["data", "check", "--data", str(pictures), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["is_ok"]
    assert found["counts"] == {"train": 15, "val": 0, "test": 3}


def test_data_check_of_broken_pictures_exits_2_with_its_document(tmp_path: Path, capsys: Capture) -> None:
    from tests.fixtures.cli_run import COLOURS, write_pictures

    folder = write_pictures(tmp_path / "broken", COLOURS)
    (folder / "red" / "0.png").write_text("no picture")
    assert main(["data", "check", "--data", str(folder), "--json"]) == 2
    shown = capsys.readouterr()
    assert not json.loads(shown.out)["is_ok"]
    assert shown.err.splitlines()[-1].startswith("mmprompt: error: ")


def test_data_shots_shows_the_draw(pictures: Path, capsys: Capture) -> None:
    assert main(["data", "shots", "--data", str(pictures), "--shots", "2", "--json"]) == 0
    drawn = json.loads(capsys.readouterr().out)["drawn"]
    assert {name: len(of["train"]) for name, of in drawn.items()} == {"blue": 2, "green": 2, "red": 2}


def test_methods_of_every_room_are_listed_with_the_verbs_that_take_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "list", "--json"]) == 0
    verbs = {method["name"]: method["verbs"] for method in json.loads(capsys.readouterr().out)}
    assert verbs["coop"] == ["train"]
    assert verbs["prompt-tuning"] == ["caption train", "llm train"]
    assert verbs["multitask"] == ["llm train"]


def test_a_method_shows_the_settings_it_inherits_with_their_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "show", "p-tuning", "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    settings = {option["name"]: option["help"] for option in shown["settings"]}
    assert settings["n_soft"].startswith("Number of vectors")
    assert settings["hidden"] == "Width of the network."


def test_every_verb_with_options_takes_them_from_a_file(
    run_folder: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "mine.yaml").write_text("top_k: 1\njson: true\n")
    words = ["predict", str(run_folder), str(pictures / "red" / "0.png"), "--config", str(tmp_path / "mine.yaml")]
    assert main(words) == 0
    assert len(json.loads(capsys.readouterr().out)["predictions"][0]["top"]) == 1
    assert main([*words, "--top-k", "2"]) == 0
    assert len(json.loads(capsys.readouterr().out)["predictions"][0]["top"]) == 2


@pytest.mark.parametrize("verb", ["caption train", "llm train", "llm eval", "tune", "data check", "protocol few-shot"])
def test_a_misspelt_key_of_a_file_is_refused_by_every_verb(verb: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine.yaml").write_text("jason: true\n")
    assert main([*verb.split(), "--config", str(tmp_path / "mine.yaml")]) == 2
    assert "Did you mean 'json'" in capsys.readouterr().err


def test_a_file_names_the_method_whose_options_it_holds(tmp_path: Path) -> None:
    from mmprompt.language.cli.train import read_call as read_language

    (tmp_path / "mine.yaml").write_text("method: prefix-tuning\nn_prefix: 3\nepochs: 2\n")
    call = read_language(["--config", str(tmp_path / "mine.yaml")], "mmprompt llm train")
    assert (type(call.method).__name__, call.recipe.epochs) == ("PrefixTuning", 2)


def test_a_run_is_gone_on_with_in_the_folder_of_its_run_json(run_folder: Path, capsys: Capture) -> None:
    from mmprompt.classification.cli.train import read_call

    words = ["--config", str(run_folder / "run.json"), "--resume"]
    assert read_call(words, "mmprompt train").run.out == run_folder


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train my/pictures", "Did you mean --data my/pictures?"),
        ("train --model tiny", "Did you mean --backbone?"),
        ("compare --learning-rate 3", "Did you mean --lr?"),
        ("llm generate hello", "there is no place for hello. Did you mean --input hello?"),
        ("predict a.png runs", "the folder of a run comes first"),
    ],
)
def test_what_options_are_called_elsewhere_is_understood(line: str, said: str, capsys: Capture) -> None:
    assert main(line.split()) == 2
    assert said in capsys.readouterr().err


def test_a_run_in_the_place_of_no_run_is_understood(run_folder: Path, capsys: Capture) -> None:
    assert main(["llm", "eval", str(run_folder)]) == 2
    assert f"Did you mean --prompt {run_folder}?" in capsys.readouterr().err


def test_a_method_that_does_not_fit_is_refused_before_anything_is_promised(
    train_words: Words, tiny_resnet_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = train_words(tmp_path / "run", "--method", "vpt", "--backbone", str(tiny_resnet_folder))
    words = [word for word in words if word != "--n-ctx"]
    words.remove("2")  # of --n-ctx
    assert main(words) == 2
    shown = capsys.readouterr()
    assert "no image tokens" in shown.err
    assert shown.out == ""
    assert not (tmp_path / "run").exists()
