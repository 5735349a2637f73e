"""Whether prompts make a captioner keep to their focus: beside no prompt, beside words, and over strength.

Every learned prompt stands beside the captioner without one and beside the best of some hand-written wordings, which is
chosen on the validation part. Nothing else is chosen here, and no prompt is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from mmprompt.captioning.data import CaptionData, CaptionItem
from mmprompt.captioning.decoding import Decoding
from mmprompt.captioning.metrics.adherence import Confusion, FocusScores, Lift, confusion, lift, score_focus
from mmprompt.captioning.metrics.caption_metrics import CaptionScores, coco_module, score_captions
from mmprompt.captioning.metrics.clip_score import ClipScores, clip_score
from mmprompt.captioning.metrics.judges import Judge, judge_for
from mmprompt.captioning.predictor import Captioner, CaptionFeatures, Steering, focus_of, hard_prompt
from mmprompt.captioning.readers.captioner import FrozenCaptioner
from mmprompt.core.learned import Prompt
from mmprompt.errors import UserError, bad_value
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.image_features import encode_pictures
from mmprompt.settings import checked

NO_PROMPT = "no prompt"
STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
N_CURVE = 100
"""Pictures that the curve over strength is measured on."""
HARD_WORDS = {
    "objects": ("a picture of two objects:", "the objects are", "describe the objects:"),
    "emotions": ("a picture of a face:", "the feelings are", "describe the emotion:"),
    "actions": ("a picture of a person:", "the actions are", "describe the action:"),
}
"""What somebody would write without looking at the captions the captioner was trained on."""
ANY_WORDS = ("a picture of {}:", "the {} are", "describe the {}:")

Said = Mapping[str, str]
"""A caption of each picture, by its id."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Speaker:
    """A captioner with one prompt, with words, or with none, and what it said.

    Args:
        name: the focus of a learned prompt, "words: FOCUS", or "no prompt".
        focus: what it is to speak of, "" for no prompt.
        said: a caption of each picture.
        words: of a hard prompt.
    """

    name: str
    focus: str
    said: Said
    words: str = ""


@dataclass(frozen=True)
class Point:
    """A prompt at one strength, on some of the pictures."""

    strength: float
    adherence: float
    grounded_precision: float | None
    cider_d: float
    mean_length: float
    distinct_ratio: float


@dataclass(frozen=True)
class CaptionMeasure:
    """What prompts are worth on the pictures of one part.

    Attributes:
        captioner, data, split, judge: names.
        speakers: no prompt first, then for each focus the best wording and the learned prompt.
        focus_scores: by speaker and focus.
        text_scores: by speaker, against the references of its focus; all of them for no prompt.
        clip_scores: by speaker, where an encoder judged.
        confusion: adherence of every speaker to every focus.
        lifts: by focus: adherence and grounded precision over `"none"` and over `"words"`, paired over pictures.
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
    strengths: Mapping[str, tuple[Point, ...]]
    decoding: Decoding
    notes: tuple[str, ...] = field(default=())

    @property
    def focuses(self) -> tuple[str, ...]:
        """The focuses of the learned prompts."""
        return tuple(self.lifts)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, captions included."""
        return {
            "captioner": self.captioner,
            "data": self.data,
            "split": self.split,
            "judge": self.judge,
            "n_images": len(self.speakers[0].said),
            "decoding": asdict(self.decoding),
            "confusion": self.confusion.to_dict(),
            "lifts": {focus: {name: one.to_dict() for name, one in some.items()} for focus, some in self.lifts.items()},
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
        data: pictures with references.
        prompts: one or more, of different focuses.
        split: which part; nothing is chosen on it.
        decoding: how captions are searched.
        encoder: a dual encoder for CLIPScore, which should be another than the captioner's.
        strengths: of the curve; () for none.
        words: by focus, the hand-written wording; by default the best of three on the validation part.
        features: of the same captioner, to share them.
        progress: called with how many speakers are done and how many there are.
    Raises:
        UserError: there is no prompt, two have one focus, the judge does not know one, the part is empty, or
            pycocoevalcap is not installed.
    """
    focuses = [focus_of(prompt) for prompt in prompts]
    if not prompts or len(set(focuses)) < len(focuses):
        raise bad_value(
            "prompts",
            ", ".join(focuses) or "empty",
            "one prompt a focus is needed",
            "Give `prompts`, each of another focus.",
        )
    coco_module("cider.cider")  # missed now, not after the captions are written
    judge = judge_for(data)
    stage = _Stage(captioner, decoding or Decoding(), features or CaptionFeatures(captioner), judge)
    items = data.with_captions(split, None)
    speakers = [Speaker(NO_PROMPT, "", stage.say(items, Steering()))]
    for prompt in prompts:
        wording = (words or {}).get(focus_of(prompt)) or best_words(stage, data, focus_of(prompt))
        hard = hard_prompt(captioner, focus_of(prompt), wording)
        speakers.append(Speaker(f"words: {focus_of(prompt)}", focus_of(prompt), stage.say(items, only(hard)), wording))
        speakers.append(Speaker(focus_of(prompt), focus_of(prompt), stage.say(items, only(prompt))))
        if progress is not None:
            progress(len(speakers), 2 * len(prompts) + 1)
    scores = {one.name: {f: score_focus(one.said, items, f, judge) for f in judge.focuses} for one in speakers}
    text = {one.name: score_captions(one.said, references(items, one.focus or None)) for one in speakers}
    notes = [*judge.notes, *(note for score in text.values() for note in score.notes)]
    likeness = {} if encoder is None else clip_scores(encoder, items, speakers, captioner)
    notes += [note for score in likeness.values() for note in score.notes]
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
        {focus: lifts_of(focus, scores) for focus in focuses},
        {focus_of(prompt): stage.curve(items[:N_CURVE], prompt, strengths) for prompt in prompts},
        stage.decoding,
        tuple(dict.fromkeys(notes)),
    )


@checked
def evaluate(
    captioner: Captioner, data: CaptionData, split: str = "test", features: CaptionFeatures | None = None
) -> FocusScores:
    """Measure how well a captioner keeps to the focus of its prompt; see `core.fit.evaluate`.

    Args:
        captioner: with one prompt.
        data: images with references.
        split: which part of them.
        features: of the same captioner, to share them.
    """
    judge, items = judge_for(data), data.with_captions(split, None)
    stage = _Stage(captioner.backbone, captioner.decoding, features or CaptionFeatures(captioner.backbone), judge)
    return score_focus(stage.say(items, captioner.steering), items, focus_of(captioner.prompt), judge)


def only(prompt: Prompt, strength: float = 1.0) -> Steering:
    """One prompt at one strength."""
    return Steering(((prompt, 1.0),), strength)


def best_words(stage: _Stage, data: CaptionData, focus: str) -> str:
    """The wording that the captioner keeps to its focus best with, on the validation part, or on train without one.

    The first one where the data has neither, as a set that is only tested on.
    """
    wordings = HARD_WORDS.get(focus) or tuple(words.format(focus) for words in ANY_WORDS)
    items = (data.val or data.train)[:N_CURVE]

    def adherence(words: str) -> float:
        said = stage.say(items, only(hard_prompt(stage.captioner, focus, words)))
        return score_focus(said, items, focus, stage.judge).values["adherence"] or 0.0

    return max(wordings, key=adherence) if items else wordings[0]


def lifts_of(focus: str, scores: Mapping[str, Mapping[str, FocusScores]]) -> dict[str, Lift]:
    """What a learned prompt gains over none and over words; a measure that one side does not have is left out."""
    found = {}
    for name, other in (("none", NO_PROMPT), ("words", f"words: {focus}")):
        for measure in ("adherence", "grounded_precision_all"):
            one, another = scores[focus][focus], scores[other][focus]
            if one.values[measure] is not None and another.values[measure] is not None:
                found[f"{measure} over {name}"] = lift(one, another, measure)
    return found


def references(items: Sequence[CaptionItem], focus: str | None) -> dict[str, tuple[str, ...]]:
    """What people wrote of each picture, by its id; of all focuses where there is nothing of the one asked for."""
    return {item.image_id: item.of(focus) or item.of(None) for item in items}


def clip_scores(
    encoder: DualEncoder, items: Sequence[CaptionItem], speakers: Sequence[Speaker], captioner: FrozenCaptioner
) -> dict[str, ClipScores]:
    """CLIPScore of every speaker by one dual encoder."""
    images = encode_pictures(encoder, [item.image for item in items])
    used = [captioner.encoder_fingerprint]
    return {one.name: clip_score(encoder, list(one.said.values()), images, used) for one in speakers}


class _Stage:
    """A captioner at work on pictures whose features are shared by all that is said of them."""

    def __init__(self, captioner: FrozenCaptioner, decoding: Decoding, features: CaptionFeatures, judge: Judge) -> None:
        self.captioner, self.decoding, self.judge = captioner, decoding, judge
        self._features = features

    def say(self, items: Sequence[CaptionItem], steering: Steering) -> dict[str, str]:
        """A caption of each picture, by its id."""
        captioner = Captioner(self.captioner, steering, self.decoding)
        found: dict[str, str] = {}
        for start in range(0, len(items), 64):
            some = items[start : start + 64]
            features: Tensor = self._features.of([item.image for item in some])
            captions = captioner.caption_features(features, numbers=range(start, start + len(some)))
            found.update((item.image_id, caption.text) for item, caption in zip(some, captions, strict=True))
        return found

    def curve(self, items: Sequence[CaptionItem], prompt: Prompt, strengths: Sequence[float]) -> tuple[Point, ...]:
        """One prompt at several strengths."""
        if len(items) < 2 and strengths:
            raise UserError("a curve over strength needs two pictures or more. Give more pictures, or no strengths.")
        points = []
        for strength in strengths:
            said = self.say(items, only(prompt, strength))
            values = score_focus(said, items, focus_of(prompt), self.judge).values
            text = score_captions(said, references(items, focus_of(prompt)))
            points.append(
                Point(
                    strength,
                    values["adherence"] or 0.0,
                    values["grounded_precision_all"],
                    text.cider_d,
                    text.mean_length,
                    text.distinct_ratio,
                )
            )
        return tuple(points)
