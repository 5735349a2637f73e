from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mmprompt.captioning.data import CaptionData, CaptionItem
from mmprompt.captioning.focus_sets import build_focus
from mmprompt.captioning.metrics import judges
from mmprompt.captioning.metrics.adherence import score_focus
from mmprompt.captioning.metrics.judges import (
    LexiconJudge,
    TaggerJudge,
    emotion_words,
    frequent_emotion_words,
    judge_for,
)
from mmprompt.errors import UserError

LEXICON = {
    "objects": {"hot dog": "sausage", "dog": "dog", "berry": "berry", "bus": "bus", "glass": "glass"},
    "emotions": {"laughing": "joy", "laughing face": "grin", "not amused": "boredom"},
    "actions": {"laughing": "laugh"},
}


@pytest.fixture
def judge() -> LexiconJudge:
    return LexiconJudge(LEXICON)


def named(judge: LexiconJudge | TaggerJudge, caption: str) -> dict[str, set[str]]:
    return {focus: set(items) for focus, items in judge.items(caption).items() if items}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A hot dog and a dog.", {"objects": {"sausage", "dog"}}),
        ("a hot dog", {"objects": {"sausage"}}),
        ("hot and dogs", {"objects": {"dog"}}),
        ("two hot dogs", {"objects": {"sausage"}}),
        ("berries, buses, glasses", {"objects": {"berry", "bus", "glass"}}),
        ("somebody laughing", {"emotions": {"joy"}, "actions": {"laugh"}}),
        ("a laughing face", {"emotions": {"grin"}}),
        ("He is NOT amused!", {"emotions": {"boredom"}}),
        ("amused, not", {}),
        ("a dogma", {}),
        ("a berr", {}),
        ("", {}),
    ],
)
def test_the_longest_form_names_its_items(judge: LexiconJudge, caption: str, expected: dict[str, set[str]]) -> None:
    assert named(judge, caption) == expected
    assert set(judge.items(caption)) == set(LEXICON)


def test_a_form_without_words_and_an_empty_lexicon_are_refused() -> None:
    with pytest.raises(UserError, match=r"the form '\.\.' of objects has no word"):
        LexiconJudge({"objects": {"..": "x"}})
    with pytest.raises(UserError, match="holds no form"):
        LexiconJudge({"objects": {}})


def test_the_tagger_names_nouns_verbs_and_words_of_feeling() -> None:
    expected = {"objects": {"dog", "ball"}, "actions": {"chase"}, "emotions": {"happi"}}
    assert named(TaggerJudge(), "Two happy dogs are chasing balls.") == expected
    assert "emotions" not in named(TaggerJudge(frozenset({"happy"})), "Two happy dogs are chasing balls.")


NEUTRAL = [("a dog playing", "playing with fire"), ("the top of a hill", "a happy man playing"), ("playing", "a cat")]


def test_words_frequent_in_neutral_captions_are_found_in_order() -> None:
    assert frequent_emotion_words(NEUTRAL, 2) == ("playing", "fire")
    assert frequent_emotion_words(NEUTRAL) == ("playing", "fire", "happy", "top")


def data(lexicon: dict[str, dict[str, str]] | None = None, focus: str = "") -> CaptionData:
    texts = (("a dog playing with a ball", "a cat"), ("playing", "a man and a wave"))
    items = (CaptionItem(Path(f"{i}.jpg"), str(i), {focus: captions}, "train") for i, captions in enumerate(texts))
    return CaptionData("set", Path(), tuple(items), lexicon or {})


def test_the_lexicon_of_the_data_judges_where_there_is_one() -> None:
    judge = judge_for(data(LEXICON))
    assert (judge.name, judge.focuses) == ("lexicon of set", ("actions", "emotions", "objects"))


def test_else_the_tagger_does_calibrated_on_neutral_captions() -> None:
    judge = judge_for(data())
    assert judge.items("a dog playing happily") == TaggerJudge(frozenset({"playing"})).items("a dog playing happily")
    assert judge.items("a playing dog")["emotions"] == frozenset()
    assert judge.notes == ()
    assert "no neutral captions to calibrate" in judge_for(data(focus="objects")).notes[0]


def test_what_the_tagger_chose_is_judged_by_a_lexicon_of_everyday_words() -> None:
    judge = judge_for(build_focus(data(), "objects"))
    assert isinstance(judge, LexiconJudge)
    assert judge.focuses == ("actions", "attributes", "objects")
    found = judge.items("two small brown dogs are playing with a frisbee on the grass")
    assert found["objects"] == {"dog", "frisbee", "grass"}
    assert (found["actions"], found["attributes"]) == ({"play"}, {"two", "small", "brown"})


def test_without_vader_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    judges._vader_lexicon.cache_clear()
    with pytest.raises(UserError, match=r"vaderSentiment, which is not installed.*mmprompt\[captions\]"):
        emotion_words("x")
    judges._vader_lexicon.cache_clear()


def test_a_lexicon_needs_neither_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("vaderSentiment.vaderSentiment", "textblob.en.taggers"):
        monkeypatch.setitem(sys.modules, module, None)
    judges._vader_lexicon.cache_clear()
    assert named(judge_for(data(LEXICON)), "a dog") == {"objects": {"dog"}}  # type: ignore[arg-type]


VOICES = {"brand voice": [f"get your {thing} today!" for thing in ("dog", "cat", "boat", "cake", "kite")]}
PLAIN = [f"a {thing} in the grass" for thing in ("dog", "cat", "boat", "cake", "kite")]


def voiced(plain: Sequence[str] = PLAIN) -> CaptionData:
    items = [
        CaptionItem(Path(f"{i}.jpg"), str(i), {"brand voice": (text,)} | ({"": (plain[i],)} if plain else {}), "train")
        for i, text in enumerate(VOICES["brand voice"])
    ]
    return CaptionData("set", Path(), tuple(items))


@pytest.mark.parametrize("data", [voiced(), replace(voiced(()), lexicon=LEXICON)])
def test_any_other_focus_is_told_by_a_classifier_of_captions_with_and_without_it(data: CaptionData) -> None:
    judge = judge_for(data, ["brand voice"], lambda: PLAIN)
    assert (judge.name, judge.focuses) == ("classifier", ("brand voice",))
    assert judge.items("get your horse today!") == {"brand voice": {"brand voice"}}
    assert judge.items("a horse in the grass") == {"brand voice": frozenset()}
    assert "learned from 5 captions with it and 5 without" in judge.notes[0]
    said = {"0": "get your dog today!", "1": "a cat in the grass"}
    scores = score_focus(said, data.items, "brand voice", judge)
    assert scores.values["adherence"] == 0.5
    assert scores.human["adherence"] == 1.0  # of captions that are the only ones of their image, too
    assert scores.n_human == 2
    assert scores.values["grounded_precision_all"] is None  # it says nothing of images
    assert scores.human["recall"] is None


def test_a_word_list_comes_before_the_classifier() -> None:
    judge = judge_for(replace(voiced(), lexicon={"brand voice": {"today": "today"}}), ["brand voice"])
    assert judge.items("a dog today")["brand voice"] == {"today"}


def test_a_focus_that_nothing_tells_is_refused_with_what_to_give() -> None:
    with pytest.raises(
        UserError, match=r"no training captions of 'love' to know it by, and no word list of it. Give da"
    ):
        judge_for(voiced(), ["love"], lambda: PLAIN)
    with pytest.raises(
        UserError, match=r"has no captions without 'brand voice' to compare with. Give a `lexicon` of its words"
    ):
        judge_for(voiced(()), ["brand voice"])
