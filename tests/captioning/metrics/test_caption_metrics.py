from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmprompt.captioning.metrics.caption_metrics import (
    SMALL,
    DocumentFrequency,
    bleu,
    cider_d,
    distinct_ratio,
    document_frequency,
    mean_length,
    rouge_l,
    score_captions,
    tokenize,
)
from mmprompt.errors import UserError

FIXTURES = Path(__file__).parent / "fixtures"
Texts = dict[str, list[str]]


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


def test_scores_are_those_of_the_installed_pycocoevalcap(written: dict[str, Any]) -> None:
    pytest.importorskip("pycocoevalcap", reason="compares with pycocoevalcap, of the extra coco-metrics")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    references: Texts = {key: list(reversed(texts)) for key, texts in written["references"].items()}
    captions = dict(zip(references, reversed(written["captions"].values()), strict=True))
    scores = score_captions(captions, references)
    said = {key: [" ".join(tokenize(text))] for key, text in captions.items()}
    wanted = {key: [" ".join(tokenize(text)) for text in texts] for key, texts in references.items()}
    np.testing.assert_allclose(scores.bleu, Bleu(4).compute_score(wanted, said, verbose=0)[0], rtol=1e-12)
    np.testing.assert_allclose(scores.rouge_l_by_image, Rouge().compute_score(wanted, said)[1], rtol=1e-12)
    np.testing.assert_allclose(scores.cider_d_by_image, Cider().compute_score(wanted, said)[1], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A dog's ball isn't RED.", ["a", "dog", "'s", "ball", "is", "n't", "red"]),
        (
            "You cannot see it; he's gonna go -- now!",
            ["you", "can", "not", "see", "it", "he", "'s", "gon", "na", "go", "now"],
        ),
        ("3.5 or 1,000 (maybe)", ["3.5", "or", "1,000", "-lrb-", "maybe", "-rrb-"]),
        ("a &amp; b", ["a", "&", "b"]),
        ("the child\u2019s", ["the", "child", "'s"]),
        ("", []),
        ("...", []),
    ],
)
def test_contractions_numbers_and_signs(caption: str, tokens: list[str]) -> None:
    assert tokenize(caption) == tokens


# --- the formulas, against slow implementations written from the papers

words = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=7)
corpora = st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=3)), min_size=2, max_size=5)


def occurrences(tokens: list[str], ngram: tuple[str, ...]) -> int:
    return sum(tuple(tokens[i : i + len(ngram)]) == ngram for i in range(len(tokens)))


def all_ngrams(tokens: list[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def slow_bleu(corpus: list[tuple[list[str], list[list[str]]]], longest: int) -> float:
    product = 1.0
    for n in range(1, longest + 1):
        right = said = 0.0
        for caption, texts in corpus:
            said += max(0, len(caption) - n + 1)
            for ngram in all_ngrams(caption, n):
                right += min(occurrences(caption, ngram), max(occurrences(text, ngram) for text in texts))
        product *= (right + 1e-15) / (said + 1e-9)
    length = sum(len(caption) for caption, _ in corpus)
    closest = sum(sorted(map(len, texts), key=lambda n: (abs(n - len(c)), n))[0] for c, texts in corpus)
    ratio = (length + 1e-15) / (closest + 1e-9)
    return product ** (1 / longest) * min(1.0, math.exp(1 - 1 / ratio))


def slow_common(one: list[str], other: list[str]) -> int:
    if not one or not other:
        return 0
    if one[0] == other[0]:
        return 1 + slow_common(one[1:], other[1:])
    return max(slow_common(one[1:], other), slow_common(one, other[1:]))


def slow_cider(corpus: list[tuple[list[str], list[list[str]]]], index: int) -> float:
    def vector(tokens: list[str], n: int) -> dict[tuple[str, ...], float]:
        weights = {}
        for ngram in all_ngrams(tokens, n):
            n_having = sum(any(ngram in all_ngrams(text, n) for text in texts) for _, texts in corpus)
            weights[ngram] = occurrences(tokens, ngram) * math.log(len(corpus) / max(1, n_having))
        return weights

    caption, texts = corpus[index]
    total = 0.0
    for n in range(1, 5):
        said = vector(caption, n)
        for text in texts:
            wanted = vector(text, n)
            norm = math.dist(said.values(), [0] * len(said)) * math.dist(wanted.values(), [0] * len(wanted))
            product = sum(min(said[ngram], wanted.get(ngram, 0)) * wanted.get(ngram, 0) for ngram in said)
            penalty = math.exp(-((len(caption) - len(text)) ** 2) / (2 * 6**2))
            total += penalty * product / norm / len(texts) if norm else 0
    return 10 * total / 4


@given(corpora)
def test_bleu_follows_its_formula(corpus: Any) -> None:
    ours = bleu([caption for caption, _ in corpus], [texts for _, texts in corpus])
    np.testing.assert_allclose(ours, [slow_bleu(corpus, n) for n in (1, 2, 3, 4)], rtol=1e-9)


@given(corpora)
def test_rouge_l_follows_its_formula(corpus: Any) -> None:
    ours = rouge_l([caption for caption, _ in corpus], [texts for _, texts in corpus])
    for score, (caption, texts) in zip(ours, corpus, strict=True):
        common = [slow_common(caption, text) for text in texts]
        precision = max(common) / max(1, len(caption))
        recall = max(n / max(1, len(text)) for n, text in zip(common, texts, strict=True))
        f = 0 if max(common) == 0 else (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
        assert score == pytest.approx(f, rel=1e-12)


@given(corpora)
def test_cider_d_follows_its_formula(corpus: Any) -> None:
    ours = cider_d([caption for caption, _ in corpus], [texts for _, texts in corpus])
    np.testing.assert_allclose(ours, [slow_cider(corpus, i) for i in range(len(corpus))], rtol=1e-9, atol=1e-12)


# --- what is refused, noted and kept

PAIR = ({"1": "a red dog", "2": "a cat"}, {"1": ["the red dog"], "2": ["a black cat", "one cat"], "3": ["unused"]})


def test_one_image_is_refused_and_few_are_noted() -> None:
    with pytest.raises(UserError, match="1 image tells nothing"):
        score_captions({"1": "a"}, {"1": ["a"]})
    assert "references of 2 images: below 1,000" in score_captions(*PAIR).notes[0]


def test_saved_frequencies_are_used_and_take_the_note_away(tmp_path: Path) -> None:
    own = document_frequency([[tokenize(text) for text in PAIR[1][key]] for key in PAIR[0]])
    own.save(tmp_path / "df.json")
    loaded = DocumentFrequency.load(tmp_path / "df.json")
    assert loaded == own
    assert score_captions(*PAIR, loaded).cider_d_by_image == score_captions(*PAIR).cider_d_by_image
    large = DocumentFrequency(SMALL, own.counts)
    assert score_captions({"1": "a red dog"}, PAIR[1], large).cider_d > 0
    assert score_captions(*PAIR, large).notes == ()


@pytest.mark.parametrize(
    "text", ["{}", "[]", "x", '{"n_images": 0, "counts": {}}', '{"n_images": 3, "counts": {"a": 4}}']
)
def test_a_file_of_other_frequencies_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "df.json").write_text(text)
    with pytest.raises(UserError, match=r"df\.json: is no file of document frequencies"):
        DocumentFrequency.load(tmp_path / "df.json")


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
