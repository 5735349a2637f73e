"""Focus sets from neutral captions: of several references of one image, those that speak most of a focus.

It works for objects and actions. It does not for emotions, which neutral captions hardly name; `build_focus` says so.
Choosing by one half of the vocabulary has a price, measured on COCO's Karpathy test images: the chosen captions hold
more nouns of the half that chose (2.49 against 1.56 of any caption) and fewer of the other (1.68 against 1.97); verbs
likewise (1.20 against 0.58, and 0.32 against 0.46). The half that is left to judge by therefore underrates them.

Nouns and verbs are found by the Pattern tagger that TextBlob ships (De Smedt and Daelemans 2012). It slips at times: it
takes `rides` for a noun and `bear` for a verb.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

from mmprompt.captioning.data import NEUTRAL, CaptionData
from mmprompt.errors import UserError, unknown_name

TAGGER = "tagger"
"""How a `chosen_by` begins where TextBlob's Pattern tagger chose."""
CHOOSING, JUDGING = 0, 1
"""The halves of the vocabulary, divided by hash: captions are chosen by one and judged by the other."""

_AUXILIARIES = frozenset(
    "be am is are was were been being have has had having do does did doing done 's 're 'm 've 'd 'll".split()
)


def nouns(caption: str, half: int | None = None) -> tuple[str, ...]:
    """Find the common nouns of a caption, singular, in lower case, in order, repetitions kept.

    `half` is `CHOOSING` or `JUDGING` for those of one half of the vocabulary, None for all.
    """
    blob = _text_blob()
    tagged = ((word, tag) for word, tag in blob.tag(caption.lower()) if tag in ("NN", "NNS"))
    singular = (blob.singularize(word) if tag == "NNS" else word for word, tag in tagged)
    return tuple(word for word in singular if half in (None, vocabulary_half(word)))


def verbs(caption: str, half: int | None = None) -> tuple[str, ...]:
    """Find the stems of the verbs of a caption that are no auxiliaries, in order, repetitions kept; see `nouns`."""
    tagged = _text_blob().tag(caption.lower())
    stems = (stem(word) for word, tag in tagged if tag.startswith("VB") and word not in _AUXILIARIES)
    return tuple(word for word in stems if half in (None, vocabulary_half(word)))


def stem(word: str) -> str:
    """Return what the forms of a word share, such as `smile` of `smiling` (Porter 1980); the word is in lower case."""
    return _text_blob().stem(word)


def vocabulary_half(word: str) -> int:
    """Return the half of the vocabulary that a word belongs to, by its hash."""
    return hashlib.sha256(word.encode()).digest()[0] % 2


@cache
def _text_blob() -> SimpleNamespace:
    """Load what is used of TextBlob and of the stemmer it brings; none of it downloads anything."""
    try:
        from nltk.stem import PorterStemmer
        from textblob.en.inflect import singularize
        from textblob.en.taggers import PatternTagger
    except ImportError:
        raise UserError(
            "nouns and verbs are found by TextBlob, which is not installed. Run `pip install 'mmprompt[captions]'`."
        ) from None
    return SimpleNamespace(singularize=cache(singularize), stem=cache(PorterStemmer().stem), tag=PatternTagger().tag)


_COUNTED: dict[str, tuple[str, Callable[[str, int], tuple[str, ...]]]] = {
    "objects": ("nouns", nouns),
    "actions": ("verbs", verbs),
}


def build_focus(data: CaptionData, focus: str) -> CaptionData:
    """Add captions of a focus (objects or actions), chosen among two or more neutral captions of an image.

    Kept are those with the most different nouns (objects) or verbs that are no auxiliaries (actions). Only one half of
    the vocabulary is counted, so that the other half is left to judge by; `chosen_by` and a note say so.
    """
    if focus == "emotions":
        raise UserError(
            "captions of emotions cannot be chosen among neutral ones: COCO's hold 0.25 emotion words each, most of "
            "them meant literally (top, playing, fire). Give SentiCap, FlickrStyle, ArtEmis, or captions of your own."
        )
    if focus not in _COUNTED:
        raise unknown_name("focus to choose captions by", focus, _COUNTED)
    if focus in data.focuses:
        raise UserError(f"{data.name} has captions of {focus} already. Use them as they are.")
    several = sum(len(item.of(NEUTRAL)) > 1 for item in data.items)
    if not several:
        raise UserError(
            f"{data.name} has no image with two or more neutral captions to choose {focus} among. "
            f"Give captions of {focus}, or a set with several references, such as COCO's."
        )
    what, counted = _COUNTED[focus]
    items = []
    for item in data.items:
        counts = {caption: len(set(counted(caption, CHOOSING))) for caption in item.of(NEUTRAL)}
        most = max(counts.values(), default=0)
        chosen = tuple(caption for caption, count in counts.items() if count == most > 0)
        items.append(replace(item, captions={**item.captions, focus: chosen}) if chosen else item)
    n_chosen = sum(bool(item.of(focus)) for item in items)
    if not n_chosen:
        raise UserError(f"no neutral caption of {data.name} holds {what}. Give captions of {focus}.")
    how = f"{TAGGER}: the most {what} of half {CHOOSING} of the vocabulary"
    note = (
        f"Captions of {focus} are the neutral ones with the most {what}, of {n_chosen} of {len(items)} images "
        f"({several} have more than one to choose among); judge them by the other half of the vocabulary."
    )
    return replace(data, items=tuple(items), chosen_by={**data.chosen_by, focus: how}, notes=(*data.notes, note))
