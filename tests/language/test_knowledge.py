"""Words of labels are calibrated and left out by their priors, as a plain loop over words and texts does it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmprompt.core.file import save
from mmprompt.core.learned import Prompt
from mmprompt.errors import UserError
from mmprompt.language.data import TextRow
from mmprompt.language.knowledge import calibrate_words
from mmprompt.language.predictor import LanguagePredictor, load_prompted
from mmprompt.language.templates.template import Template
from mmprompt.language.templates.verbalizer import Verbalizer
from tests.language_models import frozen_model
from tests.reference import plain_language

WORDS = {"good": ("car", "red", "dog ball"), "bad": ("cup", "sky", "blue")}
TEXTS = ("a car", "the dog is here", "a red ball and a cup")


@pytest.fixture(scope="module")
def prompted() -> LanguagePredictor:
    verbalizer = Verbalizer(WORDS, aggregation="mean")
    return LanguagePredictor(frozen_model("gpt2"), Prompt(Template.parse("{text} is {answer}")), verbalizer)


def probability(prompted: LanguagePredictor, text: str, word: str) -> float:
    """Of a word after a text, by the library's own forward over the whole row."""
    slots = prompted.bound.encode({"text": text}, 48)
    (answer,) = prompted.bound.answers([word])
    return plain_language.token_log_probs(prompted.model.lm, [(slots, [answer])]).sum().exp().item()


def test_priors_are_divided_out_and_rare_words_left_out(prompted: LanguagePredictor) -> None:
    rows = [TextRow({"text": text}) for text in TEXTS]
    found = calibrate_words(prompted, rows, cutoff=0.5)
    priors = {w: sum(probability(prompted, t, w) for t in TEXTS) / 3 for some in WORDS.values() for w in some}
    rare = sorted(priors, key=lambda word: priors[word])[:3]
    kept = {
        label: tuple(w for w in some if w not in rare or w == max(some, key=lambda word: priors[word]))
        for label, some in WORDS.items()
    }
    assert found.verbalizer.words == kept
    assert kept != WORDS
    scores = torch.tensor(
        [
            sum(torch.tensor(probability(prompted, "a dog", w) / priors[w]).log().item() for w in some) / len(some)
            for some in kept.values()
        ],
        dtype=torch.float64,
    )
    (log_probs,) = found.label_log_probs([TextRow({"text": "a dog"})])
    torch.testing.assert_close(log_probs, scores.log_softmax(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("template", ["{text} is {answer}", "{text} is {answer} to a dog"])
def test_what_is_calibrated_by_one_text_says_nothing_of_that_text(prompted: LanguagePredictor, template: str) -> None:
    verbalizer = Verbalizer(WORDS, aggregation="mean", length_normalised=True)
    measured = LanguagePredictor(prompted.model, Prompt(Template.parse(template)), verbalizer)
    rows = [TextRow({"text": "a red ball"})]
    found = calibrate_words(measured, rows, cutoff=0).label_log_probs(rows)
    torch.testing.assert_close(found.exp(), torch.full((1, 2), 0.5), check_dtype=False)


def test_a_prompt_file_keeps_the_priors(prompted: LanguagePredictor, tmp_path: Path) -> None:
    found = calibrate_words(prompted, [TextRow({"text": text}) for text in TEXTS], cutoff=0.0)
    assert found.verbalizer.words == WORDS
    save(found, tmp_path)
    assert load_prompted(tmp_path, prompted.model).verbalizer == found.verbalizer


def test_what_cannot_be_calibrated_is_refused(prompted: LanguagePredictor) -> None:
    with pytest.raises(UserError, match=r"there are none. Give some rows"):
        calibrate_words(prompted, [])
    with pytest.raises(UserError, match="cutoff is 1"):
        calibrate_words(prompted, [TextRow({"text": "a"})], 1.0)
    with pytest.raises(UserError, match="one for each of the 6 words is needed"):
        Verbalizer(WORDS, log_priors=(0.0,))
