"""The words that captions of a focus have for their own, and the tokens by which a captioner would say them.

They are counted in captions, never taken from a lexicon, so that a lexicon may judge what comes of avoiding them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from mmprompt.captioning.metrics.tokens import tokenize
from mmprompt.captioning.readers.captioner import CaptionTokenizer

RATE = 3.0
"""How many times as often a word must stand in captions of the focus as in others to be its own."""
MOST = 500
"""Words of a focus, the commonest first: more would make a prompt's file large."""
TokenIds = tuple[int, ...]


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
