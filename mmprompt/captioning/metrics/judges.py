"""Who tells what a caption names, as sets of items: objects, emotions and actions.

`LexiconJudge` looks words up in a lexicon, that of the set of captions or one of everyday words; `TaggerJudge` needs
none, and finds nouns, verbs and VADER's words of feeling; `ClassifierJudge` tells any focus from captions with it and
without. None has seen an image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

from mmprompt.captioning.data import NEUTRAL, CaptionData
from mmprompt.captioning.focus_sets import TAGGER, nouns, stem, verbs
from mmprompt.captioning.metrics.tokens import tokenize
from mmprompt.errors import UserError
from mmprompt.files import read_json

N_DROPPED = 20
"""Words of feeling that are left out for being frequent in neutral captions: 40 loses too many emotions."""

EVERYDAY = Path(__file__).parents[2] / "assets" / "everyday.lexicon.json"
"""What photographs show, people do and things are like, in the form of a set's own lexicon."""

_PLURALS = (("ies", "y"), ("es", ""), ("s", ""))

Named = Mapping[str, frozenset[str]]


class LexiconJudge:
    """Finds the surface forms of a lexicon, the longest first; a form may be in the plural.

    The lexicon gives by focus the item that each form (one or more words) names.
    """

    notes: tuple[str, ...] = ()
    names_things = True

    def __init__(self, lexicon: Mapping[str, Mapping[str, str]], name: str = "lexicon") -> None:
        self.name = name
        self.focuses = tuple(sorted(lexicon))
        self._named: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        for focus, entries in lexicon.items():
            for form, item in entries.items():
                tokens = tuple(tokenize(form))
                if not tokens:
                    raise UserError(f"{name}: the form {form!r} of {focus} has no word. Correct the lexicon.")
                self._named.setdefault(tokens, []).append((focus, item))
        if not self._named:
            raise UserError(f"{name}: holds no form of any focus. Give a lexicon, or judge with TaggerJudge.")
        self._longest = max(map(len, self._named))

    def items(self, caption: str) -> Named:
        """Return the items that a caption names, by focus; every focus is there."""
        items: dict[str, set[str]] = {focus: set() for focus in self.focuses}
        tokens = tuple(tokenize(caption))
        while tokens:
            length, named = self._match(tokens[: self._longest])
            for focus, item in named:
                items[focus].add(item)
            tokens = tokens[length:]
        return {focus: frozenset(names) for focus, names in items.items()}

    def _match(self, tokens: tuple[str, ...]) -> tuple[int, list[tuple[str, str]]]:
        """Return how many tokens the longest form at the start takes, and what it names; one token if there is none."""
        for length in range(len(tokens), 0, -1):
            *words, last = tokens[:length]
            singulars = [last[: -len(end)] + rest for end, rest in _PLURALS if last.endswith(end)]
            for form in (last, *singulars):
                if (*words, form) in self._named:
                    return length, self._named[*words, form]
        return 1, []


@dataclass(frozen=True)
class TaggerJudge:
    """Finds nouns (objects), verbs that are no auxiliaries (actions) and VADER's words of feeling (emotions).

    VADER is that of Hutto and Gilbert 2014; the tagger slips at times, as `focus_sets` says. `not_emotions` are words
    of VADER's that do not count.
    """

    not_emotions: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    name = "tagger"
    names_things = True
    focuses = ("actions", "emotions", "objects")

    def items(self, caption: str) -> Named:
        """Return the items that a caption names, by focus; every focus is there."""
        feelings = (word for word in emotion_words(caption) if word not in self.not_emotions)
        return {
            "actions": frozenset(verbs(caption)),
            "emotions": frozenset(stem(word) for word in feelings),
            "objects": frozenset(nouns(caption)),
        }


class ClassifierJudge:
    """Tells whether a caption is of a focus: one item, the focus itself, in a caption that is.

    For each focus a logistic regression on the TF-IDF of words and pairs of words (scikit-learn's), learned from
    captions with the focus and from others, one or more of both.
    """

    name = "classifier"
    names_things = False

    def __init__(self, captions: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        self.focuses = tuple(sorted(captions))
        self._classifiers = {}
        for focus, (own, others) in captions.items():
            words = TfidfVectorizer(tokenizer=tokenize, token_pattern=None, ngram_range=(1, 2), sublinear_tf=True)
            classifier = make_pipeline(words, LogisticRegression(C=10.0, class_weight="balanced"))
            self._classifiers[focus] = classifier.fit([*own, *others], [1] * len(own) + [0] * len(others))
        self.notes = tuple(
            f"Whether a caption is of {focus} is told by a classifier of words and pairs of words, learned from "
            f"{len(own)} captions with it and {len(others)} without: people's column is how often it knows theirs. "
            "What it knows need not be in the image."
            for focus, (own, others) in captions.items()
        )

    def items(self, caption: str) -> Named:
        """Return by focus the focus itself where the caption is of it; every focus is there."""
        return {
            focus: frozenset([focus] if classifier.predict([caption])[0] else [])
            for focus, classifier in self._classifiers.items()
        }


Judge: TypeAlias = LexiconJudge | TaggerJudge | ClassifierJudge
"""Tells what a caption names: its name for reports, what it can tell of (sorted), what to know of it, and whether what
it names can be in an image."""


def judge_for(
    data: CaptionData, focuses: Sequence[str] = (), without: Callable[[], Sequence[str]] | None = None
) -> Judge:
    """Choose the judge of a set of captions: its own lexicon if it brings one, else the tagger, else a classifier.

    Where the tagger chose captions, a lexicon of everyday words judges, which was written by hand without it; words of
    feeling fit the neutral captions. Focuses that neither lexicon nor tagger knows need the classifier, and with it
    captions to learn from: `without` gives some of no focus, where the data has none.
    """
    if data.lexicon and set(focuses) <= set(data.lexicon):
        return LexiconJudge(data.lexicon, f"lexicon of {data.name}")
    everyday = read_json(EVERYDAY)
    if any(how.startswith(TAGGER) for how in data.chosen_by.values()) and set(focuses) <= set(everyday):
        return LexiconJudge(everyday, "lexicon of everyday words")
    if not set(focuses) <= set(TaggerJudge.focuses):
        return ClassifierJudge({focus: _with_and_without(data, focus, without) for focus in focuses})
    neutral = [item.of(NEUTRAL) for item in data.train if item.of(NEUTRAL)]
    notes = []
    if not neutral:
        notes.append("There are no neutral captions to calibrate words of feeling on: some are meant literally.")
    return TaggerJudge(frozenset(frequent_emotion_words(neutral)), tuple(notes))


def _with_and_without(
    data: CaptionData, focus: str, without: Callable[[], Sequence[str]] | None
) -> tuple[list[str], Sequence[str]]:
    """Return the training captions of a focus, and others: the data's own, or those that are given."""
    own = [text for item in data.train for text in item.of(focus)]
    if not own:
        raise UserError(
            f"{data.name} has no training captions of {focus!r} to know it by, and no word list of it. "
            "Give data with some, or a `lexicon` of its words."
        )
    others: Sequence[str] = [text for item in data.train for text in item.of(None) if text not in item.of(focus)]
    others = others or (() if without is None else without())
    if not others:
        raise UserError(
            f"{data.name} has no captions without {focus!r} to compare with. Give a `lexicon` of its words."
        )
    return own, others


def frequent_emotion_words(neutral: Iterable[Sequence[str]], n_dropped: int = N_DROPPED) -> tuple[str, ...]:
    """Find the words of feeling that are most frequent in neutral captions, where most are meant literally."""
    counts = Counter(word for captions in neutral for caption in captions for word in emotion_words(caption))
    return tuple(word for word, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:n_dropped])


def emotion_words(caption: str) -> tuple[str, ...]:
    """Find the words of a caption that VADER's lexicon has, in order, repetitions kept."""
    lexicon = _vader_lexicon()
    return tuple(word for word in tokenize(caption) if word in lexicon)


@cache
def _vader_lexicon() -> frozenset[str]:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise UserError(
            "words of feeling are found by vaderSentiment, which is not installed. "
            "Run `pip install 'mmprompt[captions]'`."
        ) from None
    return frozenset(word for word in SentimentIntensityAnalyzer().lexicon if word.isalpha())
