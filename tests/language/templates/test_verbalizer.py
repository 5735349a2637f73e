"""Verbalizers, calibration and ensembles, against sums written out by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmprompt.errors import UserError
from mmprompt.language.templates.verbalizer import CONTENT_FREE, Verbalizer, calibrate, ensemble
from tests.text_tokenizers import byte_level

WORDS = {"positive": ["great", "good"], "negative": "bad"}
LOG_PROBS = torch.tensor([[0.2, 0.1, 0.25], [0.05, 0.01, 0.4]], dtype=torch.float64).log()


def probabilities(*weights: float) -> list[float]:
    return [weight / sum(weights) for weight in weights]


def test_labels_and_words_keep_their_order() -> None:
    verbalizer = Verbalizer(WORDS)
    assert verbalizer.labels == ("positive", "negative")
    assert verbalizer.flat == ("great", "good", "bad")
    assert verbalizer.words["negative"] == ("bad",)
    assert Verbalizer.from_dict(json.loads(json.dumps(verbalizer.to_dict()))) == verbalizer


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [probabilities(0.3, 0.25), probabilities(0.06, 0.4)]),
        ({"aggregation": "mean"}, [probabilities(0.02**0.5, 0.25), probabilities(0.0005**0.5, 0.4)]),
        (
            {"length_normalised": True},
            [probabilities(0.2 + 0.1**0.5, 0.25 ** (1 / 3)), probabilities(0.05 + 0.01**0.5, 0.4 ** (1 / 3))],
        ),
    ],
)
def test_words_of_a_label_count_together(options: dict[str, Any], expected: list[list[float]]) -> None:
    scores = Verbalizer(WORDS, **options).label_scores(LOG_PROBS, [1, 2, 3])
    assert torch.allclose(scores.exp(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12)


def test_the_first_word_alone_is_scored() -> None:
    verbalizer = Verbalizer(WORDS, aggregation="first")
    assert verbalizer.flat == ("great", "bad")
    scores = verbalizer.label_scores(LOG_PROBS[:, [0, 2]], [1, 1])
    assert torch.allclose(scores.exp()[0], torch.tensor(probabilities(0.2, 0.25), dtype=torch.float64))


def test_scores_carry_a_gradient_to_every_word() -> None:
    word_log_probs = LOG_PROBS.clone().requires_grad_()
    Verbalizer(WORDS).label_scores(word_log_probs, [1, 1, 1])[:, 0].sum().backward()
    assert word_log_probs.grad is not None
    assert bool((word_log_probs.grad != 0).all())


def test_words_of_several_tokens_and_words_that_begin_others_are_said() -> None:
    tokenizer = byte_level()
    verbalizer = Verbalizer({"a": ["movie", "bad"], "b": "bad film"})
    answers = [tuple(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) for word in verbalizer.flat]
    assert verbalizer.describe(answers, tokenizer) == (
        "'bad film' is 2 tokens (' bad', ' film'), scored by the sum of their log-probabilities.",
        "'bad' begins 'bad film' and can never be less probable than it.",
    )
    assert len(verbalizer.describe(answers, tokenizer, is_last=False)) == 1  # what comes behind may say otherwise
    notes = Verbalizer(verbalizer.words, length_normalised=True).describe(answers, tokenizer)
    assert notes == ("'bad film' is 2 tokens (' bad', ' film'), scored by the mean of their log-probabilities.",)


def test_words_that_the_model_cannot_tell_apart_are_refused() -> None:
    with pytest.raises(UserError) as raised:
        Verbalizer({"a": "Good", "b": "good"}).describe([(7,), (7,)], byte_level())
    assert str(raised.value) == (
        "'Good' and 'good' stand for two labels, but are the same tokens to this model. Choose other words."
    )


def test_calibration_divides_by_what_says_nothing() -> None:
    log_probs = torch.tensor([[0.7, 0.3], [0.55, 0.45]], dtype=torch.float64).log()
    reference = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.4, 0.6]], dtype=torch.float64).log()
    expected = [probabilities(0.7 / 0.6, 0.3 / 0.4), probabilities(0.55 / 0.6, 0.45 / 0.4)]
    assert torch.allclose(
        calibrate(log_probs, reference).exp(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12
    )
    assert len(CONTENT_FREE) == 3


@given(st.lists(st.floats(-20, 0), min_size=2, max_size=6))
def test_a_text_that_says_nothing_is_calibrated_to_even_chances(scores: list[float]) -> None:
    log_probs = torch.tensor([scores], dtype=torch.float64).log_softmax(-1)
    assert torch.allclose(calibrate(log_probs, log_probs).exp(), torch.full_like(log_probs, 1 / len(scores)))


FIRST = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64).log()
SECOND = torch.tensor([[0.1, 0.5, 0.4]], dtype=torch.float64).log()
THIRD = torch.tensor([[0.2, 0.35, 0.45]], dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("how", "weights", "expected"),
    [
        ("mean-log", None, probabilities(0.06**0.5, 0.15**0.5, 0.04**0.5)),
        ("mean-prob", None, [0.35, 0.4, 0.25]),
        ("mean-prob", [3.0, 1.0], [0.475, 0.35, 0.175]),
        ("mean-prob", [0.0, 2.0], [0.1, 0.5, 0.4]),
        ("mean-log", [0.0, 2.0], [0.1, 0.5, 0.4]),
        ("vote", [3.0, 1.0], [0.75, 0.25, 0.0]),
    ],
)
def test_templates_are_joined(how: Any, weights: list[float] | None, expected: list[float]) -> None:
    found = ensemble([FIRST, SECOND], weights, how).exp()
    assert torch.allclose(found, torch.tensor([expected], dtype=torch.float64), atol=2e-6 if how == "vote" else 1e-12)


def test_equal_votes_are_parted_by_the_mean_probability() -> None:
    found = ensemble([FIRST, SECOND, THIRD], how="vote")
    assert torch.allclose(found.exp(), torch.full((1, 3), 1 / 3, dtype=torch.float64), atol=1e-5)
    assert found.argmax().item() == 1  # 0.3 + 0.5 + 0.35 is the most


def test_a_vote_of_certain_templates_stays_finite() -> None:
    sure = torch.tensor([[0.0, -math.inf]]).clamp(min=-200)
    assert bool(ensemble([sure, sure], how="vote").isfinite().all())
    assert bool(ensemble([sure, sure], how="mean-prob").isfinite().all())


@pytest.mark.parametrize("how", ["mean-log", "mean-prob", "vote"])
def test_a_certain_template_of_weight_0_counts_for_nothing(how: Any) -> None:
    certain = torch.tensor([[0.0, -math.inf, -math.inf]], dtype=torch.float64)
    assert torch.equal(ensemble([FIRST, certain], [2.0, 0.0], how), ensemble([FIRST], [2.0], how))


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ({"a": "x"}, {}, "the number of labels is 1, but two or more are needed. Give words for each."),
        ({"a": "x", "b": []}, {}, "the label 'b' has no word, but one at least is needed. Add one to the verbalizer."),
        ({"a": "x", "b": [" "]}, {}, "a word of the label 'b' is empty. Write a word, or remove it."),
        ({"a": "x", "b": [3]}, {}, "a word of the label 'b' is 3, but a text was expected. Write it as one."),
        ({"a": "x", "b": ["y", " x"]}, {}, "the word ' x' stands for 'a' and 'b'. Give each label words of its own."),
        ({"a": ["x", "x"], "b": "y"}, {}, "a word of the label 'a' stands twice: 'x', 'x'. Write it once."),
        (
            {"a": "x", "b": ["y", "x"]},
            {"aggregation": "first"},
            "the word 'x' stands for 'a' and 'b'. Give each label words of its own.",
        ),
        ({"a": "x", "b": "y"}, {"aggregation": "maen"}, "there is no aggregation named 'maen'. Did you mean 'mean'?"),
    ],
)
def test_bad_words_are_refused(words: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        Verbalizer(words, **options)
    assert str(raised.value) == message


def test_a_bad_file_is_refused() -> None:
    with pytest.raises(UserError, match=r"^verbalizer: lacks the key 'words'. Add it.$"):
        Verbalizer.from_dict({})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ensemble([]), "there are no templates to join, but one at least is needed. Give one."),
        (
            lambda: ensemble([FIRST], [1.0, 2.0]),
            "weights is [1.0, 2.0], but 1 of 0 or more are needed, finite and not all 0. Give one for each template.",
        ),
        (
            lambda: ensemble([FIRST], [0.0]),
            "weights is [0.0], but 1 of 0 or more are needed, finite and not all 0. Give one for each template.",
        ),
        (
            lambda: ensemble([FIRST, SECOND], [1.0, math.nan]),
            "weights is [1.0, nan], but 2 of 0 or more are needed, finite and not all 0. Give one for each template.",
        ),
        (
            lambda: ensemble([FIRST], [math.inf]),
            "weights is [inf], but 1 of 0 or more are needed, finite and not all 0. Give one for each template.",
        ),
        (
            lambda: ensemble([FIRST], how="votes"),  # type: ignore[arg-type]
            "there is no way to join templates named 'votes'. Did you mean 'vote'?",
        ),
        (
            lambda: calibrate(FIRST, FIRST[:0]),
            'there are no content-free texts, but calibration needs one. Give one such as "N/A".',
        ),
    ],
)
def test_what_cannot_be_joined_is_refused(call: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        call()
    assert str(raised.value) == message
