from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mmprompt.captioning.data import CaptionData, CaptionItem
from mmprompt.captioning.focus_sets import CHOOSING, JUDGING, build_focus, nouns, verbs, vocabulary_half
from mmprompt.errors import UserError

TWO = (
    "a man rides a wave",
    "A man with a dog, a ball and two surfboards at the beach, near a house, a tree, a boat, a wave and a bird.",
)


def data(*captions: tuple[str, ...], focus: str = "") -> CaptionData:
    items = (CaptionItem(Path(f"{i}.jpg"), str(i), {focus: texts}, "train") for i, texts in enumerate(captions))
    return CaptionData("coco", Path(), tuple(items))


def test_nouns_are_singular_and_verbs_are_stems_without_auxiliaries() -> None:
    assert nouns("Two happy Dogs are chasing the red balls.") == ("dog", "ball")
    assert verbs("Two happy dogs are chasing the red balls, and a man is riding.") == ("chase", "ride")
    assert verbs("a cat is being pulled") == verbs("a dog pulls it") == ("pull",)


def test_the_halves_of_the_vocabulary_are_disjoint_and_whole() -> None:
    for found in (nouns(TWO[1]), tuple(f"word{i}" for i in range(200))):
        one, other = ({w for w in found if vocabulary_half(w) == half} for half in (CHOOSING, JUDGING))
        assert one
        assert other
        assert not one & other
        assert one | other == set(found)
    assert sorted(nouns(TWO[1], CHOOSING) + nouns(TWO[1], JUDGING)) == sorted(nouns(TWO[1]))


def test_objects_are_the_captions_with_the_most_nouns_of_the_half_that_chooses() -> None:
    built = build_focus(data(TWO, ("x x",)), "objects")
    expected = max(TWO, key=lambda caption: len(set(nouns(caption, CHOOSING))))
    assert built.items[0].of("objects") == (expected,)
    assert expected == TWO[1]
    assert built.items[0].of("") == TWO
    assert built.chosen_by["objects"].startswith("tagger: the most nouns of half 0")
    assert "judge them by the other half" in built.notes[-1]


def test_nouns_of_the_other_half_choose_nothing() -> None:
    other = [noun for noun in ("dog", "house", "ball", "man", "beach", "cat") if vocabulary_half(noun) == JUDGING]
    ours = next(noun for noun in ("dog", "house", "ball", "man", "beach", "cat") if vocabulary_half(noun) == CHOOSING)
    many = "the " + " and the ".join(other)
    built = build_focus(data((many, f"the {ours}")), "objects")
    assert built.items[0].of("objects") == (f"the {ours}",)


def test_actions_are_the_captions_with_the_most_verbs_and_ties_are_all_kept() -> None:
    verb = next(v for v in ("riding", "chasing", "eating", "jumping") if verbs(f"a dog is {v}", CHOOSING))
    captions = ("a dog in a house", f"a dog is {verb} something", f"the dogs were {verb} it")
    built = build_focus(data(captions, ("a dog", "a cat")), "actions")
    assert built.items[0].of("actions") == captions[1:]
    assert built.items[1].of("actions") == ()
    assert "of 1 of 2 images" in built.notes[-1]


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
