"""The nouns and verbs of a caption, by the Pattern tagger that TextBlob ships (De Smedt and Daelemans 2012).

The vocabulary is divided into two halves by hash, so that captions can be chosen by one half and judged by the other.
The tagger slips at times: it takes `rides` for a noun and `bear` for a verb.
"""

from __future__ import annotations

import hashlib
from functools import cache
from types import SimpleNamespace

from mmprompt.errors import UserError

CHOOSING, JUDGING = 0, 1
"""The halves of the vocabulary."""

_AUXILIARIES = frozenset(
    "be am is are was were been being have has had having do does did doing done 's 're 'm 've 'd 'll".split()
)


def nouns(caption: str, half: int | None = None) -> tuple[str, ...]:
    """Find the common nouns of a caption, singular, in lower case, in order, repetitions kept.

    Args:
        caption: in English.
        half: `CHOOSING` or `JUDGING` for the nouns of one half of the vocabulary, None for all.
    """
    blob = _text_blob()
    tagged = ((word, tag) for word, tag in blob.tag(caption.lower()) if tag in ("NN", "NNS"))
    singular = (blob.singularize(word) if tag == "NNS" else word for word, tag in tagged)
    return tuple(word for word in singular if half in (None, vocabulary_half(word)))


def verbs(caption: str, half: int | None = None) -> tuple[str, ...]:
    """Find the stems of the verbs of a caption that are no auxiliaries, in order, repetitions kept.

    Args:
        caption: in English.
        half: as in `nouns`.
    """
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
