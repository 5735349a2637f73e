import sys
import unicodedata

import pytest

from mmprompt.errors import UserError
from mmprompt.language.measure import score_texts

pytest.importorskip("sacrebleu", reason="needs the extra llm")
pytest.importorskip("rouge_score", reason="needs the extra llm")

LONG = "the cat sat on the mat by the door"


def test_equal_texts_have_the_highest_scores():
    scores = score_texts([LONG, "Katze"], [LONG, "Katze"])
    assert (scores.n, scores.exact_match) == (2, 1.0)
    assert scores.interval == pytest.approx((0.342, 1.0), abs=1e-3)  # Wilson's: two are few
    assert (scores.bleu, scores.chrf, scores.rouge_l) == (pytest.approx(100), pytest.approx(100), pytest.approx(1))


def test_unlike_texts_have_the_lowest_scores():
    scores = score_texts(["zzz zzz zzz zzz", ""], [LONG, LONG])
    assert (scores.exact_match, scores.bleu, scores.chrf, scores.rouge_l) == (0, 0, 0, 0)


@pytest.mark.parametrize(("text", "is_exact"), [(" Katze\n", True), ("katze", False), ("Katze.", False)])
def test_exact_match_forgives_blanks_at_the_ends_alone(text, is_exact):
    assert score_texts([text], ["Katze"]).is_exact == (is_exact,)


def test_exact_match_does_not_depend_on_the_unicode_form():
    assert score_texts([unicodedata.normalize("NFD", "leão")], [unicodedata.normalize("NFC", "leão")]).is_exact == (
        True,
    )


def test_rouge_is_the_f_measure_of_the_longest_common_subsequence():
    scores = score_texts(["the cat, the... DOOR!"], [LONG.replace("the mat by the door", "a mat by a door")])
    precision, recall = 3 / 4, 3 / 9  # "the cat door" is common
    assert scores.rouge_l == pytest.approx(2 * precision * recall / (precision + recall))


def test_rouge_keeps_letters_of_other_scripts():
    assert score_texts(["кот и пёс"], ["кот и лев"]).rouge_l == pytest.approx(2 / 3)
    assert score_texts(["leão"], ["le o"]).rouge_l == 0


def test_bleu_and_chrf_are_those_of_the_corpus_with_their_signatures():
    import sacrebleu

    texts, expected = ["the cat sat on a mat by the door", "a dog ran"], [LONG, "a dog ran away"]
    scores = score_texts(texts, expected)
    assert scores.bleu == pytest.approx(sacrebleu.corpus_bleu(texts, [expected]).score)
    assert scores.chrf == pytest.approx(sacrebleu.corpus_chrf(texts, [expected]).score)
    assert 0 < scores.bleu < 100
    assert "tok:13a" in scores.signatures["bleu"]
    assert "nc:6" in scores.signatures["chrf"]


@pytest.mark.parametrize(("texts", "expected"), [([], []), (["a"], ["a", "b"])])
def test_lists_of_no_or_unequal_length_are_refused(texts, expected):
    with pytest.raises(UserError, match=f"there are {len(texts)} texts and {len(expected)} expected"):
        score_texts(texts, expected)


@pytest.mark.parametrize("package", ["sacrebleu", "rouge_score"])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch, package):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf'{package}.* is not installed. Install them: pip install "mmprompt\[llm\]"'):
        score_texts(["a"], ["a"])
