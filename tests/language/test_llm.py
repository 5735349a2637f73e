"""`mmprompt llm` on the embedded model and on small ones: learn, measure, generate, search, convert, inspect."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmprompt.cli.main import main
from mmprompt.language.data import load_texts
from tests.small_language_models import byte_tokenizer, save_language_model

TEXT = "a rose, a person dancing and a shark."


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `llm train` learns without options, but where it goes."""
    folder = tmp_path_factory.mktemp("llm") / "run"
    assert main(["llm", "train", "--out", str(folder), "--device", "cpu"]) == 0
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language_model("gpt2", tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Rows with answers and two fields."""
    rows = [
        {"text": word, "name": name, "answer": word[::-1], "split": split}
        for split, words in (("train", ("red", "big", "sun", "cat")), ("test", ("dog", "sea")))
        for word, name in zip(words, "abcd", strict=False)
    ]
    return write(tmp_path / "answers.jsonl", rows)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def document(words: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    assert main([*words, "--device", "cpu", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_without_options_a_prompt_is_learned_and_tested_beside_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["llm", "train"]) == 0
    said = capsys.readouterr().out
    before, after = (next(line for line in said.splitlines() if line.startswith(name)) for name in ("no p", "learned"))
    assert float(before.split()[2]) == 50.0
    assert float(after.split()[2]) > 80.0
    assert "The weights of tiny are what they were before." in said
    assert "mmprompt llm eval --prompt runs/somebody-prompt-tuning --data somebody" in said
    assert "mmprompt backbones get smollm2" in said
    assert (tmp_path / "runs" / "somebody-prompt-tuning" / "prompt.safetensors").stat().st_size < 12_000


def test_a_prompt_is_measured_beside_none_and_beside_instructions(run_folder, capsys):
    found = document(["llm", "eval", "--prompt", str(run_folder)], capsys)
    assert found["data"] == "somebody"  # known from the prompt
    names = [score["name"] for score in found["scores"]]
    assert names == [str(run_folder), "no prompt", "instruction 1", "instruction 2", "instruction 3"]
    learned = found["scores"][0]
    assert learned["accuracy"] > 0.8
    assert learned["confusion"]["labels"] == ["somebody", "nobody"]
    counts = learned["confusion"]["counts"]
    assert [sum(row) for row in counts] == [100, 100]
    assert counts[0][0] + counts[1][1] == round(200 * learned["accuracy"])
    assert [gain["over"] for gain in found["gains"]] == ["no prompt", "instruction 1"]
    assert found["gains"][0]["gain"] == pytest.approx(learned["accuracy"] - found["scores"][1]["accuracy"])


def test_an_instruction_with_vectors_is_refused(tmp_path, capsys):
    path = write(tmp_path / "sv.jsonl", [{"text": f"a {n}", "label": label} for n in "abcdef" for label in "xy"])
    path.with_suffix(".yaml").write_text('instructions: ["{soft*2} {text} is {answer}"]\n')
    for words in (["eval"], ["train", "--method", "instruction", "--out", str(tmp_path / "run")]):
        assert main(["llm", *words, "--data", str(path), "--device", "cpu"]) == 2
        assert "there are no vectors for its {soft}. Write it in words alone." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_prompt_that_is_named_twice_is_refused(run_folder, capsys):
    assert main(["llm", "eval", "--prompt", str(run_folder), str(run_folder)]) == 2
    assert "one is named twice. Name each once." in capsys.readouterr().err


def test_calibration_changes_what_a_model_without_a_prompt_says(capsys):
    words = ["llm", "eval", "--split", "val"]
    plain, calibrated = document(words, capsys), document([*words, "--calibrate"], capsys)
    assert plain["n_rows"] == 40
    assert (plain["is_calibrated"], calibrated["is_calibrated"]) == (False, True)
    assert [score["answers"] for score in plain["scores"]] != [score["answers"] for score in calibrated["scores"]]
    assert plain["gains"] == []


def test_the_table_of_an_evaluation_names_the_instructions_and_what_was_gained(run_folder, capsys):
    assert main(["llm", "eval", "--prompt", str(run_folder), "--split", "val", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "somebody, val: 40 rows, tiny" in said
    assert "instruction 2: {text:cut} there is a {answer}" in said
    assert "over instruction 1, the best on these very rows." in said
    assert "is \\ said" in said


def test_an_answer_is_streamed_and_is_that_of_the_document(capsys):
    words = ["llm", "generate", "--input", "the face looks", "--max-tokens", "6"]
    answer = document(words, capsys)["answers"][0]
    assert answer["text"] == "the face looks"
    assert answer["n_tokens"] > 0
    assert main([*words, "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == answer["answer"]
    assert err == ""


def test_a_prompt_that_tells_labels_apart_gives_the_label_and_as_text_an_answer(run_folder, capsys):
    words = ["llm", "generate", "--prompt", str(run_folder), "--input", TEXT, "--max-tokens", "2"]
    assert main([*words, "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[1].split()[0] == "somebody"
    assert err == ""
    (answer,) = document([*words, "--as-text"], capsys)["answers"]
    assert (answer["n_tokens"], "label" in answer) == (2, False)


def test_rows_of_a_file_are_classified_into_another_and_nothing_is_overwritten(run_folder, tmp_path, capsys):
    rows = write(tmp_path / "rows.jsonl", [{"text": TEXT, "label": "nobody"}, {"text": "a rose and a shark."}])
    out = tmp_path / "found.jsonl"
    words = ["llm", "generate", "--prompt", str(run_folder), "--input", str(rows), "--device", "cpu"]
    assert main([*words, "--out", str(out)]) == 0
    found = rows_of(out)
    assert [(row["text"], row["label"]) for row in found] == [(TEXT, "somebody"), ("a rose and a shark.", "nobody")]
    assert sum(found[0]["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
    before = out.read_bytes()
    assert main([*words, "--out", str(out)]) == 0  # all of it is there
    assert main([*words, "--out", str(out), "--as-text"]) == 2
    assert "holds answers of other settings" in capsys.readouterr().err
    write(rows, [{"text": "a shark."}])
    assert main([*words, "--out", str(out)]) == 2
    assert "line 1: holds an answer to another row" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_several_fields_are_given_by_name(capsys):
    template = ["--template", "the {what} looks {how}{answer}", "--input"]
    words = ["llm", "generate", *template, "how=sad", "what=face"]
    (answer,) = document(words, capsys)["answers"]
    assert (answer["what"], answer["how"]) == ("face", "sad")
    for given in (["how=sad"], ["sad"], ["how=sad", "what=face", "who=me"]):
        assert main(["llm", "generate", *template, *given]) == 2
        assert 'Write --input what="..." how="...".' in capsys.readouterr().err


def test_answers_are_learned_shown_and_measured(answers, gpt2, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["--backbone", f"hf:{gpt2}", "--data", str(answers), "--template", "{soft} {text} of {name}: {answer}"]
    assert main(["llm", "train", *words, "--epochs", "1", "--out", str(run), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "god" in said  # what was expected of the first test row
    assert "--input text=dog name=a" in said
    found = document(["llm", "eval", "--prompt", str(run), "--data", str(answers)], capsys)
    assert [score["name"] for score in found["scores"]] == [str(run), "no prompt"]
    assert set(found["scores"][0]) >= {"exact_match", "bleu", "chrf", "rouge_l"}
    assert main(["llm", "eval", "--prompt", str(run), "--data", str(answers), "--calibrate"]) == 2
    assert "calibration is for labels" in capsys.readouterr().err


def test_a_prompt_in_words_is_saved_and_measured_as_a_learned_one(gpt2, tmp_path, capsys):
    words = ["llm", "train", "--method", "hard", "--backbone", f"hf:{gpt2}", "--shots", "1"]
    words += ["--template", "{text:cut=8} is {answer}", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    header = json.loads((tmp_path / "run" / "prompt.json").read_text())
    assert header["template"] == "{text:cut=8} is {answer}"
    assert header["sources"] == []
    capsys.readouterr()
    assert main([*words, "--words", "it is", "--out", str(tmp_path / "other")]) == 2
    assert "words is 'it is', but those of a language model stand in its template" in capsys.readouterr().err


def test_only_methods_that_start_from_vectors_are_told_where(tmp_path, capsys):
    words = ["llm", "train", "--shots", "1", "--device", "cpu", "--out", str(tmp_path / "run")]
    for method in ("lora", "adapter", "full-tuning", "soft-verbalizer", "hard", "instruction"):
        assert main([*words, "--method", method, "--from-prompt", "/nonexistent"]) == 2
        assert "--from-prompt" in capsys.readouterr().err
    for method in ("prompt-tuning+lora", "deep-prompts", "searched-words"):
        assert main([*words, "--method", method, "--from-prompt", "/nonexistent"]) == 2
        assert "/nonexistent" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_current_folder_is_learned_from_and_names_the_run(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "mood"
    folder.mkdir()
    for part in ("train", "test"):
        (folder / f"{part}.csv").write_text(f"text,label\n{part} a,good\n{part} b,bad\n")
    monkeypatch.chdir(folder)
    assert main(["llm", "train", "--data", ".", "--epochs", "1", "--device", "cpu"]) == 0
    assert "rows of mood" in capsys.readouterr().out
    assert (folder / "runs/mood-prompt-tuning/prompt.json").is_file()


def test_a_run_that_lost_its_end_is_resumed_to_the_same_bytes(tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["llm", "train", "--n-soft", "2", "--shots", "4", "--epochs", "3", "--checkpoint-seconds", "0"]
    words += ["--device", "cpu", "--out", str(folder)]
    assert main(words) == 0
    learned = (folder / "prompt.safetensors").read_bytes()
    for name in ("prompt.json", "prompt.safetensors"):
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoint" / "epoch-0003", ignore_errors=True)
    capsys.readouterr()
    assert main(words) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*words, "--resume", "--seed", "2"]) == 2
    assert main([*words, "--resume"]) == 0
    assert (folder / "prompt.safetensors").read_bytes() == learned


def test_words_of_labels_are_given_on_the_line_and_words_of_several_tokens_are_said(tmp_path, capsys):
    words = ["llm", "train", "--shots", "2", "--epochs", "1", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert main([*words, "--verbalizer", "somebody=person,somebody", "nobody=nothing at all"]) == 0
    said = capsys.readouterr().out
    assert "'nothing at all' is" in said
    assert "scored by the sum" in said
    header = json.loads((tmp_path / "run" / "prompt.json").read_text())
    assert header["verbalizer"]["words"] == {"nobody": ["nothing at all"], "somebody": ["person", "somebody"]}


def test_a_label_that_is_given_words_twice_is_refused(tmp_path, capsys):
    words = ["llm", "train", "--shots", "2", "--device", "cpu", "--out", str(tmp_path / "run"), "--verbalizer"]
    assert main([*words, "somebody=person", "somebody=face", "nobody=object"]) == 2
    said = "verbalizer is 'somebody=person somebody=face nobody=object', but it gives 'somebody' words twice. "
    assert said + "Write --verbalizer LABEL=WORD,WORD." in capsys.readouterr().err


def test_a_tokenizer_without_a_padding_token_is_no_hindrance(tmp_path, capsys):
    folder = save_language_model("qwen2", tmp_path / "model")
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "pad_token_id": None}))
    words = ["llm", "train", "--backbone", str(folder), "--method", "prefix-tuning", "--shots", "2", "--epochs", "1"]
    found = document([*words, "--out", str(tmp_path / "run")], capsys)
    assert set(found["test"]) == {"no prompt", "learned prompt"}


def test_words_are_searched_saved_and_measured_as_any_prompt(tmp_path, capsys):
    run = tmp_path / "words"
    words = ["llm", "search", "--n-tokens", "3", "--n-steps", "2", "--n-rows", "16", "--n-candidates", "4"]
    found = document([*words, "--out", str(run)], capsys)
    assert found["loss"] <= found["start_loss"]
    assert len(found["token_ids"]) == 3
    assert found["text"] in json.loads((run / "prompt.json").read_text())["template"]
    measured = document(["llm", "eval", "--prompt", str(run), "--split", "val"], capsys)
    assert [score["name"] for score in measured["scores"]][:2] == [str(run), "no prompt"]


def test_a_prompt_goes_to_peft_and_back(run_folder, tmp_path, capsys):
    peft, back = tmp_path / "peft", tmp_path / "back"
    words = ["llm", "convert", "--prompt", str(run_folder), "--to-peft", str(peft), "--device", "cpu"]
    assert main(words) == 2  # the start token stands before the vectors
    assert not peft.exists()
    assert main([*words, "--kind", "prefix"]) == 0
    assert {path.name for path in peft.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert main([*words, "--kind", "prefix"]) == 2
    assert main(["llm", "convert", "--from-peft", str(peft), "--backbone", "tiny", "--out", str(back)]) == 0
    said = [
        document(["llm", "generate", "--prompt", str(run), "--input", TEXT], capsys)["answers"]
        for run in (run_folder, back)
    ]
    assert said[0][0]["probabilities"] == pytest.approx(said[1][0]["probabilities"], abs=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--prompt a --from-peft b --backbone tiny --out c", "it is not clear what is to be converted"),
        ("--prompt a --to-peft b --from-peft c", "it is not clear what is to be converted"),
        ("--from-openprompt d.txt --prompt a", "from_openprompt is d.txt, but it stands alone. Leave all else out."),
        ("--from-openprompt d.txt --kind lora", "Leave all else out."),
        ("--from-openprompt d.txt --task zzz", "Leave all else out."),
        ("--from-openprompt d.txt --backbone none", "Leave all else out."),
        ("--from-openprompt d.txt --template {nope", "Leave all else out."),
        ("--from-openprompt d.txt --verbalizer a=b", "Leave all else out."),
    ],
)
def test_what_a_conversion_would_pass_over_is_refused(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.txt").write_text('{"placeholder": "text"} {"mask"}\n')
    assert main(["llm", "convert", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert (out, err.count("\n")) == ("", 1)


def test_a_file_of_texts_is_not_taken_for_a_text(run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text(TEXT)
    assert main(["predict", str(run_folder), "a rose.", "in.txt"]) == 2
    err = capsys.readouterr().err
    assert "in.txt: is a file, but texts themselves are labelled here. Use mmprompt llm generate --prompt" in err


def test_inspect_shows_template_words_of_labels_and_near_words(run_folder, capsys):
    assert main(["inspect", str(run_folder), "--words", "2"]) == 0
    said = capsys.readouterr().out
    assert "{soft*20} {text:cut} {answer}" in said
    assert "somebody (person), nobody (object)" in said
    assert "lm.input  shared  20 x 128" in said
    assert "vector 20" in said
    assert main(["inspect", str(run_folder), "--words", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nearest_words"] == []


def test_the_example_that_is_shown_can_be_typed(tmp_path, run_folder, capsys):
    text = load_texts("somebody").test[0].fields["text"]
    found = document(["llm", "generate", "--prompt", str(run_folder), "--input", text], capsys)
    assert found["answers"][0]["text"] == text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["llm", "train", "--n-soft", "100000000000"],
            "n_soft is 100000000000, but it must be a whole number from 1 to 1024.",
        ),
        (
            ["llm", "generate", "--input", "a", "--n-beams", "999999999"],
            "n_beams is 999999999, but it must be a whole number from 1 to 256.",
        ),
    ],
)
def test_counts_that_no_machine_holds_are_refused(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_test_answer_that_is_too_long_is_refused_before_anything_is_learned(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": "a", "answer": "b", "split": "train"}, {"text": "rose", "answer": "c " * 300, "split": "test"}]
    data = write(tmp_path / "long.jsonl", rows)
    assert main(["llm", "train", "--data", str(data), "--out", "run", "--device", "cpu"]) == 2
    shown = capsys.readouterr().err
    assert "the test row that begins with 'rose' cannot be read: an answer takes 301 tokens" in shown
    assert not (tmp_path / "run" / "prompt.json").exists()
