"""Focus sets from neutral captions: of several references of one image, the one that speaks most of a focus alone; and
the words that captions of a focus have for their own, with the tokens by which a captioner would say them.

It works for objects, actions and attributes. It does not for emotions, which neutral captions hardly name;
`build_focus` says so. How much a caption speaks of a focus is the share of its nouns, verbs and adjectives that belong
to it.

Nouns, verbs and adjectives are found by the Pattern tagger that TextBlob ships (De Smedt and Daelemans 2012). It slips
at times: it takes `rides` for a noun and `bear` for a verb. What it chose should be judged by something else. A focus's
own words are counted in captions, never taken from a lexicon, so that one may judge what comes of avoiding them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

from mmprompt.captioning.data import NEUTRAL, CaptionData
from mmprompt.captioning.metrics.tokens import tokenize
from mmprompt.captioning.readers.captioner import CaptionTokenizer
from mmprompt.captioning.search import TokenIds
from mmprompt.errors import UserError, unknown_name

TAGGER = "tagger"
"""How a `chosen_by` begins where TextBlob's Pattern tagger chose."""
RATE = 3.0
"""How many times as often a word must stand in captions of the focus as in others to be its own."""
MOST = 500
"""Words of a focus, the commonest first: more would make a prompt's file large."""

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


def own_words(captions: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """Find the words that captions of a focus use far more often than other captions, the commonest first.

    Rates are of all words, with half a word added to each count; English stop words (scikit-learn's) are no focus's.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    counts, elsewhere = (Counter(word for text in some for word in tokenize(text)) for some in (captions, others))
    n_own, n_elsewhere = counts.total(), max(1, elsewhere.total())

    def is_own(word: str) -> bool:
        rate, rate_elsewhere = (counts[word] + 0.5) / n_own, (elsewhere[word] + 0.5) / n_elsewhere
        return rate >= RATE * rate_elsewhere and word not in ENGLISH_STOP_WORDS

    return tuple(sorted(filter(is_own, counts), key=lambda word: (-counts[word], word))[:MOST])


def token_beginnings(
    tokenizer: CaptionTokenizer, words: Iterable[str], texts: Iterable[str]
) -> dict[str, tuple[TokenIds, ...]]:
    """Find by word the shortest beginnings of its tokens that are in no other word of some texts.

    A captioner that is kept from these says neither the word nor half of it. Where all of a word is in another one, it
    is the whole word.
    """
    spelled = {word: _spellings(tokenizer, word) for word in words}
    others = {word for text in texts for word in tokenize(text)} - set(spelled)
    taken = {
        ids[start:end]
        for word in others
        for ids in _spellings(tokenizer, word)
        for start in range(len(ids))
        for end in range(start + 1, len(ids) + 1)
    }

    def beginning(ids: TokenIds) -> TokenIds:
        return next((ids[:n] for n in range(1, len(ids)) if ids[:n] not in taken), ids)

    return {word: tuple(sorted({beginning(ids) for ids in some})) for word, some in spelled.items()}


def _spellings(tokenizer: CaptionTokenizer, word: str) -> set[TokenIds]:
    """Return the token ids of a word at the start of a text, behind another word, and with a capital letter."""
    alone, twice = tokenizer.encode(word), tokenizer.encode(f"{word} {word}")
    inside = twice[len(alone) :] if twice[: len(alone)] == alone else []
    return {tuple(ids) for ids in (alone, inside, tokenizer.encode(word.capitalize())) if ids}
