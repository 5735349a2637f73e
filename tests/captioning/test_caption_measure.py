"""Measuring prompts: who is compared, what is chosen where, and numbers that are those of the scores."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mmprompt as mp
from mmprompt.captioning import measure as caption_measure
from mmprompt.captioning.decoding import Decoding
from mmprompt.captioning.measure import NO_PROMPT, measure_captions, wordings_for
from mmprompt.captioning.metrics.adherence import score_focus
from mmprompt.captioning.metrics.caption_metrics import score_captions
from mmprompt.captioning.metrics.judges import LexiconJudge, judge_for
from mmprompt.captioning.predictor import Captioner, CaptionFeatures, CaptionTemplate, Guidance, hard_prompt
from mmprompt.captioning.readers.captioner import LM_INPUT
from mmprompt.core.learned import Learned, Prompt
from mmprompt.data.images import read_image
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.load import load_backbone
from tests.small_captioners import END, small_captioner, small_captions

pytestmark = pytest.mark.usefixtures("feature_store")

QUICK = Decoding(max_tokens=5)
WORDINGS = ("5", "9 9", "12 13 14")


@pytest.fixture
def captioner():
    return small_captioner()


@pytest.fixture
def data(tmp_path):
    made = small_captions(tmp_path)
    low = {str(number): str(number) for number in range(2, 20)}
    high = {str(number): str(number) for number in range(20, 40)}
    return replace(made, lexicon={"numbers": low, "large": high})


@pytest.fixture(autouse=True)
def wordings(monkeypatch):
    monkeypatch.setattr(caption_measure, "ANY_WORDS", WORDINGS)


def prompt_of(captioner, seed, focus="numbers"):
    values = torch.randn(3, captioner.decoder.width, generator=torch.Generator().manual_seed(seed))
    return Prompt(CaptionTemplate(focus), Learned(LM_INPUT, values)).double()


def measured(captioner, data, **more):
    features = CaptionFeatures(captioner, None)
    return measure_captions(captioner, data, [prompt_of(captioner, 1)], decoding=QUICK, features=features, **more)


def said_by(captioner, items, guidance):
    found = Captioner(captioner, guidance, QUICK).caption([item.image for item in items])
    return {item.image_id: caption.text for item, caption in zip(items, found, strict=True)}


def test_a_prompt_stands_beside_none_and_beside_words(captioner, data):
    measure = measured(captioner, data, split="train")
    assert [speaker.name for speaker in measure.speakers] == [NO_PROMPT, "words: numbers", "numbers"]
    steerings = [
        Guidance(),
        Guidance(((hard_prompt(captioner, "numbers", measure.speakers[1].words), 1.0),)),
        Guidance(((prompt_of(captioner, 1), 1.0),)),
    ]
    for speaker, guidance in zip(measure.speakers, steerings, strict=True):
        assert dict(speaker.said) == said_by(captioner, data.train, guidance)


def test_the_wording_is_chosen_on_the_validation_part(captioner, data):
    measure = measured(captioner, data, split="test")
    judge = LexiconJudge(data.lexicon)

    def adherence(words):
        said = said_by(captioner, data.val, Guidance(((hard_prompt(captioner, "numbers", words), 1.0),)))
        return score_focus(said, data.val, "numbers", judge).values["adherence"]

    assert measure.speakers[1].words == max(WORDINGS, key=adherence)


def test_a_wording_may_be_given_and_is_the_first_one_where_nothing_can_choose(captioner, data):
    assert measured(captioner, data, words={"numbers": "7 8"}).speakers[1].words == "7 8"
    test_only = replace(data, items=data.test)
    assert measured(captioner, test_only).speakers[1].words == WORDINGS[0]


def test_words_for_a_focus_that_has_no_prompt_are_refused(captioner, data):
    with pytest.raises(UserError, match=r"no prompt for the focus named 'number'\. Did you mean 'numbers'"):
        measured(captioner, data, words={"number": "7 8"})


def test_lifts_and_confusion_are_differences_of_the_scores(captioner, data):
    measure = measured(captioner, data, split="train")
    values = {name: scores["numbers"].values["adherence"] for name, scores in measure.focus_scores.items()}
    lifts = measure.lifts["numbers"]
    assert lifts["adherence over none"].difference == pytest.approx(values["numbers"] - values[NO_PROMPT])
    assert lifts["adherence over words"].difference == pytest.approx(values["numbers"] - values["words: numbers"])
    column = measure.confusion.focuses.index("numbers")
    assert [row[column] for row in measure.confusion.values] == pytest.approx(list(values.values()))


def test_the_curve_begins_without_the_prompt_and_passes_through_it(captioner, data):
    measure = measured(captioner, data, split="train", strengths=(0.0, 1.0, 2.0))
    points = {point.strength: point for point in measure.strengths["numbers"]}
    scores = measure.focus_scores
    assert points[0.0].adherence == pytest.approx(scores[NO_PROMPT]["numbers"].values["adherence"])
    assert points[1.0].adherence == pytest.approx(scores["numbers"]["numbers"].values["adherence"])
    assert measured(captioner, data, split="train", strengths=()).strengths["numbers"] == ()


def test_clip_score_is_said_to_flatter_its_own_captioner(captioner, data):
    encoder = load_backbone("tiny", device="cpu")
    measure = measured(captioner, data, encoder=encoder, strengths=())
    assert set(measure.clip_scores) == {speaker.name for speaker in measure.speakers}
    assert not any("flatters" in note for note in measure.notes)
    captioner.encoder_fingerprint = encoder.fingerprint
    assert any("flatters" in note for note in measured(captioner, data, encoder=encoder, strengths=()).notes)


def test_losses_are_of_the_captions_that_people_wrote(captioner, data):
    measure = measured(captioner, data, strengths=())
    features = captioner.encode_image(torch.stack([captioner.preprocess(read_image(i.image)) for i in data.test]))
    total, n_tokens = 0.0, 0
    for row, item in enumerate(data.test):
        for text in item.of("numbers"):
            ids = torch.tensor([[*captioner.tokenizer.encode(text), END]])
            log_probs = captioner.logits(captioner.open(features[[row]]), {}, ids).log_softmax(-1)
            total -= log_probs.gather(2, ids[..., None]).sum().item()
            n_tokens += ids.shape[1]
    assert measure.losses["numbers"][NO_PROMPT] == pytest.approx(total / n_tokens, rel=1e-5)
    assert len(set(measure.losses["numbers"].values())) == 3


def test_captions_that_do_not_fit_are_cut_alike_for_every_speaker(data):
    captioner = small_captioner("gpt2")
    room = captioner.decoder.budget - 3  # beside three vectors, the wordings are no longer
    losses = []
    for length in (room, 70):
        item = replace(data.test[0], captions={"numbers": (" ".join(["5", "7"] * 35)[: 2 * length],)})
        one = replace(data, items=(*data.train, *data.val, item, replace(data.test[1], captions={"numbers": ("5",)})))
        losses.append(measured(captioner, one, strengths=()).losses)
    assert losses[0] == losses[1]


def test_a_focus_of_ones_own_is_measured_by_a_classifier_beside_what_is_said_unprompted(captioner, data):
    measure = measured(captioner, replace(data, lexicon={}), strengths=())
    assert measure.judge == "classifier"
    said = {one.name: one.said for one in measure.speakers}
    share = measure.focus_scores[NO_PROMPT]["numbers"].values["adherence"]
    judge = judge_for(
        replace(data, lexicon={}), ["numbers"], lambda: said_by(captioner, data.train, Guidance()).values()
    )
    assert share == sum(bool(judge.items(text)["numbers"]) for text in said[NO_PROMPT].values()) / len(data.test)
    assert measure.focus_scores["numbers"]["numbers"].human["adherence"] == 1.0
    assert set(measure.lifts["numbers"]) == {"adherence over none", "adherence over words"}


def test_captions_of_no_focus_are_called_neutral_and_asked_for_in_plain_words(captioner, data):
    items = [replace(item, captions={"": item.captions["numbers"], "other": ("39",)}) for item in data.items]
    data = replace(data, items=tuple(items), lexicon={})
    prompt = prompt_of(captioner, 1, "")
    measure = measure_captions(captioner, data, [prompt], decoding=QUICK, words={"": "7 8"})
    assert [speaker.name for speaker in measure.speakers] == [NO_PROMPT, "words: neutral", "neutral"]
    assert (
        measure.focuses
        == measure.confusion.focuses
        == tuple(measure.losses)
        == tuple(measure.strengths)
        == ("neutral",)
    )
    assert any("is of neutral is told by a classifier" in note for note in measure.notes)
    own = {item.image_id: item.of("") for item in data.test}
    assert measure.text_scores["neutral"] == score_captions(measure.speakers[2].said, own)
    steered = Captioner(captioner, Guidance(((prompt, 1.0),)), QUICK)
    assert repr(steered).startswith("<Captioner: neutral, on")
    assert repr(mp.evaluate(steered, data)).startswith("<FocusScores: neutral, ")
    assert wordings_for("") == ("a picture of", "the picture shows", "describe the picture:")


def test_two_prompts_of_one_focus_or_none_are_refused(captioner, data):
    two = [prompt_of(captioner, 1), prompt_of(captioner, 2)]
    for prompts in (two, []):
        with pytest.raises(UserError, match="one prompt a focus is needed"):
            measure_captions(captioner, data, prompts, decoding=QUICK)


def test_a_focus_that_nobody_can_judge_is_refused(captioner, data):
    with pytest.raises(UserError, match="has no training captions of 'feelings' to know it by, and no word list"):
        measure_captions(captioner, data, [prompt_of(captioner, 1, "feelings")], decoding=QUICK)


def test_one_picture_makes_no_curve(captioner, data):
    one = replace(data, items=(*data.train, data.test[0]))
    with pytest.raises(UserError, match="two"):
        measured(captioner, one)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_captioner_is_evaluated_on_the_part_that_is_asked_for(captioner, data, split):
    steered = Captioner(captioner, Guidance(((prompt_of(captioner, 1), 1.0),)), QUICK)
    items = data.with_captions(split, None)
    expected = score_focus(said_by(captioner, items, steered.guidance), items, "numbers", judge_for(data, ["numbers"]))
    assert mp.evaluate(steered, data, split).values == expected.values
    assert mp.evaluate(steered, data.focus("numbers"), split).values == expected.values
    assert mp.evaluate(steered, data, split).image_ids == tuple(item.image_id for item in items)


def test_what_is_no_captions_is_refused_and_single_items_need_a_judge(captioner, data):
    steered = Captioner(captioner, Guidance(((prompt_of(captioner, 1), 1.0),)), QUICK)
    with pytest.raises(UserError, match="data is 'emotions', but it must be"):
        mp.evaluate(steered, "emotions")
    with pytest.raises(UserError, match="no training captions of 'numbers'"):
        mp.evaluate(steered, data.test)
    with pytest.raises(UserError, match=r"^there are no images to evaluate on\. Give items with captions, or a part"):
        mp.evaluate(steered, [])


def test_a_result_is_evaluated_by_what_its_training_part_teaches_the_judge(captioner, data):
    data = replace(data, lexicon={})
    result = mp.fit("prompt-tuning", captioner, data.focus("numbers"), epochs=1, batch_size=4, progress=False)
    for found, items in ((result.evaluate(), data.test), (result.evaluate(data.val), data.val)):
        assert found.image_ids == tuple(item.image_id for item in items)
    assert result.evaluate().values == mp.evaluate(result.predictor, data).values
