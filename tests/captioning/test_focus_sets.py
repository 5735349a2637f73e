from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mmprompt.captioning.data import CaptionData, CaptionItem
from mmprompt.captioning.focus_sets import adjectives, build_focus, nouns, share_of, verbs
from mmprompt.errors import UserError

TWO = (
    "a man is riding a wave",
    "A man with a dog, a ball and two surfboards at the beach, near a house, a tree, a boat, a wave and a bird.",
)


def data(*captions: tuple[str, ...], focus: str = "") -> CaptionData:
    items = (CaptionItem(Path(f"{i}.jpg"), str(i), {focus: texts}, "train") for i, texts in enumerate(captions))
    return CaptionData("coco", Path(), tuple(items))


def test_nouns_are_singular_and_verbs_are_stems_without_auxiliaries() -> None:
    assert nouns("Two happy Dogs are chasing the red balls.") == ("dog", "ball")
    assert verbs("Two happy dogs are chasing the red balls, and a man is riding.") == ("chase", "ride")
    assert verbs("a cat is being pulled") == verbs("a dog pulls it") == ("pull",)


def test_adjectives_are_found_with_numbers() -> None:
    assert adjectives("Two small dogs on the sandy beach") == ("two", "small", "sandy")


def test_a_share_is_of_different_words_that_belong_to_the_focus() -> None:
    caption = "a man and a man riding a big horse"
    assert [share_of(caption, focus) for focus in ("objects", "actions", "attributes")] == [0.5, 0.25, 0.25]
    assert share_of("the of and", "objects") == 0


def test_objects_are_the_captions_with_the_greatest_share_of_nouns() -> None:
    built = build_focus(data(TWO, ("the of",)), "objects")
    assert share_of(TWO[1], "objects") > share_of(TWO[0], "objects")
    assert built.items[0].of("objects") == (TWO[1],)
    assert built.items[0].of("") == TWO
    assert built.chosen_by["objects"] == "tagger: the greatest share of nouns"


def test_ties_are_all_kept_and_images_without_the_focus_have_none() -> None:
    captions = ("a dog in a house", "a dog is riding something", "the dogs were riding it")
    built = build_focus(data(captions, ("a dog", "a cat")), "actions")
    shares = [share_of(caption, "actions") for caption in captions]
    expected = tuple(caption for caption, share in zip(captions, shares, strict=True) if share == max(shares))
    assert built.items[0].of("actions") == expected
    assert built.items[1].of("actions") == ()
    assert "of 1 of 2 images" in built.notes[-1]


def test_images_that_speak_less_of_the_focus_than_the_middle_one_are_left_out() -> None:
    few, some, many = "a man on a street riding a horse", "a man riding a horse", "a small brown dog running, jumping"
    built = build_focus(data((few, "a cup"), (some, "a cup"), (many, "a cup")), "actions")
    shares = [share_of(caption, "actions") for caption in (few, some, many)]
    assert shares == sorted(shares)
    assert [bool(item.of("actions")) for item in built.items] == [share >= shares[1] for share in shares]


@pytest.mark.parametrize(
    ("captions", "focus", "said"),
    [
        (data(TWO), "emotions", "0.25 emotion words each, most of them meant literally"),
        (data(TWO), "object", "Did you mean 'objects'?"),
        (data(TWO, focus="objects"), "objects", "has captions of objects already"),
        (data((TWO[0],)), "objects", "no image with two or more neutral captions"),
        (data(TWO, focus="emotions"), "objects", "no image with two or more neutral captions"),
        (data(("the red", "so blue")), "actions", "no neutral caption of coco holds verbs"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(captions: CaptionData, focus: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        build_focus(captions, focus)
    assert said in str(caught.value)


def test_without_textblob_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmprompt.captioning import focus_sets

    monkeypatch.setitem(sys.modules, "textblob.en.taggers", None)
    focus_sets._text_blob.cache_clear()
    with pytest.raises(UserError, match=r"mmprompt\[captions\]"):
        build_focus(data(TWO), "objects")
