from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmprompt.captioning.data import CaptionItem
from mmprompt.captioning.metrics.adherence import MEASURES, FocusScores, confusion, lift, score_focus
from mmprompt.captioning.metrics.judges import LexiconJudge
from mmprompt.core.metrics import paired_bootstrap
from mmprompt.errors import UserError

OBJECTS, EMOTIONS = ("cat", "dog", "car"), ("glad", "sad")
JUDGE = LexiconJudge({"objects": {w: w for w in OBJECTS}, "emotions": {w: w for w in EMOTIONS}})


def item(image_id: str, **captions: tuple[str, ...]) -> CaptionItem:
    by_focus = {"" if focus == "neutral" else focus: texts for focus, texts in captions.items()}
    return CaptionItem(Path(f"{image_id}.jpg"), image_id, by_focus, "test")


ITEMS = (
    item("1", objects=("a cat and a dog", "a cat"), emotions=("a glad cat",)),
    item("2", objects=("a car", "the car"), emotions=("so sad", "a sad dog")),
    item("3", neutral=("nothing here",)),
)
CAPTIONS = {"1": "a glad cat and a car", "2": "two dogs, a car", "3": "what is it"}


def test_measures_of_an_example_counted_by_hand() -> None:
    values = score_focus(CAPTIONS, ITEMS, "objects", JUDGE).values
    assert values["adherence"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert values["density"] == pytest.approx(4 / 3)
    assert values["mention_rate"] == pytest.approx(2 / 3)
    assert values["grounded_precision"] == pytest.approx(3 / 4)  # cat; dog, car; not the car of image 1
    assert values["grounded_precision_all"] == pytest.approx(4 / 5)
    assert values["recall"] == pytest.approx(3 / 4)  # cat of cat, dog; dog, car
    assert values["recall_agreed"] == pytest.approx(2 / 2)  # cat of cat; car of car
    assert values["mean_length"] == pytest.approx((6 + 4 + 3) / 3)
    assert values["distinct_ratio"] == 1


def test_the_human_ceiling_leaves_each_reference_out() -> None:
    scores = score_focus(CAPTIONS, ITEMS, "objects", JUDGE)
    assert scores.n_human == 4
    assert scores.human["adherence"] == 1
    assert scores.human["density"] == pytest.approx(5 / 4)
    assert scores.human["grounded_precision"] == pytest.approx(4 / 5)  # only the dog of image 1 is in no other
    assert scores.human["recall"] == pytest.approx(4 / 7)
    assert scores.human["distinct_ratio"] == 1
    assert scores.notes == ()


def test_without_captions_of_the_focus_all_references_are_the_ceiling() -> None:
    items = (item("1", neutral=("a glad cat", "a cat")),)
    scores = score_focus({"1": "a cat"}, items, "emotions", JUDGE)
    assert scores.human["adherence"] == pytest.approx(0.25)
    assert "of references of any focus" in scores.notes[0]


def test_without_a_second_reference_there_is_no_ceiling() -> None:
    scores = score_focus({"3": "a cat"}, ITEMS, "objects", JUDGE)
    assert scores.human["grounded_precision"] is None
    assert scores.human["distinct_ratio"] is None
    assert scores.values["grounded_precision"] == 0
    assert scores.values["recall"] is None
    assert "no human ceiling" in scores.notes[0]


def test_a_caption_filed_under_two_focuses_is_not_its_own_reference() -> None:
    items = (item("1", emotions=("a glad cat", "a dog"), emotions_positive=("a glad cat",)),)
    scores = score_focus({"1": "x"}, items, "emotions", JUDGE)
    assert scores.human["grounded_precision_all"] == 0


texts = st.lists(st.sampled_from([*OBJECTS, *EMOTIONS, "the"]), max_size=5).map(" ".join)


def slow_items(text: str, focus: str) -> list[str]:
    return [word for word in {"objects": OBJECTS, "emotions": EMOTIONS}[focus] if word in text.split()]


@given(st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=4)), min_size=1, max_size=4))
def test_measures_follow_their_definitions(corpus: Any) -> None:
    items = [item(str(i), neutral=tuple(references)) for i, (_, references) in enumerate(corpus)]
    captions = {str(i): caption for i, (caption, _) in enumerate(corpus)}
    values = score_focus(captions, items, "objects", JUDGE).values
    own = all_named = right = all_right = wanted = both_wanted = both_right = n_naming = 0
    shares = []
    for caption, references in corpus:
        references = set(references)
        for focus in ("objects", "emotions"):
            for word in slow_items(caption, focus):
                n_votes = sum(word in slow_items(reference, focus) for reference in references)
                all_named += 1
                all_right += n_votes > 0
                own += focus == "objects"
                right += n_votes > 0 and focus == "objects"
                both_right += n_votes > 1 and focus == "objects"
        for word in OBJECTS:
            n_votes = sum(word in slow_items(reference, "objects") for reference in references)
            wanted += n_votes > 0
            both_wanted += n_votes > 1
        objects, emotions = (len(slow_items(caption, focus)) for focus in ("objects", "emotions"))
        n_naming += objects > 0
        shares.append(objects / (objects + emotions) if objects + emotions else 0)
    assert values["adherence"] == pytest.approx(np.mean(shares))
    assert values["density"] == pytest.approx(own / len(corpus))
    assert values["mention_rate"] == pytest.approx(n_naming / len(corpus))
    expected = {
        "grounded_precision": (right, own),
        "grounded_precision_all": (all_right, all_named),
        "recall": (right, wanted),
        "recall_agreed": (both_right, both_wanted),
    }
    for name, (part, whole) in expected.items():
        assert values[name] == (pytest.approx(part / whole) if whole else None)


def test_scores_are_json() -> None:
    summary = json.loads(json.dumps(score_focus(CAPTIONS, ITEMS, "objects", JUDGE).to_dict()))
    assert set(summary["values"]) == set(summary["human"]) == {*MEASURES, "distinct_ratio"}
    assert summary["n_images"] == 3


def test_unknown_images_and_focuses_are_refused() -> None:
    with pytest.raises(UserError, match="no reference for the images 9"):
        score_focus({"9": "x"}, ITEMS, "objects", JUDGE)
    with pytest.raises(UserError, match="no caption to judge"):
        score_focus({}, ITEMS, "objects", JUDGE)
    with pytest.raises(UserError, match="Did you mean 'objects'"):
        score_focus(CAPTIONS, ITEMS, "object", JUDGE)
    with pytest.raises(UserError, match="the prompt 'none' has no caption"):
        confusion({"none": {}}, JUDGE)


# --- prompts against focuses


def test_confusion_is_the_adherence_of_every_prompt_to_every_focus() -> None:
    said = {"none": CAPTIONS, "emotions": {"1": "glad", "2": "a sad dog"}, "objects": {"1": "a dog", "2": "a car"}}
    table = confusion(said, JUDGE)
    assert (table.prompts, table.focuses) == (("none", "emotions", "objects"), ("emotions", "objects"))
    for prompt, row in zip(table.prompts, table.values, strict=True):
        for focus, value in zip(table.focuses, row, strict=True):
            assert value == pytest.approx(score_focus(said[prompt], ITEMS, focus, JUDGE).values["adherence"])
    assert table.is_diagonal
    assert json.loads(json.dumps(table.to_dict()))["is_diagonal"] is True


@pytest.mark.parametrize(
    "said",
    [
        {"emotions": {"1": "a cat"}, "objects": {"1": "a dog"}},
        {"emotions": {"1": "a glad cat"}, "objects": {"1": "a dog"}},
        {"none": {"1": "a dog"}, "objects": {"1": "a dog"}},
        {"none": {"1": "a dog"}},
    ],
)
def test_a_prompt_that_another_equals_is_not_diagonal(said: dict[str, dict[str, str]]) -> None:
    assert not confusion(said, JUDGE).is_diagonal


# --- two captioners


def scores_of(parts: np.ndarray, wholes: np.ndarray, ids: list[str] | None = None) -> FocusScores:
    ids = ids or [str(i) for i in range(len(parts))]
    counts = dict.fromkeys(MEASURES, np.stack([parts, wholes]))
    return FocusScores("objects", "lexicon", tuple(ids), counts, 1.0, {}, 0, ())


def test_lift_of_a_mean_is_that_of_the_paired_bootstrap() -> None:
    rng = np.random.default_rng(5)
    a, b, ones = rng.random(200), rng.random(200) * 0.8, np.ones(200)
    found = lift(scores_of(a, ones), scores_of(b, ones))
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert found.interval == pytest.approx(paired_bootstrap(a[None], b[None]), abs=0.01)
    assert found.n_images == 200


def test_lift_of_a_ratio_resamples_both_sums() -> None:
    rng = np.random.default_rng(6)
    wholes, others = rng.integers(0, 4, 60).astype(float), rng.integers(0, 4, 60).astype(float)
    parts, right = np.floor(wholes * rng.random(60)), np.floor(others * rng.random(60))
    found = lift(scores_of(parts, wholes), scores_of(right, others), "grounded_precision", seed=3)
    slow_rng = np.random.default_rng(99)
    slow = []
    for _ in range(4000):
        drawn = slow_rng.integers(60, size=60)
        slow.append(parts[drawn].sum() / wholes[drawn].sum() - right[drawn].sum() / others[drawn].sum())
    assert found.difference == pytest.approx(parts.sum() / wholes.sum() - right.sum() / others.sum())
    assert found.interval == pytest.approx(tuple(np.percentile(slow, [2.5, 97.5])), abs=0.02)
    assert found == lift(scores_of(parts, wholes), scores_of(right, others), "grounded_precision", seed=3)


def test_a_captioner_gains_nothing_over_itself_in_another_order() -> None:
    a = np.arange(5.0)
    turned = scores_of(a[::-1], np.ones(5), ["4", "3", "2", "1", "0"])
    found = lift(scores_of(a, np.ones(5)), turned)
    assert (found.difference, found.interval) == (0, (0, 0))
    assert found.interval == (0, 0)


def test_what_cannot_be_compared_is_refused() -> None:
    objects = score_focus(CAPTIONS, ITEMS, "objects", JUDGE)
    with pytest.raises(UserError, match="Compare the same focus and judge"):
        lift(objects, score_focus(CAPTIONS, ITEMS, "emotions", JUDGE))
    with pytest.raises(UserError, match="of other images"):
        lift(objects, score_focus({"1": "a cat"}, ITEMS, "objects", JUDGE))
    with pytest.raises(UserError, match="Did you mean 'recall'"):
        lift(objects, objects, "recal")
    silent = score_focus(dict.fromkeys(CAPTIONS, "what"), ITEMS, "objects", JUDGE)
    with pytest.raises(UserError, match="has no grounded_precision"):
        lift(objects, silent, "grounded_precision")
    assert lift(objects, silent).difference > 0
