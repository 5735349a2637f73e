"""Focus sets from neutral captions: of several references of one image, the one that speaks most of a focus alone.

It works for objects, actions and attributes. It does not for emotions, which neutral captions hardly name;
`build_focus` says so. How much a caption speaks of a focus is the share of its nouns, verbs and adjectives that belong
to it.

Nouns, verbs and adjectives are found by the Pattern tagger that TextBlob ships (De Smedt and Daelemans 2012). It slips
at times: it takes `rides` for a noun and `bear` for a verb. What it chose should be judged by something else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

from mmprompt.captioning.data import NEUTRAL, CaptionData
from mmprompt.errors import UserError, unknown_name

TAGGER = "tagger"
"""How a `chosen_by` begins where TextBlob's Pattern tagger chose."""

_AUXILIARIES = frozenset(
    "be am is are was were been being have has had having do does did doing done 's 're 'm 've 'd 'll".split()
)


def nouns(caption: str) -> tuple[str, ...]:
    """Find the common nouns of a caption, singular, in lower case, in order, repetitions kept."""
    blob = _text_blob()
    tagged = ((word, tag) for word, tag in blob.tag(caption.lower()) if tag in ("NN", "NNS"))
    return tuple(blob.singularize(word) if tag == "NNS" else word for word, tag in tagged)


def verbs(caption: str) -> tuple[str, ...]:
    """Find the stems of the verbs of a caption that are no auxiliaries, in order, repetitions kept."""
    tagged = _text_blob().tag(caption.lower())
    return tuple(stem(word) for word, tag in tagged if tag.startswith("VB") and word not in _AUXILIARIES)


def adjectives(caption: str) -> tuple[str, ...]:
    """Find the adjectives and numbers of a caption, in lower case, in order, repetitions kept."""
    return tuple(word for word, tag in _text_blob().tag(caption.lower()) if tag in ("JJ", "CD"))


def stem(word: str) -> str:
    """Return what the forms of a word share, such as `smile` of `smiling` (Porter 1980); the word is in lower case."""
    return _text_blob().stem(word)


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


COUNTED: dict[str, tuple[str, Callable[[str], tuple[str, ...]]]] = {
    "objects": ("nouns", nouns),
    "actions": ("verbs", verbs),
    "attributes": ("adjectives", adjectives),
}
"""By focus that can be chosen, the kind of word that belongs to it, and what finds those."""


def share_of(caption: str, focus: str) -> float:
    """Return the share, 0..1, of the different nouns, verbs and adjectives of a caption that belong to a focus."""
    counts = {name: len(set(find(caption))) for name, (_, find) in COUNTED.items()}
    return counts[focus] / max(1, sum(counts.values()))


def build_focus(data: CaptionData, focus: str) -> CaptionData:
    """Add captions of a focus (objects, actions or attributes), chosen among two or more neutral captions of an image.

    Of every image those with the greatest `share_of` the focus, but only of the images, half of them or more, where
    that share is at least what it is in the middle one; `chosen_by` and a note say so.
    """
    if focus == "emotions":
        raise UserError(
            "captions of emotions cannot be chosen among neutral ones: COCO's hold 0.25 emotion words each, most of "
            "them meant literally (top, playing, fire). Give SentiCap, FlickrStyle, ArtEmis, or captions of your own."
        )
    if focus not in COUNTED:
        raise unknown_name("focus to choose captions by", focus, COUNTED)
    if focus in data.focuses:
        raise UserError(f"{data.name} has captions of {focus} already. Use them as they are.")
    several = {item.image_id for item in data.items if len(item.of(NEUTRAL)) > 1}
    if not several:
        raise UserError(
            f"{data.name} has no image with two or more neutral captions to choose {focus} among. "
            f"Give captions of {focus}, or a set with several references, such as COCO's."
        )
    what, _ = COUNTED[focus]
    shares = [{text: share_of(text, focus) for text in item.of(NEUTRAL)} for item in data.items]
    most = [max(some.values(), default=0.0) for some in shares]
    found = sorted(share for share in most if share > 0)
    if not found:
        raise UserError(f"no neutral caption of {data.name} holds {what}. Give captions of {focus}.")
    least, items = found[len(found) // 2], []
    for item, some, best in zip(data.items, shares, most, strict=True):
        chosen = tuple(text for text, share in some.items() if share == best >= least)
        items.append(replace(item, captions={**item.captions, focus: chosen}) if chosen else item)
    n_chosen = sum(bool(item.of(focus)) for item in items)
    how = f"{TAGGER}: the greatest share of {what}"
    note = (
        f"Captions of {focus} are the neutral ones with the greatest share of {what}, of {n_chosen} of {len(items)} "
        f"images ({len(several)} have more than one to choose among), found by a tagger."
    )
    return replace(data, items=tuple(items), chosen_by={**data.chosen_by, focus: how}, notes=(*data.notes, note))
