"""Labels and scores of answers from a frozen language model with a prompt, held to whole rows one by one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from mmprompt.core.file import save
from mmprompt.core.learned import Given, Inserts, Learned, Prompt, Source
from mmprompt.errors import UserError
from mmprompt.language.data import TextRow
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.sources import MultitaskVectors
from mmprompt.language.templates.template import Template
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.sites import Site, Vectors
from tests.captioner_models import save_word_tokenizer
from tests.language_models import frozen_model
from tests.reference import plain_language

TEXTS = ("a red car", "the happy dog by the tree", "fish", "a photo of a blue house and a green flower", "a sad cat")
ROWS = tuple(TextRow({"text": text}) for text in TEXTS)
WORDS = {"animal": ("dog", "cat", "fish"), "thing": "red car", "other": ("x", "tree house")}


@cache
def model_of(kind: str) -> FrozenLanguageModel:
    return frozen_model(kind)


def drawn(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sources_of(n_soft: int = 0, n_kv: int = 0, kind: str = "llama") -> list[Source]:
    shape = model_of(kind).kv_shape
    assert shape is not None
    sources: list[Source] = [Learned(Site("lm"), drawn(n_soft, 32))] if n_soft else []
    for layer in range(shape[0] if n_kv else 0):
        sources.append(Learned(Site("lm.kv", layer), drawn(n_kv, 2 * shape[1] * shape[2], seed=layer)))
    return sources


def prompted_of(
    template: str = "{soft} {text}\nIt is {answer}",
    sources: Sequence[Source] | None = None,
    verbalizer: Verbalizer | None = None,
    kind: str = "llama",
) -> LanguagePredictor:
    sources = sources_of(3) if sources is None else sources
    vectors = Prompt(Template.parse(template), *sources).inserts("lm")
    n_soft = vectors[Site("lm")].values.shape[0] if vectors else 0
    prompt = Prompt(Template.parse(template).with_soft(n_soft), *sources).requires_grad_(False)
    return LanguagePredictor(model_of(kind), prompt, verbalizer)


def plain_scores(prompted: LanguagePredictor, row: TextRow, answers: list[str], task: str = "") -> list[Tensor]:
    """The log-probability of each token of each answer, read alone."""
    model = prompted.model
    vectors = prompted.vectors(task)
    given: dict[str, Any] = {
        "soft": vectors[Site("lm")].values.to(model.dtype) if Site("lm") in vectors else None,
        "learned": [v.values.to(model.dtype) for site, v in sorted(vectors.items()) if site.tower == "lm.kv"],
        "kv_shape": model.kv_shape,
        "behind": (1,) if model.name == "t5" else (),
    }
    slots = prompted.bound.encode(row.fields, model.budget)
    return [
        plain_language.token_log_probs(model.lm, [(slots, [ids])], **given) for ids in prompted.bound.answers(answers)
    ]


def plain_label_scores(prompted: LanguagePredictor, row: TextRow, task: str = "") -> Tensor:
    verbalizer = prompted.verbalizer
    found = []
    for words in verbalizer.words.values():
        scores = plain_scores(prompted, row, list(words), task)
        each = torch.stack([s.mean() if verbalizer.length_normalised else s.sum() for s in scores])
        how = verbalizer.aggregation
        found.append(each.exp().sum().log() if how == "logsumexp" else each.mean() if how == "mean" else each[0])
    return torch.stack(found).log_softmax(0)


@pytest.mark.parametrize(
    "verbalizer",
    [
        Verbalizer(WORDS),
        Verbalizer(WORDS, "mean"),
        Verbalizer(WORDS, "first"),
        Verbalizer(WORDS, length_normalised=True),
        Verbalizer({"one": ("x", "y"), "other": "z"}),  # words of one token, whose logits are all that is computed
        Verbalizer({"one": ("x", "y"), "other": "z"}, "mean"),
    ],
)
def test_labels_are_as_probable_as_their_words(verbalizer: Verbalizer) -> None:
    prompted = prompted_of("{soft} {text}\n{answer}", verbalizer=verbalizer)
    found = prompted.label_log_probs(ROWS)
    expected = torch.stack([plain_label_scores(prompted, row) for row in ROWS])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(len(ROWS), dtype=torch.float64))


@pytest.mark.parametrize("kind", ["t5", "mistral"])
@pytest.mark.parametrize("form", ["soft", "kv", "both", "none"])
def test_prompts_of_every_form_say_what_whole_rows_say(kind: str, form: str) -> None:
    sources = sources_of(2 if form in ("soft", "both") else 0, 2 if form in ("kv", "both") else 0, kind)
    prompted = prompted_of("a photo {soft} {text}: {answer}", sources, Verbalizer(WORDS), kind)
    assert prompted.n_prefix == (2 if form in ("kv", "both") else 0)
    expected = torch.stack([plain_label_scores(prompted, row) for row in ROWS])
    torch.testing.assert_close(prompted.label_log_probs(ROWS), expected, rtol=1e-9, atol=1e-9)


def test_words_of_single_tokens_are_scored_among_themselves_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    single = prompted_of("{soft} {text}\n{answer}", verbalizer=Verbalizer({"one": "x", "other": "z"}))
    assert single.words is not None
    assert single.words.tolist() == [ids[0] for ids in single.answers]
    several = prompted_of(verbalizer=Verbalizer(WORDS))
    assert several.words is None
    reader: Any = model_of("llama").reader
    head = Mock(wraps=reader.head)
    monkeypatch.setattr(reader, "head", head)
    single.classify(ROWS)
    assert head.call_count == 0, "no logits of the whole vocabulary"
    several.classify(ROWS)
    assert head.call_count == 1
    assert prompted_of().words is None


def test_the_label_is_the_most_probable_one() -> None:
    prompted = prompted_of(verbalizer=Verbalizer(WORDS))
    scores = prompted.label_log_probs(ROWS).exp()
    found = prompted.classify(ROWS)
    labels = list(WORDS)
    assert [one.label for one in found] == [labels[place] for place in scores.argmax(1).tolist()]
    assert [list(one.probabilities) for one in found] == [labels] * len(ROWS)
    assert [list(one.probabilities.values()) for one in found] == scores.tolist()
    assert len({one.label for one in found}) > 1


def test_given_answers_are_scored_row_by_row() -> None:
    prompted = prompted_of()
    answers = [["dog", "a red house"], ["cat"], ["fish", "fish", "of"], ["x"], ["the tree"]]
    found = prompted.answer_log_probs(ROWS, answers)
    for row, some, scores in zip(ROWS, answers, found, strict=True):
        expected = torch.stack([each.sum() for each in plain_scores(prompted, row, some)])
        torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-9)


def test_rows_of_many_batches_are_what_each_is_alone() -> None:
    prompted = prompted_of(verbalizer=Verbalizer(WORDS))
    many = [TextRow({"text": f"{TEXTS[n % 5]} {n}"}) for n in range(70)]
    found = prompted.label_log_probs(many)
    alone = torch.cat([prompted.label_log_probs([row]) for row in many[::7]])
    torch.testing.assert_close(found[::7], alone, rtol=1e-9, atol=1e-9)
    scores = prompted.answer_log_probs(many, [["dog", "cat"]] * 70)
    torch.testing.assert_close(scores[69], prompted.answer_log_probs(many[69:], [["dog", "cat"]])[0])


def test_no_rows_have_no_labels() -> None:
    prompted = prompted_of(verbalizer=Verbalizer(WORDS))
    assert prompted.label_log_probs([]).shape == (0, 3)
    assert prompted.classify([]) == []
    assert prompted.answer_log_probs([], []) == []


def multitask() -> MultitaskVectors:
    return MultitaskVectors.of(("colour", "kind"), drawn(3, 32), drawn(2, 3, 1, seed=1), drawn(2, 1, 32, seed=2))


def test_each_row_is_read_with_the_prompt_of_its_task() -> None:
    prompted = prompted_of(sources=[multitask()], verbalizer=Verbalizer(WORDS))
    rows = [TextRow({"text": text}, task=("colour", "kind")[n % 2]) for n, text in enumerate(TEXTS)]
    expected = torch.stack([plain_label_scores(prompted, row, row.task) for row in rows])
    torch.testing.assert_close(prompted.label_log_probs(rows), expected, rtol=1e-9, atol=1e-9)
    other = prompted.label_log_probs([TextRow({"text": TEXTS[0]}, task="kind")])
    assert (other - expected[:1]).abs().max() > 0.01
    with pytest.raises(UserError, match=r"there is no task named 'colours'\. Did you mean 'colour'\?"):
        prompted.classify([TextRow({"text": "a"}, task="colours")])


class Doubled(Source):
    """A source of one's own, which holds a prompt for each of two tasks: vectors, and twice these."""

    sites = (Site("lm"),)
    tasks = ("once", "twice")

    def forward(self, given: Given) -> Inserts:
        return {Site("lm"): Vectors((1.0 if given.task == "once" else 2.0) * drawn(3, 32))}


def test_a_source_of_ones_own_may_hold_a_prompt_for_each_task() -> None:
    prompted = prompted_of(sources=[Doubled()], verbalizer=Verbalizer(WORDS))
    assert prompted.tasks == ("once", "twice")
    rows = [TextRow({"text": TEXTS[0]}, task=task) for task in prompted.tasks]
    expected = torch.stack([plain_label_scores(prompted, row, row.task) for row in rows])
    torch.testing.assert_close(prompted.label_log_probs(rows), expected, rtol=1e-9, atol=1e-9)


def test_a_prompt_for_each_task_is_not_kept_as_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Doubled gives more than vectors of its own"):
        save(prompted_of(sources=[Doubled()]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_prompt_for_all_does_not_look_at_tasks() -> None:
    prompted = prompted_of(verbalizer=Verbalizer(WORDS))
    one, other = (prompted.label_log_probs([TextRow({"text": "a dog"}, task=task)]) for task in ("", "of any name"))
    assert torch.equal(one, other)


def test_a_field_that_may_be_cut_leaves_room_for_prompt_and_answer() -> None:
    sources = sources_of(4, 3)
    prompted = prompted_of("{soft} {text:cut}\n{answer}", sources, Verbalizer(WORDS))
    longest = max(map(len, prompted.answers))
    question = prompted.question({"text": "a red car " * 40}, prompted.answers)
    assert prompted.model.budget == 48
    assert len(question.slots) + longest + 3 == 48
    assert question.slots[-1] == prompted.bound.encode({"text": "a"}, 48)[-1]
    assert len(prompted.classify([TextRow({"text": "a red car " * 40})])) == 1
    with pytest.raises(UserError, match="soft vectors included, but there is room for 39 before the answer"):
        prompted_of("{soft} {text}\n{answer}", sources, Verbalizer(WORDS)).classify([TextRow({"text": "car " * 60})])


def test_a_missing_field_is_named() -> None:
    prompted = prompted_of(verbalizer=Verbalizer(WORDS))
    for given, shown in (({"texts": "a"}, "'texts'"), ({}, "none"), ({"a": "", "b": ""}, "'a', 'b'")):
        with pytest.raises(UserError) as caught:
            prompted.predict(given)
        assert str(caught.value) == (
            f"the field 'text' is missing: the template reads it, but the row has {shown}. "
            "Give 'text' too, or write the template's fields as the data names them."
        )


def test_a_prompt_of_answers_has_no_labels() -> None:
    for ask in (LanguagePredictor.classify, LanguagePredictor.label_log_probs):
        with pytest.raises(UserError) as caught:
            ask(prompted_of(), ROWS)
        assert str(caught.value) == ("this prompt generates text and has no labels to tell apart. Use generate.")


def test_vectors_that_a_template_or_a_model_has_no_place_for_are_refused() -> None:
    prompt = Prompt(Template.parse("{soft*4} {text} {answer}"), *sources_of(3))
    with pytest.raises(UserError) as caught:
        LanguagePredictor(model_of("llama"), prompt)
    assert str(caught.value) == (
        "the template has 4 soft slots, but the prompt has 3 vectors. Use the template that the prompt was learned in."
    )
    with pytest.raises(UserError, match=r"the vectors of lm\.input are 32 wide, but opt_narrow takes 16"):
        prompted_of(kind="opt_narrow")


def test_a_word_that_a_tokenizer_does_not_know_is_refused(tmp_path: Path) -> None:
    save_word_tokenizer(tmp_path)
    model = FrozenLanguageModel("gpt2", frozen_model("gpt2").lm, AutoTokenizer.from_pretrained(tmp_path))
    prompt = Prompt(Template.parse("{text} {answer}"))
    assert LanguagePredictor(model, prompt, Verbalizer({"a": "dog", "b": "cat"})).answers
    with pytest.raises(UserError, match=r"^the tokenizer of gpt2 does not know all of 'dog naïve', a word of a label"):
        LanguagePredictor(model, prompt, Verbalizer({"a": "dog naïve", "b": "cat"}))


def test_words_that_are_the_same_tokens_to_a_model_are_refused() -> None:
    model = frozen_model("gpt2")
    from tokenizers import normalizers

    model.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    prompt = Prompt(Template.parse("{text} {answer}"))
    with pytest.raises(UserError) as caught:
        LanguagePredictor(model, prompt, Verbalizer({"a": "Dog", "b": "dog"}))
    assert str(caught.value) == (
        "'Dog' and 'dog' stand for two labels, but are the same tokens to this model. Choose other words."
    )
