"""`mmprompt llm generate` in daily use: lines and tables in, several prompts at once, stops, a chat, kills."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mmprompt as mp
from mmprompt.cli.main import main
from mmprompt.core.learned import Learned, Prompt
from mmprompt.language.cli import chat
from mmprompt.language.cli import generate as verb
from mmprompt.language.data import TextRow, load_texts, sample_shots
from mmprompt.language.generation import generate_texts, stream_text
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.models.sites import LM_INPUT
from tests.language_models import frozen_model
from tests.small_language_models import CHAT_TEMPLATE, save_language_model

TEXTS = ["a rose and", "somebody looks", "the face"]


def learn(folder: Path, seed: int, model: str = "tiny") -> Path:
    """A prompt of two vectors that tells labels apart, barely learned."""
    data = sample_shots(load_texts("somebody"), 1, seed)
    data = replace(data, test=data.test[:2])
    mp.fit(mp.PromptTuning(2), model, data, folder, seed=seed, epochs=1, progress=False)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [learn(folder / name, seed) for seed, name in enumerate(("first", "second"), 1)]


def written(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["llm", "generate", *words, "--max-tokens", "4", "--device", "cpu", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["answers"]


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["llm", "generate", *words, "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


def test_samples_of_equal_rows_are_not_those_of_the_rows_before(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(verb, "ROWS_AT_ONCE", 4)
    (tmp_path / "same.txt").write_text("a dog\n" * 8)
    answers = [row["answer"] for row in written(["--input", str(tmp_path / "same.txt"), "--temperature", "1"], capsys)]
    assert answers[:4] != answers[4:]


def test_a_field_under_which_an_answer_is_written_is_refused(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"label": "a"}\n{"label": "b"}\n')
    said = refusal(["--template", "a {label} and{answer}", "--input", str(tmp_path / "in.jsonl")], capsys)
    assert "an answer is written beside its fields, under 'label' too" in said


def test_lines_and_tables_are_answered_as_the_texts_in_them(tmp_path, monkeypatch, capsys):
    wanted = [written(["--input", text], capsys)[0]["answer"] for text in TEXTS]
    lines = tmp_path / "in.txt"
    lines.write_text("\n".join([*TEXTS[:2], "", TEXTS[2]]) + "\n")
    table = tmp_path / "in.csv"
    table.write_text("id,text\n" + "".join(f"{n},{text}\n" for n, text in enumerate(TEXTS)))
    tabs = tmp_path / "in.tsv"
    tabs.write_text("text\n" + "\n".join(TEXTS))
    for place in (lines, table, tabs):
        answers = written(["--input", str(place)], capsys)
        assert [(row["text"], row["answer"]) for row in answers] == list(zip(TEXTS, wanted, strict=True))
    rows = "\n".join(json.dumps({"text": text}) for text in TEXTS)
    for given in ("\n".join(TEXTS), rows, f"\ufeff{rows}\r\n"):
        type_in(given.encode(), monkeypatch)
        answers = written(["--input", "-"], capsys)
        assert [(row["text"], row["answer"]) for row in answers] == list(zip(TEXTS, wanted, strict=True))


def type_in(given: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given), "utf-8"))


def test_the_column_that_pandas_counts_rows_in_is_no_text(tmp_path, capsys):
    (tmp_path / "in.csv").write_text(",text\n" + "".join(f"{n},{text}\n" for n, text in enumerate(TEXTS)))
    assert [row["text"] for row in written(["--input", str(tmp_path / "in.csv")], capsys)] == TEXTS


@pytest.mark.parametrize("text", ["Собака бежит " * 12, "一只狗在跑。" * 20, "a/" + "ы" * 200])
def test_a_text_of_any_letters_is_not_taken_for_a_path(text, capsys):
    (answer,) = written(["--input", text, "--template", "{text:cut}{answer}"], capsys)
    assert answer["text"] == text


def test_bytes_and_letters_that_are_no_text_are_refused_in_one_line(monkeypatch, capsys):
    type_in(b"a dog\n\na \xff dog\n", monkeypatch)
    said = "standard input, line 3: is not UTF-8 text. Save it as UTF-8."
    assert refusal(["--input", "-"], capsys) == f"mmprompt: error: {said}\n"
    said = "field 'text' is 'a \\udcff dog', but half a character (a lone surrogate) stands in it. Write it whole."
    assert refusal(["--input", "a \udcff dog"], capsys) == f"mmprompt: error: {said}\n"
    type_in(b'{"text": "a"}\n\n{"text":\n', monkeypatch)
    assert "standard input, line 3: is not valid JSON, as the first line is." in refusal(["--input", "-"], capsys)


def test_a_task_that_is_null_is_none_and_leaves_the_one_of_the_option(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"text": "a rose and", "task": null}\n')
    (answer,) = written(["--input", str(tmp_path / "in.jsonl")], capsys)
    assert "task" not in answer
    (record,) = verb.read_input([str(tmp_path / "in.jsonl")])
    assert verb.row_of(record, ["text"], "colours").task == "colours"


def test_several_prompts_answer_every_row_or_each_its_own(runs, tmp_path, capsys):
    both = ["--prompt", *map(str, runs), "--as-text"]
    alone = {
        run.name: [written(["--prompt", str(run), "--as-text", "--input", t], capsys)[0] for t in TEXTS] for run in runs
    }
    (tmp_path / "in.txt").write_text("\n".join(TEXTS))
    answers = written([*both, "--input", str(tmp_path / "in.txt")], capsys)
    assert [row["prompt"] for row in answers] == ["first", "second"] * 3
    for name, own in alone.items():
        found = [row["answer"] for row in answers if row["prompt"] == name]
        assert found == [row["answer"] for row in own]
    table = tmp_path / "in.csv"
    table.write_text("prompt,text\nsecond,{}\nfirst,{}\n".format(*TEXTS[:2]))
    answers = written([*both, "--input", str(table)], capsys)
    assert [row["answer"] for row in answers] == [alone["second"][0]["answer"], alone["first"][1]["answer"]]
    labels = written(["--prompt", *map(str, runs), "--input", str(table)], capsys)
    assert [(row["prompt"], set(row["probabilities"])) for row in labels] == [
        (name, {"somebody", "nobody"}) for name in ("second", "first")
    ]
    rows = tmp_path / "in.jsonl"
    rows.write_text('{"text": "a", "prompt": ["first"]}\n')
    assert "line 1: there is no prompt named \"['first']\"." in refusal([*both, "--input", str(rows)], capsys)
    table.write_text("prompt,text\nthird,a\n")
    assert "line 2: there is no prompt named 'third'. Known: first, second." in refusal(
        [*both, "--input", str(table)], capsys
    )


def test_prompts_of_two_models_are_refused_before_a_model_is_loaded(runs, tmp_path, monkeypatch, capsys):
    other = learn(tmp_path / "other", 1, f"hf:{save_language_model('gpt2', tmp_path / 'gpt2')}")
    monkeypatch.setattr(verb, "load_prompts", lambda settings: pytest.fail("a model was loaded"))
    said = refusal(["--prompt", str(runs[0]), str(other), "--input", "a"], capsys)
    assert "are of two models, but one batch has one model" in said


def test_a_killed_file_goes_on_with_the_same_samples(tmp_path, monkeypatch, capsys):
    (tmp_path / "in.txt").write_text("\n".join(f"{text} {n}" for n in range(3) for text in TEXTS))
    words = ["--input", str(tmp_path / "in.txt"), "--temperature", "1", "--max-tokens", "3", "--device", "cpu"]
    monkeypatch.setattr(verb, "ROWS_AT_ONCE", 2)
    assert main(["llm", "generate", *words, "--out", str(tmp_path / "whole.jsonl")]) == 0
    whole = (tmp_path / "whole.jsonl").read_bytes()
    part = tmp_path / "killed.jsonl.part"
    lines = whole.splitlines(keepends=True)
    part.write_bytes(b"".join(lines[:5]) + lines[5][:9])  # two batches, half of a third, and a torn row
    assert main(["llm", "generate", *words, "--out", str(tmp_path / "killed.jsonl")]) == 0
    assert (tmp_path / "killed.jsonl").read_bytes() == whole
    assert not part.exists()
    with (tmp_path / "in.txt").open("a") as lines:
        lines.write("\none more\n")
    assert main(["llm", "generate", *words, "--out", str(tmp_path / "killed.jsonl")]) == 0
    assert len((tmp_path / "killed.jsonl").read_bytes().splitlines()) == 10


def test_answers_of_other_words_of_labels_are_not_taken_for_these(tmp_path, capsys):
    rows = [
        {"text": f"a {word} {n}", "label": label} for label, word in (("a", "rose"), ("b", "face")) for n in "12345"
    ]
    (tmp_path / "ab.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "in.txt").write_text("\n".join(TEXTS))
    train = ["llm", "train", "--data", str(tmp_path / "ab.jsonl"), "--method", "hard", "--template"]
    train += ["{text:cut} {answer}", "--device", "cpu", "--verbalizer"]
    assert main([*train, "a=red", "b=blue", "--out", str(tmp_path / "one")]) == 0
    assert main([*train, "a=blue", "b=red", "--out", str(tmp_path / "other")]) == 0
    answer = ["--input", str(tmp_path / "in.txt"), "--out", str(tmp_path / "out.jsonl"), "--prompt"]
    assert main(["llm", "generate", *answer, str(tmp_path / "one"), "--device", "cpu"]) == 0
    said = refusal([*answer, str(tmp_path / "other")], capsys)
    assert "out.jsonl, line 1: holds answers of other settings or another prompt." in said


def test_an_answer_ends_before_a_stop_wherever_its_batch_goes_on():
    model = mp.load_language_model("tiny", device="cpu")
    plain = mp.LanguagePredictor(model, Prompt(mp.Template.parse("{text}{answer}")))
    rows = [TextRow({"text": text}) for text in TEXTS]
    whole = generate_texts(plain, rows, Generation(max_tokens=24))
    stop = whole[1].text[3:8]
    settings = Generation(max_tokens=24, stop=(stop,))
    cut = generate_texts(plain, rows, settings)
    assert [one.text for one in cut] == [one.text.partition(stop)[0].strip() for one in whole]
    assert cut[1].n_tokens < whole[1].n_tokens
    assert not cut[1].is_cut
    assert "".join(stream_text(plain, rows[1], settings)).strip() == cut[1].text


def test_a_penalty_for_what_was_said_is_the_same_alone_and_in_a_batch_and_repeats_less():
    model = mp.load_language_model("tiny", device="cpu")
    plain = mp.LanguagePredictor(model, Prompt(mp.Template.parse("{text}{answer}")))
    rows = [TextRow({"text": text}) for text in TEXTS]
    settings = Generation(max_tokens=30, min_tokens=30, repetition_penalty=1.5)
    batch = [one.text for one in generate_texts(plain, rows, settings)]
    assert batch == [generate_texts(plain, [row], settings)[0].text for row in rows]
    freely = [one.text for one in generate_texts(plain, rows, Generation(max_tokens=30, min_tokens=30))]
    assert sum(len(set(text.split())) for text in batch) > sum(len(set(text.split())) for text in freely)


def test_whoever_stops_listening_stops_the_answer():
    model = mp.load_language_model("tiny", device="cpu")
    plain = mp.LanguagePredictor(model, Prompt(mp.Template.parse("{text}{answer}")))
    pieces = stream_text(plain, TextRow({"text": "a rose"}), Generation(max_tokens=200, min_tokens=200))
    next(pieces)
    before = model.lm.generation_config
    pieces.close()  # returns when the answer has ended
    assert model.lm.generation_config is before


def test_a_chat_answers_with_what_was_said_before_and_survives_a_long_text(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("a rose\n\nand\n" + "word " * 400 + "\nthe\n"))
    assert main(["llm", "generate", "--chat", "--max-tokens", "3", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    first, second, third = out.splitlines()
    assert first == written_alone("a rose")
    assert second == written_alone(f"a rose\n{first}\nand")
    assert third == written_alone(f"a rose\n{first}\nand\n{second}\nthe")
    assert "turns are forgotten" in err
    assert "Mark a field with :cut" in err


def written_alone(text: str) -> str:
    model = mp.load_language_model("tiny", device="cpu")
    plain = mp.LanguagePredictor(model, Prompt(mp.Template.parse("{text}{answer}")))
    return generate_texts(plain, [TextRow({"text": text})], Generation(max_tokens=3))[0].text


def test_a_text_that_is_cut_is_counted(runs, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("a rose\n" + "word " * 400 + "\n")
    assert (
        main(["llm", "generate", "--prompt", str(runs[0]), "--input", str(tmp_path / "in.txt"), "--device", "cpu"]) == 0
    )
    assert "1 of 2 texts is too long and is cut at the end: tiny has 256 slots" in capsys.readouterr().err


def test_rows_that_are_cut_are_counted_where_they_are_learned_from(tmp_path, capsys):
    rows = [f"{label},a {label} {n}" + " word" * 300 * (n == 0) for n in range(12) for label in ("rose", "dog")]
    (tmp_path / "rows.csv").write_text("label,text\n" + "\n".join(rows))
    words = ["llm", "train", "--data", str(tmp_path / "rows.csv"), "--n-soft", "2", "--epochs", "1", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    notices = json.loads((tmp_path / "run" / "run.json").read_text())["notices"]
    said = capsys.readouterr().err
    counts = re.findall(r"(\d+) of \d+ (?:training rows|validation rows|test rows \(learned prompt\))", said)
    assert sum(map(int, counts)) == 2
    assert [one for one in notices if "training rows" in one] == [
        line.removeprefix("mmprompt: note: ") for line in said.splitlines() if "training rows" in line
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "missing.txt"], "missing.txt: cannot be read"),
        (["--input", "table.csv"], "table.csv, line 2: has no text 'text', a field of the template; it has 'a', 'b'."),
        (["--input", "notes.md"], "notes.md: is a file of a kind that is not read. Name it .txt, or .jsonl, .csv,"),
        (["--input", "a", "--stop", ""], "stop is '', but at least one character was expected."),
        (["--input", "a", "--repetition-penalty", "0"], "repetition_penalty is 0.0, but"),
        (["--chat", "--input", "a"], "Leave --input out."),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "notes.md").write_text("a text\n")
    assert message in refusal(words, capsys)


def test_a_chat_that_is_not_utf_8_is_refused_in_one_line(monkeypatch, capsys):
    type_in(b"a \xff dog\n", monkeypatch)
    assert main(["llm", "generate", "--chat", "--max-tokens", "3", "--device", "cpu"]) == 2
    assert "standard input: is not UTF-8 text" in capsys.readouterr().err


def test_control_c_ends_an_answer_and_not_the_chat(monkeypatch, capsys):
    real = chat.stream_text

    def interrupted(prompted, row, settings):
        pieces = real(prompted, row, settings)
        if row.fields["text"] == "a rose":
            yield next(pieces)
            raise KeyboardInterrupt
        yield from pieces

    monkeypatch.setattr(chat, "stream_text", interrupted)
    monkeypatch.setattr("sys.stdin", io.StringIO("a rose\nand\n"))
    assert main(["llm", "generate", "--chat", "--max-tokens", "3", "--device", "cpu"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert second == written_alone(f"a rose\n{first}\nand")  # what was said until then was not forgotten


def test_a_chat_template_holds_what_was_said_as_messages():
    model = frozen_model("llama")
    model.tokenizer.chat_template = CHAT_TEMPLATE
    template = mp.Template.parse("[[system]]{soft*1} be kind\n[[user]]{text}\n[[assistant]]{answer}")
    vector = Learned(LM_INPUT, torch.zeros(1, model.width))
    prompted = mp.LanguagePredictor(model, Prompt(template, vector))
    one, row = chat.with_history(prompted, [("hi {x}", "yes"), ("so", "no")], "and", "")
    text = model.tokenizer.decode([i for i in one.bound.encode(row.fields, 10**6) if i >= 0])
    places = [text.index(said) for said in ("be kind", "hi {x}", "yes", "so", "no", "and")]
    assert places == sorted(places)
    assert one.bound.n_soft == 1
