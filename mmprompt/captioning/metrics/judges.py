"""Who says what a caption names: objects, emotions and actions, as sets of items.

`LexiconJudge` looks words up in a lexicon that a set of captions brings; `TaggerJudge` needs none, and finds nouns,
verbs and VADER's words of feeling. Neither has seen an image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TypeAlias

from mmprompt.captioning.data import NEUTRAL, CaptionData
from mmprompt.captioning.focus_sets import JUDGING, TAGGER, nouns, stem, verbs
from mmprompt.captioning.metrics.tokens import tokenize
from mmprompt.errors import UserError

N_DROPPED = 20
"""Words of feeling that are left out for being frequent in neutral captions: 40 loses too many emotions."""

_PLURALS = (("ies", "y"), ("es", ""), ("s", ""))

Named = Mapping[str, frozenset[str]]


class LexiconJudge:
    """Finds the surface forms of a lexicon, the longest first; a form may be in the plural.

    The lexicon gives by focus the item that each form (one or more words) names.
    """

    notes: tuple[str, ...] = ()

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
    of VADER's that do not count; `halves` by focus the half of the vocabulary that is judged by, all of it where one is
    missing.
    """

    not_emotions: frozenset[str] = frozenset()
    halves: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    name = "tagger"
    focuses = ("actions", "emotions", "objects")

    def items(self, caption: str) -> Named:
        """Return the items that a caption names, by focus; every focus is there."""
        feelings = (word for word in emotion_words(caption) if word not in self.not_emotions)
        return {
            "actions": frozenset(verbs(caption, self.halves.get("actions"))),
            "emotions": frozenset(stem(word) for word in feelings),
            "objects": frozenset(nouns(caption, self.halves.get("objects"))),
        }


Judge: TypeAlias = LexiconJudge | TaggerJudge
"""Tells what a caption names: its name for reports, what it can tell of (sorted), and what to know of it."""


def judge_for(data: CaptionData) -> Judge:
    """Choose the judge of a set of captions: its own lexicon if it brings one, else the tagger.

    Where the tagger chose the captions of a focus, it judges by the half of the vocabulary that chose nothing. VADER's
    words are calibrated on the neutral captions of the train part.
    """
    if data.lexicon:
        return LexiconJudge(data.lexicon, f"lexicon of {data.name}")
    halves = {focus: JUDGING for focus, how in data.chosen_by.items() if how.startswith(TAGGER)}
    notes = [
        f"The tagger chose the captions of {focus}, so the half of the vocabulary that did not choose judges. It "
        "underrates them: a caption of a given length that holds more words of one half holds fewer of the other."
        for focus in halves
    ]
    neutral = [item.of(NEUTRAL) for item in data.train if item.of(NEUTRAL)]
    if not neutral:
        notes.append("There are no neutral captions to calibrate words of feeling on: some are meant literally.")
    return TaggerJudge(frozenset(frequent_emotion_words(neutral)), halves, tuple(notes))


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
