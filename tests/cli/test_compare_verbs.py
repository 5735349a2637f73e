"""`compare`, `protocol` and `tune` from the command line, on a small model and plain pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmprompt.classification.methods import VPT, CoOp, LinearProbe
from mmprompt.cli.compare import COMPARE, carried, find_origin, read_call
from mmprompt.cli.main import main
from mmprompt.core.method import settled
from mmprompt.data.catalog import list_datasets
from mmprompt.errors import UserError
from mmprompt.experiments.compute import Bench, plan
from mmprompt.experiments.grid import Contender, Grid
from mmprompt.terminal.parser import counts_in, given_names, names_in, shots_in
from tests.fixtures.cli_run import COLOURS, write_pictures

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def parted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compared") / "colours"
    for part, n in (("train", 3), ("val", 2), ("test", 3)):
        write_pictures(root / part, {**COLOURS, "grey": (120, 120, 120)}, n)
    return root


@pytest.fixture
def words(parted: Path, tiny_open_clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    quick = ["--epochs", "2", "--n-ctx", "2", "--device", "cpu", "--seed", "1"]
    return ["--data", str(parted), "--backbone", str(tiny_open_clip_folder), *quick]


def test_compare_prints_the_table_and_writes_report_and_numbers(words: list[str], capsys: Capture) -> None:
    assert main(["compare", "--method", "coop,zero-shot", "--shots", "1,2", "--json", "all.json", *words]) == 0
    shown = capsys.readouterr().out
    assert "1 shot" in shown
    assert "runs/compare/report.html" in shown
    assert Path("runs/compare/report.html").is_file()
    content = json.loads(Path("all.json").read_text())
    assert [(line["method"], line["shots"]) for line in content["lines"]] == [
        ("coop", 1),
        ("coop", 2),
        ("zero-shot", 0),
    ]


def test_a_list_longer_than_a_file_name_is_a_list(capsys: Capture) -> None:
    names = ",".join(card.name for card in list_datasets())
    assert len(names) > 255
    assert main(["compare", "--data", f"{names},none", "--method", "zero-shot"]) == 2
    assert "no data set or folder named 'none'" in capsys.readouterr().err


def test_a_folder_is_called_by_its_whole_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("birds.v2", "birds"):
        (tmp_path / name).mkdir()
    (tmp_path / "birds.csv").write_text("")
    places = [tmp_path / name for name in ("birds.v2", "birds", "birds.csv")]
    assert [find_origin(str(place), None, None).name for place in places] == ["birds.v2", "birds", "birds"]
    monkeypatch.chdir(tmp_path / "birds")
    assert [find_origin(place, None, None).name for place in (".", "../birds.v2")] == ["birds", "birds.v2"]


def test_json_on_stdout_is_one_document(words: list[str], capsys: Capture) -> None:
    place = [*words[:4], "--device", "cpu"]
    assert main(["compare", "--method", "zero-shot", "--shots", "1", "--json", "-", *place]) == 0
    assert json.loads(capsys.readouterr().out)["lines"][0]["method"] == "zero-shot"


def test_base_to_new_ends_in_the_papers_table(words: list[str], capsys: Capture) -> None:
    assert main(["protocol", "base-to-new", "--method", "coop", "--shots", "2", *words]) == 0
    header = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("data set"))
    assert header.split() == ["data", "set", "method", "backbone", "base", "new", "H"]
    assert Path("runs/base-to-new/table.tex").is_file()


def test_the_official_split_stands_alone_and_the_papers_split_beside_their_numbers(
    tiny_open_clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "root" / "dtd" / "dtd"
    write_pictures(base / "images", COLOURS, 3)
    (base / "labels").mkdir()
    for number, part in enumerate(("train", "val", "test")):
        (base / "labels" / f"{part}1.txt").write_text("".join(f"{name}/{number}.png\n" for name in COLOURS))
    words = ["protocol", "few-shot", "--data", "dtd", "--root", "root", "--method", "zero-shot", "--shots", "16"]
    words += ["--backbone", str(tiny_open_clip_folder), "--device", "cpu"]
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "(published)" not in shown
    assert "No published rows on dtd: they were measured on CoOp's split" in shown
    items = [[f"{name}/{n}.png", label, name] for label, name in enumerate(COLOURS) for n in range(3)]
    (base.parent / "images").symlink_to(base / "images")
    split = base.parent / "split_zhou_DescribableTextures.json"
    split.write_text(json.dumps({"train": items[::3], "val": items[1::3], "test": items[2::3]}))
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "PromptSRC (published)" in shown
    assert "No published rows" not in shown


def test_results_that_cannot_be_kept_are_refused_at_the_start(words: list[str], capsys: Capture) -> None:
    Path("file").touch()
    assert main(["compare", "--method", "zero-shot", "--results", "file/cells", *words[:4]]) == 2
    assert "file: is a file" in capsys.readouterr().err


def test_numbers_go_into_a_new_folder_and_a_place_that_is_none_is_refused_at_the_start(
    words: list[str], capsys: Capture
) -> None:
    zero_shot = ["compare", "--method", "zero-shot", *words[:4], "--device", "cpu", "--json"]
    Path("file").touch()
    for place, said in (("file/all.json", "file: is a file"), (".", ".: is a folder")):
        assert main([*zero_shot, place]) == 2
        assert said in capsys.readouterr().err
    assert not Path("runs").exists()
    assert main([*zero_shot, "new/folder/all.json"]) == 0
    assert json.loads(Path("new/folder/all.json").read_text())["lines"]


def test_tune_writes_a_recipe_that_train_takes(words: list[str], capsys: Capture) -> None:
    search = ["--search", "lr=1e-2:1", "--trials", "2", "--shots", "2", "--out", "my search"]
    assert main(["tune", *words, *search]) == 0
    assert "  mmprompt train --config 'my search/recipe.yaml'\n" in capsys.readouterr().out
    assert main(["train", "--config", "my search/recipe.yaml", "--out", "new", "--device", "cpu"]) == 0


def test_tune_searches_what_the_published_settings_leave_open(words: list[str]) -> None:
    place = [*words[:4], "--method", "maple", "--search", "depth=1:2", "--n-ctx", "2"]
    quick = ["--trials", "1", "--shots", "1", "--epochs", "1", "--device", "cpu"]
    assert main(["tune", *place, *quick]) == 0


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    rows = [
        (f"a {colour} car {part} {n}", colour, part)
        for colour in ("red", "blue")
        for part in ("train", "test")
        for n in "ab"
    ]
    lines = [json.dumps({"text": text, "label": label, "split": part}) for text, label, part in rows]
    Path("colours.jsonl").write_text("\n".join(lines))
    card = [
        "instructions:",
        '  - "{text} is {answer}"',
        '  - "[[user]]{text}\\n[[assistant]]{answer}"',
        '  - "what is {text} : {answer}"',
    ]
    Path("colours.yaml").write_text("\n".join(card))
    return ["compare", "--data", "colours.jsonl", "--device", "cpu", "--shots", "2", "--seed", "1,2", "--epochs", "1"]


def test_prompts_for_texts_are_compared_with_the_best_instruction(texts: list[str], capsys: Capture) -> None:
    assert main([*texts, "--method", "instructions,prompt-tuning,lora+prompt-tuning", "--json", "all.json"]) == 0
    shown = capsys.readouterr().out
    assert "Left out: instruction 2 on tiny" in shown  # a chat, for which tiny has no template
    assert "gain, points (95 %)" in shown
    lines = {line["method"]: line for line in json.loads(Path("all.json").read_text())["lines"]}
    assert list(lines) == ["instruction 1", "instruction 3", "prompt-tuning", "lora+prompt-tuning"]
    best = max("instruction 1", "instruction 3", key=lambda name: lines[name]["mean"])
    gain = lines["prompt-tuning"]["gain"]
    assert gain["over"] == best
    assert gain["gain"] == pytest.approx(lines["prompt-tuning"]["mean"] - lines[best]["mean"])
    assert lines[best]["gain"] is None
    page = Path("runs/compare/report.html").read_text()
    assert "Gained over the best instruction" in page
    assert "images" not in page


def test_generated_texts_are_compared_by_the_metric_of_their_card(tmp_path: Path, monkeypatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"text": f"car {part} {n}", "answer": "a red car", "split": part} for n in "ab" for part in ("train", "test")
    ]
    Path("told.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for metric in ("exact", "rouge_l"):
        Path("told.yaml").write_text(f'metric: {metric}\ninstructions:\n  - "{{text}} a red {{answer}}"')
        words = ["compare", "--data", "told.jsonl", "--method", "instructions", "--device", "cpu", "--json", "all.json"]
        assert main(words) == 0
        (line,) = json.loads(Path("all.json").read_text())["lines"]
        assert line["mean"] == pytest.approx({"exact": line["exact_match"], "rouge_l": line["rouge_l"]}[metric])
    assert len(list(Path("runs/cells").iterdir())) == 2
    assert "ROUGE-L" in capsys.readouterr().out


REFUSED = {
    "compare --data somebody,openart-left": "images or texts were expected",
    "compare --data somebody --method coop": "no method named 'coop'",
    "compare --data somebody --root x": "--root is for images, but somebody is text",
    "protocol base-to-new --data somebody": "base-to-new is a protocol for images",
    "compare --method copo --data openart-large": "Did you mean 'coop'",
    "compare --method coop,,vpt --data openart-large": "names with commas",
    "compare": "no data set was named",
    "compare --data openart-lef": "openart-left",
    "compare --data .,two": "one folder, or names of data sets",
    "compare --data openart-large --shots 0": "at least 1 image",
    "compare --data openart-large --shots one": "whole numbers",
    "compare --data openart-large --seed -1": "whole numbers",
    "compare --data openart-left --method gda --lr 3": "but gda is not trained by steps. Leave --lr out.",
    "compare --data openart-large --workers 0": "a whole number, 1 or more",
    "compare --data openart-large-novel": "test images only",
    "protocol base-to-new --data openart-large --shots 1,2": "one number of shots",
    "protocol cross-dataset --data openart-large": "at least one target",
    "protocol cross-dataset --data openart-left,openart-left": "openart-left is the name of two data sets",
    "protocol base": "Did you mean",
    "tune --search lr --lr 0.1": "fixed and searched",
    "tune --search lr=1": "low:high",
    "tune --trials 0": "--trials 1",
    "tune --method copo": "coop",
    "tune --search epochs --n-steps 5": "epochs is fixed and searched at once. Leave it out of --search",
    "tune --method linear-probe --search lr": "lr is a setting of steps, but linear-probe takes none",
    "tune --data openart-large-novel": "no training images",
}


@pytest.mark.parametrize("line", REFUSED)
def test_a_wrong_call_is_one_line_and_exit_2(
    line: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("mmprompt: error: ")
    assert REFUSED[line] in said


def test_only_settings_that_are_given_are_passed_on() -> None:
    line = ["--method", "coop,linear-probe", "--data", "openart-large", "--backbone", "m", "--lr", "0.1"]
    call = read_call(line, "mmprompt compare", "")
    assert [one.method for one in call.contenders] == [CoOp(), LinearProbe()]
    assert call.recipe == {"lr": 0.1}


def test_a_setting_goes_to_the_methods_that_have_it() -> None:
    line = ["--method", "coop,vpt,linear-probe", "--data", "openart-large", "--backbone", "m", "--max-iter=7"]
    call = read_call([*line, "--n-ctx", "3", "--class-specific"], "mmprompt compare", "")
    assert [one.method for one in call.contenders] == [CoOp(3, class_specific=True), VPT(), LinearProbe(max_iter=7)]


def test_the_small_model_gets_few_context_vectors_unless_told() -> None:
    line = ["--method", "coop", "--data", "openart-large"]
    calls = [read_call([*line, *words], "p", "") for words in ([], ["--n-ctx", "2"], ["--n-ctx", "4"])]
    grids = [Grid(call.origins(), call.contenders, seeds=(1,)) for call in calls]
    assert [settled(grid.contenders[0].method, "tiny").n_ctx for grid in grids] == [4, 2, 4]  # type: ignore[attr-defined]
    unsaid, other, said = (plan(grid, Bench("cpu"))[0].key for grid in grids)
    assert unsaid == said != other


def test_a_recipe_file_of_tune_serves_a_comparison(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("data: openart-left\nmethod: coop\nshots: 4\nseed: 3\nn_ctx: 2\nlr: 0.05\n")
    call = read_call(["--config", str(tmp_path / "recipe.yaml")], "p", "")
    assert call.compared.data == "openart-left"
    assert (call.compared.shots, call.compared.seed) == ("4", "3")
    assert call.contenders == (Contender("coop", CoOp(2), "tiny"),)
    assert call.recipe == {"lr": 0.05}


def test_lists_are_split_at_commas() -> None:
    assert names_in("methods", "coop, zero-shot") == ("coop", "zero-shot")
    assert counts_in("seeds", "1,2") == (1, 2)
    assert shots_in("1,all") == (1, None)
    with pytest.raises(UserError, match="--seed"):
        counts_in("seeds", "1.5")


@pytest.mark.parametrize("word", ["--n-ctx", "--n_ctx", "--n-ctx=4"])
def test_an_option_is_found_however_it_is_spelt(word: str) -> None:
    assert given_names(["--lr", "1", word], ["n_ctx"]) == ["n_ctx"]
    assert given_names(["--n-ctxx", "4"], ["n_ctx"]) == []


def test_all_methods_are_those_that_stand_alone():
    names = [one.name for one in read_call(["--method", "all"], "mmprompt compare", COMPARE).contenders]
    assert {"coop", "maple", "promptsrc", "text-probe", "clip-lora", "zero-shot"} <= set(names)
    assert not {"knowledge-guided", "consistency"} & set(names)


def test_of_all_methods_those_that_a_backbone_cannot_carry_are_left_out_and_said(tiny_resnet_folder, capsys):
    words = ["--method", "all", "--n-ctx", "2", "--backbone", str(tiny_resnet_folder)]
    call = read_call(words, "mmprompt compare", COMPARE)
    kept = [one.name for one in carried(call)]
    assert {"coop", "gda"} <= set(kept)
    assert "vpt" not in kept
    assert "Left out: vpt on" in capsys.readouterr().out


@pytest.mark.parametrize("length", ["--epochs", "--n-steps", "--steps-per-shot"])
def test_a_setting_that_is_fixed_leaves_the_default_ranges_of_tune(length: str, words: list[str]) -> None:
    one = ["--n-ctx", "2", "--trials", "1", "--shots", "1", "--device", "cpu"]
    assert main(["tune", length, "3", *one, *words[:4]]) == 0
    assert Path("runs/tune/trials.csv").read_text().startswith("lr,validation_accuracy")


def test_data_without_training_images_is_refused_by_tune(capsys: Capture) -> None:
    assert main(["tune", "--epochs", "3", "--data", "openart-large-novel"]) == 2
    assert "no training images" in capsys.readouterr().err
