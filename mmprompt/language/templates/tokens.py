"""A tokenizer as templates use it: no token before or after a text, and nothing of a row is a special token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

ANCHOR = "a"
"""A word that stands before a text that begins with a blank, so that the blank is read as one within a text."""

Piece = tuple[str, bool]
"""A text, and whether it comes from a row."""


class Tokens:
    """A tokenizer of transformers, fast or slow, as templates use it; it adds nothing before or after a text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        known = tokenizer.added_tokens_decoder
        self._special = {i for i, token in known.items() if token.special} | set(tokenizer.all_special_ids)
        names = {known[i].content if i in known else tokenizer.convert_ids_to_tokens(i) for i in self._special}
        self._names = re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or r"(?!)")
        self._anchor = self._call(ANCHOR, False)
        self._own: dict[str, list[int]] = {}  # special tokens of a literal text

    def ids(self, pieces: Sequence[Piece], follows: bool) -> list[int]:
        """Return the tokens of literal texts and texts of a row as one string, which follows another or does not."""
        ids = self._encode("".join(text for text, _ in pieces), follows, False)
        if not any(is_field for _, is_field in pieces):
            return ids
        wanted = [i for text, is_field in pieces if not is_field for i in self._specials_of(text)]
        return ids if self._only_special(ids) == wanted else self._guarded(pieces, follows)

    def after(self, before: str, pieces: Sequence[Piece]) -> list[int]:
        """Return the tokens of texts that follow a literal one in the same string."""
        first = self.ids([(before, False)], True)
        both = self.ids([(before, False), *pieces], True)
        return both[len(first) :] if both[: len(first)] == first else self.ids(pieces, True)

    def ends(self, text: str) -> list[int]:
        """List where a text may be cut: the numbers of characters that its first 0, 1, 2, ... tokens hold whole."""
        if not self.tokenizer.is_fast:
            ids = self._call(text, True)
            held = [self.tokenizer.decode(ids[:n], clean_up_tokenization_spaces=False) for n in range(len(ids))]
            # what a slow tokenizer decodes is as long as the text that it was made of, or nearly
            return [*accumulate((min(len(part), len(text)) for part in held), max), len(text)]
        spans = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        # a token may hold a part of a character; then the character is not held whole
        inner = [min(end, following) for (_, end), (following, _) in pairwise(spans)]
        return [0, *accumulate(inner, max), len(text)] if spans else [len(text)]

    def _call(self, text: str, is_split: bool) -> list[int]:
        found = self.tokenizer(text, add_special_tokens=False, split_special_tokens=is_split, verbose=False)
        return list(found["input_ids"])

    def _encode(self, text: str, follows: bool, is_split: bool) -> list[int]:
        if not text:
            return []
        if follows and text[0].isspace():
            both = self._call(ANCHOR + text, is_split)
            if both[: len(self._anchor)] == self._anchor:
                return both[len(self._anchor) :]
        return self._call(text, is_split)

    def _only_special(self, ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i in self._special]

    def _specials_of(self, literal: str) -> list[int]:
        if literal not in self._own:
            self._own[literal] = self._only_special(self._call(literal, False))
        return self._own[literal]

    def _guarded(self, pieces: Sequence[Piece], follows: bool) -> list[int]:
        """Do the same where a field reads like a special token: only those of the literal texts are taken for one."""
        ids: list[int] = []
        run = ""
        for text, is_field in pieces:
            at = 0
            for match in () if is_field else self._names.finditer(text):
                ids += self._encode(run + text[at : match.start()], follows and not ids, True)
                ids.append(self.tokenizer.convert_tokens_to_ids(match[0]))
                run, at = "", match.end()
            run += text[at:]
        return ids + self._encode(run, follows and not ids, True)
