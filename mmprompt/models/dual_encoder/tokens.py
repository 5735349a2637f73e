"""A library's tokenizer, reduced to words: ids without start, end or padding, and how to put those back.

The frame is found by watching the tokenizer rather than by its attributes, which differ between
libraries and are at times wrong. Nothing here knows which library made the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmprompt.errors import UserError

PROBE_SLOTS = 16


@dataclass(frozen=True)
class Frame:
    """The ids around the words of a text: an optional start, the end, then padding up to the last slot."""

    start_id: int | None
    end_id: int
    pad_id: int


@dataclass(frozen=True)
class WordTokenizer:
    """Text to ids and back, by a library's own tokenizer.

    Args:
        padded_ids: a text and a number of slots, to that many ids as the library frames and pads them.
        ids_to_text: ids to text, as the library decodes them.
        size: V, the number of ids it can give.
    """

    padded_ids: Callable[[str, int], list[int]]
    ids_to_text: Callable[[list[int]], str]
    size: int

    def frame(self) -> Frame:
        """Find the frame by comparing an empty text with a word.

        Raises:
            UserError: the tokenizer frames texts in a way that is not start, words, end, padding.
        """
        empty, word = self.padded_ids("", PROBE_SLOTS), self.padded_ids("a", PROBE_SLOTS)
        start_id = empty[0] if empty[0] == word[0] else None
        end_id, pad_id, *rest = empty if start_id is None else empty[1:]
        if any(token != pad_id for token in (*rest, word[-1])):
            raise UserError(
                f"this tokenizer frames an empty text as {empty}, but start, end and padding were expected. "
                "Use a backbone whose tokenizer puts the end token after the words and padding after that."
            )
        return Frame(start_id, end_id, pad_id)

    def words(self, text: str, frame: Frame) -> list[int]:
        """The ids of a text without its frame, never cut.

        Raises:
            UserError: the text spells out the start or end token.
        """
        # No known normalisation makes more than four tokens of a byte, so nothing is cut to fit.
        ids = self.padded_ids(text, 4 * len(text.encode()) + PROBE_SLOTS)
        ids = ids if frame.start_id is None else ids[1:]
        while ids and ids[-1] == frame.pad_id:
            ids.pop()
        if frame.end_id != frame.pad_id:
            ids.pop()
        if frame.end_id in ids or frame.start_id in ids:
            raise UserError(
                f"{text!r} holds the tokenizer's own start, end or unknown token. Use words that it can spell."
            )
        return ids

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of ids, as the library decodes it."""
        return self.ids_to_text(list(ids))
