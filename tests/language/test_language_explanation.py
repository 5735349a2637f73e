"""What a language model's prompt is said to have learned, on small models and against plain definitions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mmprompt as mp
from mmprompt.core.learned import Learned, Prompt
from mmprompt.errors import UserError
from mmprompt.language.data import TextData, TextRow, sample_shots
from mmprompt.language.explain import ablate
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.templates.template import Template
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.sites import Site
from mmprompt.reports.sections import labels_section
from tests.language_models import frozen_model

WORDS = Verbalizer({"good": "good", "bad": "bad"})
ROWS = [TextRow({"text": "a good film"}, "good"), TextRow({"text": "a bad and long day"}, "bad")] * 2


@pytest.fixture(scope="module")
def data() -> TextData:
    rows = sample_shots(mp.load_texts("somebody"), 4, 1)
    return replace(rows, test=rows.test[::20])


def test_a_run_of_labels_is_explained_with_its_drift_and_in_words(data: TextData, tmp_path: Path) -> None:
    mp.fit(mp.PromptTuning(3), "tiny", data, out=tmp_path / "run", epochs=2, progress=False)
    told = mp.explain(tmp_path / "run", data, to_words=True)
    names = [section.name for section in told.sections]
    assert names == "words drift worth heard changes maps calibration labels next in_words".split()
    assert len(told.tables["words"]) == len(told.tables["drift"]) == len(told.tables["worth"]) == 3
    assert all(-1 <= row["cosine"] <= 1 for row in told.tables["drift"])
    right = mp.load(tmp_path / "run").label_log_probs(data.test).argmax(1)
    labels = sorted({row.label for row in data.test})
    share = sum(labels[place] == row.label for place, row in zip(right.tolist(), data.test, strict=True)) / len(
        data.test
    )
    assert f"Right in {100 * share:.1f} % of {len(data.test)} rows held out" in told.headline
    words = {row[""]: row["right"] for row in told.tables["in_words"]}
    assert words["soft prompt"] == pytest.approx(share)
    assert told.save(tmp_path / "told").exists()
    assert mp.explain(tmp_path / "run").tables["drift"]  # the data that the run names


def test_vectors_beside_terms_have_their_drift_too(data: TextData, tmp_path: Path) -> None:
    data = replace(data, train=data.train[:4], val=(), test=data.test[:2])
    mp.fit(mp.PromptTuning(2) + mp.language.LoRA(rank=1), "tiny", data, out=tmp_path, epochs=1, progress=False)
    told = mp.explain(tmp_path, data)
    assert len(told.tables["drift"]) == len(told.tables["words"]) == 2


def prefixed(model: FrozenLanguageModel, values: torch.Tensor) -> LanguagePredictor:
    sources = [Learned(Site("lm.kv", layer), each) for layer, each in enumerate(values)]
    return LanguagePredictor(model, Prompt(Template.parse("{text} {answer}"), *sources).double(), WORDS)


def test_keys_and_values_are_left_out_in_every_block_at_once() -> None:
    model = frozen_model("llama")
    n_layers, n_heads, width = model.kv_shape
    values = torch.randn(n_layers, 3, 2 * n_heads * width, generator=torch.Generator().manual_seed(0))
    whole, left = prefixed(model, values), prefixed(model, values[:, [0, 2]])
    wanted = torch.tensor([WORDS.labels.index(row.label) for row in ROWS])
    losses = [torch.nn.functional.cross_entropy(one.label_log_probs(ROWS), wanted).item() for one in (whole, left)]
    found = ablate(whole, ROWS)
    assert len(found) == 3
    assert found[1].loss == pytest.approx(losses[1] - losses[0], abs=1e-5)
    assert abs(found[1].loss) > 1e-5


def test_of_answers_a_vector_is_worth_what_a_token_costs_more_without() -> None:
    model = frozen_model("llama")
    rows = [TextRow({"text": "a good film"}, answer="a long day"), TextRow({"text": "a bad day"}, answer="good")]
    values = torch.randn(2, model.width, generator=torch.Generator().manual_seed(3))
    pair = []
    for each in (values, values[1:]):
        template = Template.parse("{soft} {text} {answer}").with_soft(len(each))
        pair.append(LanguagePredictor(model, Prompt(template, Learned(Site("lm"), each)).double()))
    n_tokens = sum(len(pair[0].bound.answers((row.answer,))[0]) for row in rows)
    costs = [-sum(float(p.sum()) for p in one.answer_log_probs(rows, [[row.answer] for row in rows])) for one in pair]
    found = ablate(pair[0], rows)
    assert found[0].loss == pytest.approx((costs[1] - costs[0]) / n_tokens, abs=1e-6)
    assert found[0].accuracy is None
    data = TextData("rows", tuple(rows), (), tuple(rows))
    told = mp.explain(pair[0], data)
    assert [section.name for section in told.sections] == ["words", "worth", "heard", "maps"]
    assert "nats" in told.headline


def test_an_empty_part_and_no_data_are_refused(data: TextData) -> None:
    model = frozen_model("llama")
    prompted = prefixed(model, torch.zeros(model.kv_shape[0], 1, 2 * model.kv_shape[1] * model.kv_shape[2]))
    with pytest.raises(UserError, match="Give `data`"):
        mp.explain(prompted)
    with pytest.raises(UserError, match=r"the val part of .* is empty"):
        mp.explain(prompted, replace(data, val=()), split="val")


def test_rows_with_other_labels_or_with_answers_are_refused() -> None:
    model = frozen_model("llama")
    prompted = LanguagePredictor(model, Prompt(Template.parse("{text} {answer}")), WORDS)
    for label, answer, message in (("q", None, "no label of this prompt named 'q'"), (None, "a", "have answers")):
        rows = (TextRow({"text": "a good film"}, label, answer),)
        with pytest.raises(UserError, match=message):
            mp.explain(prompted, TextData("other", rows, (), rows, () if label is None else (label, "r")))


def test_a_row_without_any_tokens_is_explained_too(tmp_path: Path) -> None:
    model = frozen_model("llama")
    rows = (TextRow({"text": "?!"}, "good"), *ROWS)
    template = Template.parse("{soft*2}{text:cut:rstrip}{answer}")
    prompt = Prompt(template, Learned(Site("lm"), torch.ones(2, model.width))).double()
    told = mp.explain(LanguagePredictor(model, prompt, WORDS), TextData("rows", rows, (), rows, ("bad", "good")))
    assert told.tables["maps"]
    assert told.save(tmp_path).exists()


def test_a_training_row_with_a_wrong_label_is_found_and_tokens_are_spelled_in_full(tmp_path: Path) -> None:
    kinds = {"good": "a good film of a good day", "bad": "bad weather and bad food"}
    rows = [TextRow({"text": f"{text} {n}"}, label) for n in range(12) for label, text in kinds.items()]
    wrong = replace(rows[6], label="bad")
    data = TextData("rows", (*rows[:6], wrong, *rows[7:]), (), tuple(rows[:4]), labels=("bad", "good"))
    template = Template.parse("{soft*2} {text} {answer}")
    model = frozen_model("llama")
    values = torch.randn(2, model.width, generator=torch.Generator().manual_seed(3))
    told = mp.explain(LanguagePredictor(model, Prompt(template, Learned(Site("lm"), values)).double(), WORDS), data)
    (found,) = told.tables["labels"]
    assert found["row"] == wrong.fields["text"]
    assert (found["labelled"], found["looks like"]) == ("bad", "good")
    without, learned = told.tables["maps"][:2]
    assert (without["read with"], learned["read with"]) == ("no prompt", "learned")
    assert without["the prompt's share"] == 0 < learned["the prompt's share"] < 1
    assert all(word in rows[0].fields["text"] + rows[1].fields["text"] for word, _ in without["speak most"])
    assert (told.save(tmp_path).parent / "maps_1.png").stat().st_size > 1000


def test_labels_that_features_tell_nothing_of_are_not_doubted() -> None:
    generator = torch.Generator().manual_seed(0)
    items = [(f"row {n}", "abcd"[n % 4]) for n in range(40)]
    told = labels_section(items, lambda places: torch.randn(len(places), 8, generator=generator), "row")
    assert told.said.startswith("Not looked for")
    assert told.rows == ()
