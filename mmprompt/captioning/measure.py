"""Whether prompts make a captioner keep to their focus: beside no prompt, beside words, and over strength.

Every learned prompt stands beside the captioner without one and beside the best of some hand-written wordings, which is
chosen on the validation part. Nothing else is chosen here, and no prompt is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mmprompt.captioning.data import NEUTRAL, NEUTRAL_NAME, CaptionData, CaptionItem, shown_name
from mmprompt.captioning.decoding import Decoding
from mmprompt.captioning.metrics.adherence import Confusion, FocusScores, Lift, confusion, lift, score_focus
from mmprompt.captioning.metrics.caption_metrics import (
    CaptionScores,
    ClipScores,
    clip_score,
    coco_module,
    score_captions,
)
from mmprompt.captioning.metrics.judges import Judge, judge_for
from mmprompt.captioning.predictor import Captioner, CaptionFeatures, Guidance, features_for, focus_of, hard_prompt
from mmprompt.captioning.readers.captioner import FrozenCaptioner
from mmprompt.captioning.search import prompt_slots
from mmprompt.captioning.task import FocusTask, encode_captions
from mmprompt.core.learned import Prompt
from mmprompt.errors import UserError, bad_value, unknown_name
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.image_features import Progress, encode_images
from mmprompt.models.sites import Insert, Site
from mmprompt.progress import doing
from mmprompt.settings import checked

NO_PROMPT = "no prompt"
STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
N_CURVE = 100
"""Images that the curve over strength is measured on."""
HARD_WORDS = {
    "objects": ("a picture of two objects:", "the objects are", "describe the objects:"),
    "emotions": ("a picture of a face:", "the feelings are", "describe the emotion:"),
    "actions": ("a picture of a person:", "the actions are", "describe the action:"),
    NEUTRAL_NAME: ("a picture of", "the picture shows", "describe the picture:"),
}
"""What somebody would write without looking at the captions the captioner was trained on."""
ANY_WORDS = ("a picture of {}:", "the {} are", "describe the {}:")


def wordings_for(focus: str) -> tuple[str, ...]:
    """Return what somebody would write to ask for a focus."""
    return HARD_WORDS.get(shown_name(focus)) or tuple(words.format(focus) for words in ANY_WORDS)


@dataclass(frozen=True)
class Speaker:
    """A captioner with one prompt, with words, or with none, and what it said of each image, by its id.

    Its name is the focus of a learned prompt ("neutral" for none), "words: FOCUS", or "no prompt", whose focus is "".
    """

    name: str
    focus: str
    said: Mapping[str, str]
    words: str = ""


@dataclass(frozen=True)
class Point:
    """A prompt at one strength, on some of the images."""

    strength: float
    adherence: float
    grounded_precision: float | None
    cider_d: float
    mean_length: float
    distinct_ratio: float


@dataclass(frozen=True)
class CaptionMeasure:
    """What prompts are worth on the images of one part.

    Attributes:
        captioner, data, split, judge: names.
        speakers: no prompt first, then for each focus the best wording and the learned prompt.
        focus_scores: by speaker and focus.
        text_scores: by speaker, against the references of its focus; all of them for no prompt.
        clip_scores: by speaker, where an encoder judged.
        confusion: adherence of every speaker to every focus.
        lifts: by focus: adherence and grounded precision over `"none"` and over `"words"`, paired over images.
        losses: by focus and speaker, the cross entropy of the part's captions of that focus, in nats a token; () where
            it has none.
        strengths: by focus, the curve over strength.
        decoding: how captions were searched.
        notes: what a careful reader should know.
    """

    captioner: str
    data: str
    split: str
    judge: str
    speakers: tuple[Speaker, ...]
    focus_scores: Mapping[str, Mapping[str, FocusScores]]
    text_scores: Mapping[str, CaptionScores]
    clip_scores: Mapping[str, ClipScores]
    confusion: Confusion
    lifts: Mapping[str, Mapping[str, Lift]]
    losses: Mapping[str, Mapping[str, float]]
    strengths: Mapping[str, tuple[Point, ...]]
    decoding: Decoding
    notes: tuple[str, ...] = field(default=())

    @property
    def focuses(self) -> tuple[str, ...]:
        """The focuses of the learned prompts."""
        return tuple(self.lifts)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it with the captions, ready for JSON."""
        return {
            "captioner": self.captioner,
            "data": self.data,
            "split": self.split,
            "judge": self.judge,
            "n_images": len(self.speakers[0].said),
            "decoding": asdict(self.decoding),
            "confusion": self.confusion.to_dict(),
            "lifts": {focus: {name: asdict(one) for name, one in some.items()} for focus, some in self.lifts.items()},
            "losses": {focus: dict(some) for focus, some in self.losses.items()},
            "strengths": {focus: [asdict(point) for point in some] for focus, some in self.strengths.items()},
            "speakers": [
                {
                    "name": one.name,
                    "focus": one.focus,
                    "words": one.words,
                    "focus_scores": {focus: s.to_dict() for focus, s in self.focus_scores[one.name].items()},
                    "text_scores": self.text_scores[one.name].to_dict(),
                    "clip_scores": self.clip_scores[one.name].to_dict() if one.name in self.clip_scores else None,
                    "captions": dict(one.said),
                }
                for one in self.speakers
            ],
            "notes": list(self.notes),
        }


@checked
@doing("measuring captions")
def measure_captions(
    captioner: FrozenCaptioner,
    data: CaptionData,
    prompts: Sequence[Prompt],
    split: str = "test",
    decoding: Decoding | None = None,
    encoder: DualEncoder | None = None,
    strengths: Sequence[float] = STRENGTHS,
    words: Mapping[str, str] | None = None,
    features: CaptionFeatures | None = None,
    progress: Progress | None = None,
) -> CaptionMeasure:
    """Measure learned prompts beside no prompt and beside words.

    Args:
        captioner: the frozen model.
        data: images with references.
        prompts: one or more, of different focuses.
        split: which part; nothing is chosen on it.
        decoding: how captions are searched.
        encoder: a dual encoder for CLIPScore, which should be another than the captioner's.
        strengths: of the curve; () for none.
        words: by focus, the hand-written wording; by default the best of three on the validation part.
        features: of the same captioner, to share them.
        progress: called with how many speakers are done and how many there are.
    Raises:
        UserError: there is no prompt, two have one focus, `words` are for another one, nothing is there to tell one by
            (no word list, no training captions), the part is empty, or pycocoevalcap is not installed.
    """
    by_focus, words = _by_focus(prompts, words or {})
    coco_module("cider.cider")  # missed now, not after the captions are written
    data = _filed_by_name(data) if NEUTRAL in map(focus_of, prompts) else data
    stage = _Stage.set(captioner, data, tuple(by_focus), decoding, features)
    judge, items = stage.judge, data.with_captions(split, None)
    speakers = [Speaker(NO_PROMPT, "", stage.say(items, Guidance()))]
    losses: dict[str, dict[str, float]] = {}
    for focus, prompt in by_focus.items():
        own = [item for item in items if item.of(focus)]
        wording = words.get(focus) or stage.best_words(data, focus)
        hard = hard_prompt(captioner, focus, wording)
        speakers.append(Speaker(f"words: {focus}", focus, stage.say(items, Guidance(((hard, 1.0),))), wording))
        speakers.append(Speaker(focus, focus, stage.say(items, Guidance(((prompt, 1.0),)))))
        spoken = {NO_PROMPT: {}, f"words: {focus}": hard.inserts(), focus: prompt.inserts()} if own else {}
        room = captioner.decoder.budget - max(map(prompt_slots, spoken.values()), default=0)  # the same tokens for all
        losses[focus] = {name: focus_loss(stage.features, own, focus, some, room) for name, some in spoken.items()}
        if progress is not None:
            progress(len(speakers), 2 * len(prompts) + 1)
    scores = {one.name: {f: score_focus(one.said, items, f, judge) for f in judge.focuses} for one in speakers}
    text = {one.name: score_captions(one.said, _references(items, one.focus or None)) for one in speakers}
    likeness = {}
    if encoder is not None:
        images, used = encode_images(encoder, [item.image for item in items]), [captioner.encoder_fingerprint]
        likeness = {one.name: clip_score(encoder, list(one.said.values()), images, used) for one in speakers}
    noted = [judge.notes, *(score.notes for score in text.values()), *(score.notes for score in likeness.values())]
    return CaptionMeasure(
        captioner.name,
        data.name,
        split,
        judge.name,
        tuple(speakers),
        scores,
        text,
        likeness,
        confusion({one.name: one.said for one in speakers}, judge),
        {focus: _lifts_of(focus, scores) for focus in by_focus},
        losses,
        {focus: stage.curve(items[:N_CURVE], prompt, strengths) for focus, prompt in by_focus.items()},
        stage.decoding,
        tuple(dict.fromkeys(note for notes in noted for note in notes)),
    )


def _by_focus(prompts: Sequence[Prompt], words: Mapping[str, str]) -> tuple[dict[str, Prompt], dict[str, str]]:
    """Return the prompts and the wordings by the shown name of their focus; refuse none, two of one, and others'."""
    focuses = [shown_name(focus_of(prompt)) for prompt in prompts]
    by_focus = dict(zip(focuses, prompts, strict=True))
    if not prompts or len(by_focus) < len(prompts):
        given, advice = ", ".join(focuses) or "empty", "Give `prompts`, each of another focus."
        raise bad_value("prompts", given, "one prompt a focus is needed", advice)
    worded = {shown_name(focus): text for focus, text in words.items()}
    for focus in worded:
        if focus not in by_focus:
            raise unknown_name("prompt for the focus", focus, by_focus)
    return by_focus, worded


@checked
def evaluate(
    captioner: Captioner,
    data: CaptionData | FocusTask | Sequence[CaptionItem],
    split: str = "test",
    features: CaptionFeatures | None = None,
) -> FocusScores:
    """Measure how well a captioner keeps to the focus of its one prompt, on one part of the data or on single items.

    See `core.fit.evaluate`.
    """
    focus = shown_name(focus_of(captioner.prompt))
    if isinstance(data, FocusTask):
        data = data.data
    if not isinstance(data, CaptionData):
        if not data:
            raise UserError("there are no images to evaluate on. Give items with captions, or a part that holds some.")
        items = tuple(replace(item, split="test") for item in data)
        data, split = CaptionData("items", Path(), items), "test"
    data = data if focus_of(captioner.prompt) else _filed_by_name(data)
    stage = _Stage.set(captioner.backbone, data, (focus,), captioner.decoding, features)
    items = data.with_captions(split, None)
    return score_focus(stage.say(items, captioner.guidance), items, focus, stage.judge)


def focus_loss(
    features: CaptionFeatures, items: Sequence[CaptionItem], focus: str, inserts: Mapping[Site, Insert], room: int
) -> float:
    """Return the cross entropy, in nats a token, of all captions of a focus that some images have.

    Those that are longer than `room` tokens are cut, as they are for a training.
    """
    words = [[features.captioner.tokenizer.encode(text) for text in item.of(focus)] for item in items]
    captions = encode_captions(features.captioner, words, room)
    return -features.log_probs([item.image for item in items], captions.token_ids, inserts).mean().item()


def _lifts_of(focus: str, scores: Mapping[str, Mapping[str, FocusScores]]) -> dict[str, Lift]:
    """Return what a learned prompt gains over none and over words; leave out a measure that one side does not have."""
    learned, lifts = scores[focus][focus], {}
    for name, rival in (("none", scores[NO_PROMPT][focus]), ("words", scores[f"words: {focus}"][focus])):
        for measure in ("adherence", "grounded_precision_all"):
            if learned.values[measure] is not None and rival.values[measure] is not None:
                lifts[f"{measure} over {name}"] = lift(learned, rival, measure)
    return lifts


def _filed_by_name(data: CaptionData) -> CaptionData:
    """Return data whose captions of no focus are filed under the name that people read, too."""
    items = [replace(item, captions={**item.captions, NEUTRAL_NAME: item.of(NEUTRAL)}) for item in data.items]
    lexicon = {shown_name(focus): entries for focus, entries in data.lexicon.items()}
    return replace(data, items=tuple(items), lexicon=lexicon)


def _references(items: Sequence[CaptionItem], focus: str | None) -> dict[str, tuple[str, ...]]:
    """Return what people wrote of each image, by its id; of all focuses where there is nothing of the one asked for."""
    return {item.image_id: item.of(focus) or item.of(None) for item in items}


@dataclass(frozen=True)
class _Stage:
    """A captioner at work on images whose features are shared by all that is said of them."""

    captioner: FrozenCaptioner
    decoding: Decoding
    features: CaptionFeatures
    judge: Judge

    @classmethod
    def set(
        cls,
        captioner: FrozenCaptioner,
        data: CaptionData,
        focuses: Sequence[str],
        decoding: Decoding | None,
        features: CaptionFeatures | None,
    ) -> _Stage:
        """Prepare what is measured, and its judge; captions without a prompt stand for those without the focus."""
        features, looked_at = features_for(captioner, features), data.train[:N_CURVE]

        def without() -> list[str]:
            seen = features.of([item.image for item in looked_at])
            return [caption.text for caption in Captioner(captioner).caption_features(seen)]

        return cls(captioner, decoding or Decoding(), features, judge_for(data, focuses, without))

    def say(self, items: Sequence[CaptionItem], guidance: Guidance) -> dict[str, str]:
        """Write a caption of each image, by its id."""
        captioner = Captioner(self.captioner, guidance, self.decoding)
        said: dict[str, str] = {}
        for start in range(0, len(items), 64):
            batch = items[start : start + 64]
            features: Tensor = self.features.of([item.image for item in batch])
            captions = captioner.caption_features(features, numbers=range(start, start + len(batch)))
            said.update((item.image_id, caption.text) for item, caption in zip(batch, captions, strict=True))
        return said

    def best_words(self, data: CaptionData, focus: str) -> str:
        """Choose the wording that keeps the captioner best to a focus, on the validation part, or on train without one.

        The first one where the data has neither, as a set that is only tested on.
        """
        wordings = wordings_for(focus)
        items = (data.val or data.train)[:N_CURVE]

        def adherence(words: str) -> float:
            said = self.say(items, Guidance(((hard_prompt(self.captioner, focus, words), 1.0),)))
            return score_focus(said, items, focus, self.judge).values["adherence"] or 0.0

        return max(wordings, key=adherence) if items else wordings[0]

    def curve(self, items: Sequence[CaptionItem], prompt: Prompt, strengths: Sequence[float]) -> tuple[Point, ...]:
        """Measure one prompt at several strengths."""
        if len(items) < 2 and strengths:
            raise UserError("a curve over strength needs two images or more. Give more images, or no strengths.")
        points, focus = [], shown_name(focus_of(prompt))
        for strength in strengths:
            said = self.say(items, Guidance(((prompt, 1.0),), strength))
            values = score_focus(said, items, focus, self.judge).values
            text = score_captions(said, _references(items, focus))
            numbers = text.cider_d, text.mean_length, text.distinct_ratio
            points.append(Point(strength, values["adherence"] or 0.0, values["grounded_precision_all"], *numbers))
        return tuple(points)
