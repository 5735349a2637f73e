"""What prompts are worth on rows held out, against sums written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmprompt.core.learned import Prompt
from mmprompt.errors import UserError
from mmprompt.language.data import TextData, TextRow
from mmprompt.language.measure import compare_language, evaluate, measure_language
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.templates.template import Template
from mmprompt.language.templates.verbalizer import CONTENT_FREE, Verbalizer
from tests.language_models import frozen_model
from tests.reference import plain_language

TEXTS = ("a red car", "the happy dog by the tree", "fish", "a photo of a blue house", "a sad cat", "x", "tree house")
WORDS = {"one": ("dog", "cat"), "other": ("red car",), "third": ("z",)}


def label_probabilities(prompted: LanguagePredictor, text: str) -> np.ndarray:
    """Of each label the sum of the probabilities that its words have among all texts."""
    slots = prompted.bound.encode({"text": text}, prompted.model.budget)
    sums = []
    for words in WORDS.values():
        each = [
            plain_language.token_log_probs(prompted.model.lm, [(slots, [ids])]).sum().exp().item()
            for ids in prompted.bound.answers(words)
        ]
        sums.append(sum(each))
    return np.array(sums)


def test_calibration_is_that_of_the_published_code() -> None:
    """Zhao et al. 2021: probabilities of the labels are averaged over texts that say nothing, and normalised once."""
    model = frozen_model("llama", torch.float64)
    prompted = LanguagePredictor(model, Prompt(Template.parse("{text}\nIt is {answer}")), Verbalizer(WORDS))
    rows = tuple(TextRow({"text": text}, "one") for text in TEXTS)
    found = measure_language(prompted, TextData("d", rows, (), rows, tuple(sorted(WORDS))), is_calibrated=True).labels
    assert found is not None
    masses = [label_probabilities(prompted, text) for text in CONTENT_FREE]
    assert max(map(sum, masses)) > 2 * min(map(sum, masses)), "texts that count alike would show nothing"
    content_free = np.mean(masses, axis=0) / np.sum(np.mean(masses, axis=0))
    quotients = np.array([label_probabilities(prompted, text) / content_free for text in TEXTS])
    probabilities = quotients / quotients.sum(1, keepdims=True)
    assert found.predictions == tuple(probabilities.argmax(1))
    np.testing.assert_allclose(found.probabilities, probabilities.max(1), rtol=1e-9)


def test_rows_that_nothing_is_learned_from_are_measured_too() -> None:
    model = frozen_model("llama")
    rows = (TextRow({"text": "a red car"}, "one"), TextRow({"text": "fish"}, "other"))
    found = compare_language(model, {}, TextData("d", (), (), rows, ("one", "other")))
    assert [score.template for score in found.scores] == ["{soft} {text:cut}\n{answer}"]


def test_single_rows_some_of_which_have_no_label_are_refused() -> None:
    prompted = LanguagePredictor(frozen_model("llama"), Prompt(Template.parse("{text}: {answer}")), Verbalizer(WORDS))
    with pytest.raises(UserError, match="the row that begins with 'b' has no label"):
        evaluate(prompted, [TextRow({"text": "a"}, "one"), TextRow({"text": "b"})])
