"""Templates that go on behind the answer, and answers in several places: the likelihood of the whole text."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprompt.core.fit import fit
from mmprompt.core.learned import Prompt
from mmprompt.core.soft import PromptTuning
from mmprompt.errors import UserError
from mmprompt.language.data import TextData, TextRow
from mmprompt.language.explain import ablate
from mmprompt.language.generation import generate_texts
from mmprompt.language.knowledge import calibrate_words
from mmprompt.language.measure import measure_language
from mmprompt.language.predictor import LanguagePredictor, classify_texts, load_prompted
from mmprompt.language.task import LanguageProblem
from mmprompt.language.templates.template import Template
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.decoder.model import FrozenLanguageModel
from tests.language_models import family_model, family_tokenizer, frozen_model, tolerance_of
from tests.models.decoder.test_whole_rows import model_of as whole_row_model
from tests.reference import plain_language

WORDS = {"animal": ("cat", "a dog"), "thing": ("car",)}
ROWS = tuple(
    TextRow({"text": text, "more": more}, label)
    for text, more, label in (
        ("a red photo", "of a cat", "animal"),
        ("blue", "it is there", "thing"),
        ("the green house is", "not a tree", "thing"),
    )
)
DATA = TextData("small", ROWS, ROWS[:1], ROWS, ("animal", "thing"), verbalizer=WORDS)


@cache
def model_of(kind: str) -> FrozenLanguageModel:
    return frozen_model(kind)


def predictor(template: str, kind: str = "llama", words: Any = None, **settings: Any) -> LanguagePredictor:
    return LanguagePredictor(model_of(kind), Prompt(Template.parse(template)), Verbalizer(words or WORDS, **settings))


def plain_score(model: FrozenLanguageModel, before: str, rest: str) -> tuple[float, int]:
    """The log-probability of all tokens behind `before` in one text, by the model's own forward, and their number."""
    ids, n_before = (
        torch.tensor([*model.start_ids, *model.tokenizer(text, add_special_tokens=False)["input_ids"]])
        for text in (before + rest, before)
    )
    log_probs = model.lm(ids[None], use_cache=False).logits[0].log_softmax(-1)
    asked = range(len(n_before), len(ids))
    return sum(log_probs[place - 1, ids[place]].item() for place in asked), len(asked)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt", "mistral", "gemma2"])
@pytest.mark.parametrize("is_mean", [False, True])
def test_a_label_is_as_likely_as_the_whole_text_with_its_word_in_place(kind: str, is_mean: bool) -> None:
    model = model_of(kind)
    prompted = predictor("{text} is {answer} , {more} .", kind, aggregation="logsumexp", length_normalised=is_mean)
    found = prompted.label_log_probs(ROWS)
    for row, scores in zip(ROWS, found, strict=True):
        before = f"{row.fields['text']} is"
        of_words = [plain_score(model, before, f" {word} , {row.fields['more']} .") for word in ("cat", "a dog", "car")]
        values = torch.tensor([score / n if is_mean else score for score, n in of_words], dtype=torch.float64)
        expected = torch.stack([values[:2].logsumexp(0), values[2]]).log_softmax(0)
        torch.testing.assert_close(scores, expected, rtol=0, atol=20 * tolerance_of(kind).value)


def test_it_is_so_of_a_model_that_reads_whole_rows() -> None:
    model = whole_row_model("Mamba")
    prompted = LanguagePredictor(model, Prompt(Template.parse("{text} is {answer} , {more} .")), Verbalizer(WORDS))
    row = ROWS[0].fields
    scores = [plain_score(model, f"{row['text']} is", f" {word} , {row['more']} .")[0] for word in ("cat", "a dog")]
    (found,) = prompted.answer_log_probs([ROWS[0]], [["cat", "a dog"]])
    torch.testing.assert_close(found, torch.tensor(scores, dtype=found.dtype), rtol=1e-5, atol=1e-5)


def test_a_word_stands_in_every_place_and_divided_ones_each_in_theirs() -> None:
    model, row = model_of("llama"), ROWS[0].fields
    prompted = predictor("{text}: the {answer} of {more} and {answer} .", words={"one": "cat", "two": "a dog|tree"})
    (found,) = prompted.answer_log_probs(ROWS[:1], [["cat", "a dog|tree"]])
    expected = [
        plain_score(model, f"{row['text']}: the", f" {one} of {row['more']} and {other} .")[0]
        for one, other in (("cat", "cat"), ("a dog", "tree"))
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)
    with pytest.raises(UserError, match="has 3 parts, but the template has 2 places for it"):
        prompted.answer_log_probs(ROWS[:1], [["a|b|c"]])


def test_loss_and_gradient_are_those_of_whole_rows_with_vectors_before_and_behind() -> None:
    task = DATA.task(template="{soft} {text} is {answer} , {soft*1} {more} {soft*1} of {answer} .")
    prompted = task.predictor(PromptTuning(2), model_of("llama"), 1)
    prompted.prompt.double()
    problem = LanguageProblem(prompted, prompted.prompt, ROWS, (), "choices")
    soft = next(iter(prompted.vectors().values())).values
    assert soft.shape[0] == 4
    losses = []
    for row in ROWS:
        slots, answers = prompted.bound.ask(row.fields, 200, prompted.verbalizer.flat)
        scores = []
        for answer in answers:
            logits = plain_language.answer_logits(prompted.model.lm, slots, answer, soft)
            asked = [(place, token) for place, token in enumerate(answer) if token >= 0]
            scores.append(sum(logits.log_softmax(-1)[place, token] for place, token in asked))
        of_labels = torch.stack([torch.stack(scores[:2]).logsumexp(0), scores[2]])
        losses.append(-of_labels.log_softmax(0)[("animal", "thing").index(row.label or "")])
    (values,) = problem.module.parameters()
    expected = torch.stack(losses).mean()
    (loss,) = problem.step([0, 1, 2], 0).losses.values()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    ours, theirs = (torch.autograd.grad(value, values)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)  # Llama's norms are taken in single precision
    assert (ours.abs().max(1).values > 1e-4).all()


def test_it_is_learned_saved_measured_and_explained_like_any_other(tmp_path: Path) -> None:
    task = DATA.task(template="{soft} {text} is {answer} , {more:cut} .")
    result = fit(
        PromptTuning(2), frozen_model("llama", torch.float32), task, tmp_path / "run", epochs=15, lr=0.1, progress=False
    )
    losses = [record["loss"] for record in result.history]
    assert losses[-1] < 0.8 * losses[0]
    loaded = load_prompted(tmp_path / "run", result.predictor.model)
    assert torch.equal(loaded.label_log_probs(ROWS), result.predictor.label_log_probs(ROWS))
    assert measure_language(loaded, DATA, is_calibrated=True).labels is not None
    assert calibrate_words(loaded, ROWS, 0.0).predict(list(ROWS))[0].probability > 0
    assert len(ablate(loaded, ROWS)) == 2
    other = LanguagePredictor(loaded.model, Prompt(Template.parse("{text} {answer}")), Verbalizer(WORDS))
    each = [loaded, other, result.predictor]
    for one, row, found in zip(each, ROWS, classify_texts(each, ROWS), strict=True):
        assert found.probabilities == pytest.approx(one.predict(row).probabilities, abs=1e-5)


def test_fields_on_both_sides_are_cut_until_all_fits() -> None:
    prompted = predictor("{text:cut} is {answer} , {more:cut} .")
    long = {"text": "a red photo of a tree " * 9, "more": "a blue house " * 9}
    room = prompted.model.budget
    question = prompted.asked(long)
    assert len(question.slots) + max(map(len, question.answers)) == room
    assert prompted.n_cut([TextRow(long), ROWS[0]], 5) == 1
    with pytest.raises(UserError, match="Mark a field with :cut"):
        predictor("{text} is {answer} , {more} .").asked(long)


@pytest.mark.parametrize(
    ("template", "words", "problem"),
    [
        ("{text} is {answer} .", None, "there are no labels. End it with {answer} to have a text written."),
        ("{text} is {answer} {soft*2}", WORDS, "vectors stand behind all else in the template, where none is read."),
    ],
)
def test_what_cannot_be_is_refused(template: str, words: Any, problem: str) -> None:
    verbalizer = None if words is None else Verbalizer(words)
    with pytest.raises(UserError) as caught:
        LanguagePredictor(model_of("llama"), Prompt(Template.parse(template)), verbalizer)
    assert problem in str(caught.value)


def test_no_text_is_written_into_the_middle_of_one() -> None:
    with pytest.raises(UserError, match="labels are predicted and no text is written"):
        generate_texts(predictor("{text} is {answer} ."), [ROWS[0]])


MASKS = {"t5": ["<extra_id_0>", "<extra_id_1>"], "bart": ["<mask>"]}


@cache
def masked(kind: str) -> FrozenLanguageModel:
    tokenizer = family_tokenizer(kind)
    if kind == "bart":
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
    else:
        tokenizer.add_tokens(MASKS[kind], special_tokens=True)
    lm = family_model(kind, len(tokenizer)).double().eval().requires_grad_(False)
    return FrozenLanguageModel(kind, lm, tokenizer)


@pytest.mark.parametrize("kind", MASKS)
def test_an_encoder_reads_what_stands_behind_around_a_mask(kind: str) -> None:
    model, row = masked(kind), ROWS[0].fields
    places = [MASKS[kind][n % len(MASKS[kind])] for n in range(2)]
    prompted = LanguagePredictor(
        model, Prompt(Template.parse("{text} is {answer} , {more} {answer} .")), Verbalizer(WORDS)
    )
    read = model.tokenizer(f"{row['text']} is {places[0]} , {row['more']} {places[1]} .")["input_ids"]

    def plain(word: str) -> Tensor:
        ids = model.tokenizer(word, add_special_tokens=False)["input_ids"]
        marks = [model.tokenizer.convert_tokens_to_ids([place]) if kind == "t5" else [] for place in places]
        answer = [*marks[0], *ids, *marks[1], *ids]
        return plain_language.answer_logits(model.lm, read, answer).log_softmax(-1)[range(len(answer)), answer].sum()

    (found,) = prompted.answer_log_probs(ROWS[:1], [["cat", "a dog"]])
    torch.testing.assert_close(found, torch.stack([plain("cat"), plain("a dog")]), rtol=1e-8, atol=1e-8)
    whole = fit(
        PromptTuning(2), model, replace(DATA, template="{soft} {text} {answer} {more} ."), epochs=2, progress=False
    )
    assert whole.predictor.predict(ROWS[0]).probability > 0


def test_an_encoder_without_a_mask_takes_nothing_behind() -> None:
    with pytest.raises(UserError, match="reads a mask in its place, but this model's tokenizer has none"):
        predictor("{text} is {answer} .", "t5")
