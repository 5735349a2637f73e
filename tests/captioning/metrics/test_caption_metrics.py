from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmprompt.captioning.metrics.caption_metrics import (
    JAVA_METRICS,
    distinct_ratio,
    java_score,
    mean_length,
    score_captions,
)
from mmprompt.captioning.metrics.tokens import tokenize
from mmprompt.errors import UserError

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    return json.loads((FIXTURES / "captions.json").read_text())


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """Of pycocoevalcap with its Java tokenizer, by tests/captioning/metrics/fixtures/score_captions.py."""
    return json.loads((FIXTURES / "expected.json").read_text())


def test_the_fixture_is_large_enough(written: dict[str, Any]) -> None:
    assert len(written["captions"]) + sum(map(len, written["references"].values())) >= 50


def test_tokens_are_those_of_the_java_tokenizer(written: dict[str, Any], expected: dict[str, Any]) -> None:
    for key, caption in written["captions"].items():
        assert " ".join(tokenize(caption)) == expected["tokens"]["captions"][key]
    for key, texts in written["references"].items():
        assert [" ".join(tokenize(text)) for text in texts] == expected["tokens"]["references"][key]


def test_scores_are_those_that_pycocoevalcap_gave(written: dict[str, Any], expected: dict[str, Any]) -> None:
    scores = score_captions(written["captions"], written["references"])
    np.testing.assert_allclose(scores.bleu, expected["bleu"], rtol=1e-12)
    np.testing.assert_allclose(scores.rouge_l_by_image, expected["rouge_l_by_image"], rtol=1e-12)
    np.testing.assert_allclose(scores.cider_d_by_image, expected["cider_d_by_image"], rtol=1e-12, atol=1e-15)
    assert scores.rouge_l == pytest.approx(expected["rouge_l"], rel=1e-12)
    assert scores.cider_d == pytest.approx(expected["cider_d"], rel=1e-12)


def test_scoring_needs_neither_java_nor_pycocotools_and_prints_nothing(
    written: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith(("pycocoevalcap", "pycocotools"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setenv("PATH", "")
    score_captions(written["captions"], written["references"])
    assert capfd.readouterr() == ("", "")


def test_an_empty_caption_of_an_empty_reference_has_rouge_one_as_in_coco() -> None:
    assert score_captions({"1": "", "2": "a cat"}, {"1": ["."], "2": ["a cat"]}).rouge_l_by_image == (1.0, 1.0)


# --- what is refused, noted and kept

PAIR = ({"1": "a red dog", "2": "a cat"}, {"1": ["the red dog"], "2": ["a black cat", "one cat"], "3": ["unused"]})


def test_one_image_is_refused_and_few_are_noted() -> None:
    with pytest.raises(UserError, match="1 image tells nothing"):
        score_captions({"1": "a"}, {"1": ["a"]})
    assert "references of 2 images: below 1,000" in score_captions(*PAIR).notes[0]


def test_captions_without_references_are_refused() -> None:
    with pytest.raises(UserError, match="no reference for the images 9"):
        score_captions({"1": "a", "9": "b"}, PAIR[1])
    with pytest.raises(UserError, match="no caption to score"):
        score_captions({}, PAIR[1])


def test_length_and_variety_are_of_words() -> None:
    captions = ["A dog.", "a dog", "two dogs, running"]
    assert mean_length(captions) == pytest.approx(7 / 3)
    assert distinct_ratio(captions) == pytest.approx(2 / 3)


def test_the_summary_is_json_without_single_images() -> None:
    summary = json.loads(json.dumps(score_captions(*PAIR).to_dict()))
    assert set(summary) == {"n_images", "bleu", "rouge_l", "cider_d", "mean_length", "distinct_ratio", "notes"}


# --- the two that run in Java


def test_without_pycocoevalcap_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    monkeypatch.setitem(sys.modules, "pycocoevalcap.meteor.meteor", None)
    for score in (lambda: score_captions(*PAIR), lambda: java_score("meteor", *PAIR)):
        with pytest.raises(UserError, match=r"not installed. Run `pip install 'mmprompt\[captions\]'`") as error:
            score()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("metric", JAVA_METRICS)
def test_without_java_one_line_says_so(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=f"{metric.upper()} runs in Java, which was not found"):
        java_score(metric, *PAIR)


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(UserError, match="Did you mean 'meteor'"):
        java_score("metoer", *PAIR)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR runs in Java, which is not here")
def test_meteor_is_between_that_of_a_copy_and_none_where_one_caption_differs() -> None:
    captions = {"1": "a red dog", "2": "a cat on a mat"}
    references = {"1": ["the green dog"], "2": ["a cat on a mat"]}
    assert 0.2 < java_score("meteor", captions, references) < 0.8  # a copy alone has 1, other words alone 0
