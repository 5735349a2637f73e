"""A template settled for one tokenizer, and what a language model reads of a row with it.

A tokenizer adds nothing before or after a text here, and nothing of a row is a special token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from mmprompt.core.template import ANSWER, Bos, Field, Part, Soft
from mmprompt.errors import UserError, bad_value

if TYPE_CHECKING:
    from mmprompt.language.templates.template import Template

DIVIDER = "|"
"""Stands between the words of one label where the answer stands in several places; without it all are alike."""
TokenRows = tuple[tuple[int, ...], ...]
ANCHOR = "a"
"""A word that stands before a text that begins with a blank, so that the blank is read as one within a text."""
HALF = re.compile("[\ud800-\udfff]")

Piece = tuple[str, bool]
"""A text, and whether it comes from a row."""


def is_text(value: object) -> bool:
    """Return whether something is a text of whole characters, which a tokenizer reads."""
    return isinstance(value, str) and HALF.search(value) is None


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


@dataclass(frozen=True)
class Segment:
    """Soft vectors or start tokens, and the text after them up to the next."""

    slots: tuple[int, ...]
    parts: tuple[str | Field, ...]

    @property
    def follows(self) -> bool:
        """Whether the text goes on from soft vectors; else it begins here."""
        return bool(self.slots) and self.slots[-1] < 0


def segments_of(
    parts: Iterable[Part], vectors: Sequence[tuple[int, ...]], start_ids: tuple[int, ...]
) -> tuple[tuple[Segment, ...], str]:
    """Return the segments, and the blanks before the answer that it begins with."""
    slots: list[tuple[int, ...]] = [()]
    texts: list[list[str | Field]] = [[]]
    is_blank_dropped = False
    for part in parts:
        if isinstance(part, Bos):
            slots.append(start_ids)
            texts.append([])
        elif not isinstance(part, Soft):
            texts[-1].append(part.removeprefix(" ") if is_blank_dropped and isinstance(part, str) else part)
        elif vectors[part.group]:
            if texts[-1] and isinstance(texts[-1][-1], str):
                texts[-1][-1] = texts[-1][-1].removesuffix(" ")
            slots.append(vectors[part.group])
            texts.append([])
        is_blank_dropped = isinstance(part, Soft) and not vectors[part.group]
    blank = ""
    while texts[-1] and isinstance(texts[-1][-1], str):
        last = texts[-1].pop()
        assert isinstance(last, str)
        blank = last[len(last.rstrip(" ")) :] + blank
        if last.rstrip(" "):
            texts[-1].append(last.rstrip(" "))
            break
    return tuple(Segment(some, tuple(text)) for some, text in zip(slots, texts, strict=True)), blank


@dataclass(frozen=True)
class BoundTemplate:
    """A template settled for one tokenizer and number of vectors; made by `Template.bind`.

    Args:
        soft_starts: of each of the P vectors the token that it starts from, None where none was given.
        segments: soft vectors or start tokens and the text after them.
        behind: the same of what stands behind the answer, which the first of them goes on from; () where it ends.
        n_answers: in how many places the answer stands.
        masks: what an answer begins with in each of them, for models that were trained so.
        answer_blank: what an answer begins with.
        is_answer_apart: whether an answer is a text of its own.
    """

    template: Template
    tokens: Tokens
    start_ids: tuple[int, ...]
    soft_starts: tuple[int | None, ...]
    segments: tuple[Segment, ...]
    behind: tuple[Segment, ...]
    n_answers: int
    masks: tuple[int, ...]
    answer_blank: str
    is_answer_apart: bool

    @property
    def n_soft(self) -> int:
        """P, the number of vectors, numbered in order of first appearance."""
        return len(self.soft_starts)

    @property
    def opening(self) -> tuple[int, ...] | None:
        """The slots that every text begins with, up to its last vector; () without vectors, None where a field or the
        answer stands before one.
        """
        if any(segment.slots for segment in self.behind):
            return None
        last = max((n for n, segment in enumerate(self.segments) if segment.slots and segment.slots[0] < 0), default=-1)
        before = self.segments[: max(0, last)]
        if any(isinstance(part, Field) for segment in before for part in segment.parts):
            return None
        segments = (*before, Segment(self.segments[last].slots, ()))
        return () if last < 0 else replace(self, segments=segments)._slots(())

    def encode(self, row: Mapping[str, str], room: int, n_answer: int = 0) -> tuple[int, ...]:
        """Encode a row up to its answer: token ids, those at the start of every text included, or -1 - m for vector m.

        As words carry the blank before them, so do soft slots: one blank before a slot has no token, and one after it
        is a part of the text that follows. The blanks before `{answer}` belong to the answer. Fields marked `:cut` lose
        tokens at their end where the row does not fit, the longest first, with the blanks at the cut. What reads like a
        special token in a field stays text.

        There is room for so many slots of text, vectors and answer together, whose longest has `n_answer` tokens.
        """
        return self._fitted(row, room, n_answer)[0]

    def ask(self, row: Mapping[str, str], room: int, words: Sequence[str]) -> tuple[tuple[int, ...], TokenRows]:
        """Encode a row with each of some words as its answer.

        Returns:
            What `encode` gives, and for each word the tokens of the answer and of all that stands behind it, soft
            vectors among them as in `encode`.
        """
        n_answer, excess = max(map(len, self.answers(words))), 0
        while True:
            slots, texts = self._fitted(row, room - excess, n_answer)
            answers = tuple(self._with_behind(self._parts_of(word), texts) for word in words)
            n_over = len(slots) + max(map(len, answers)) - room
            if n_over <= 0:
                return slots, answers
            excess += n_over  # a word and what stands behind it merge to other tokens than they are alone

    def is_cut(self, row: Mapping[str, str], room: int, n_answer: int = 0) -> bool:
        """Whether `encode` leaves out something of a row, with the same arguments."""
        if not any(field.is_cut for field in self._fields) or any(
            not is_text(row.get(field.name)) for field in self._fields
        ):
            return False  # all or nothing is read of it
        texts = [field.read(row[field.name]) for field in self._fields]
        if len(self._slots(texts)) + self._size_behind(texts) + n_answer > room:
            return True
        limits = [(field.most, text) for field, text in zip(self._fields, texts, strict=True) if field.most is not None]
        return any(len(self.tokens.ends(text)) - 1 > most for most, text in limits)

    @property
    def _fields(self) -> list[Field]:
        """The fields, place by place."""
        parts = (part for segment in (*self.segments, *self.behind) for part in segment.parts)
        return [part for part in parts if isinstance(part, Field) and part != ANSWER]

    def _fitted(self, row: Mapping[str, str], room: int, n_answer: int) -> tuple[tuple[int, ...], list[str]]:
        """Return the slots before the answer and what is read of each field, cut until all fits."""
        fields = self._fields
        for name in (field.name for field in fields):
            if name not in row:
                given = ", ".join(map(repr, row)) or "none"
                raise UserError(
                    f"the field {name!r} is missing: the template reads it, but the row has {given}. "
                    f"Give {name!r} too, or write the template's fields as the data names them."
                )
            if not isinstance(row[name], str):
                raise bad_value(f"field {name!r}", repr(row[name])[:40], "a text was expected", "Write it as a text.")
            if not is_text(row[name]):
                half = "half a character (a lone surrogate) stands in it"
                raise bad_value(f"field {name!r}", repr(row[name])[:40], half, "Write it whole.")
        texts = [field.read(row[field.name]) for field in fields]
        if n_answer >= room:
            raise UserError(
                f"an answer takes {n_answer} tokens, but there is room for {room} with its text. "
                "Shorten it, or allow fewer tokens."
            )
        slots = self._slots(texts)
        n_slots = len(slots) + self._size_behind(texts) + n_answer
        if n_slots > room or any(field.most is not None for field in fields):
            texts = self._cut(fields, texts, room - n_answer)
            slots = self._slots(texts)
        if not slots:
            raise UserError("the text before the answer has no tokens, but one at least is read. Add words to it.")
        return slots, texts

    def _cut(self, fields: Sequence[Field], texts: Sequence[str], room: int) -> list[str]:
        ends = [self.tokens.ends(text) if field.is_cut else [0] for field, text in zip(fields, texts, strict=True)]
        keep = [len(places) - 1 for places in ends]
        keep = [n if field.most is None else min(n, field.most) for field, n in zip(fields, keep, strict=True)]
        while True:
            cut = [
                text if n >= len(places) - 1 else text[: places[n]].rstrip()
                for text, places, n in zip(texts, ends, keep, strict=True)
            ]
            size = len(self._slots(cut)) + self._size_behind(cut)
            if size <= room:
                return cut
            if not any(keep):
                is_cut = any(field.is_cut for field in fields)
                gone = " with all gone that may be cut" if is_cut else ""
                advice = "Shorten the template or use fewer vectors."
                raise UserError(
                    f"the row takes {size} tokens{gone}, {self.n_soft} soft vectors included, but there is room "
                    f"for {room} {'beside' if self.behind else 'before'} the answer. "
                    + (advice if is_cut else "Mark a field with :cut, as in {text:cut}.")
                )
            keep = longest_first(keep, size - room)

    def answers(self, words: Iterable[str]) -> TokenRows:
        """Return the tokens of answers as they stand after the template's text, without an end token.

        Blanks before an answer do not count where the template ends with one. Where the answer stands in several
        places, a word of as many parts divided by `|` has one for each, and any other word stands in all of them.
        """
        return tuple(self._answer(word) for word in words)

    def _answer(self, word: str) -> tuple[int, ...]:
        first, *others = self._parts_of(word)
        ids = [*self.masks[:1], *self._following([(first, True)])]
        for place, part in enumerate(others, start=1):
            text = part if self.is_answer_apart else f" {part}"
            ids += [*self.masks[place : place + 1], *self.tokens.ids([(text, True)], not self.is_answer_apart)]
        if not ids:
            raise UserError(f"the answer {word!r} has no tokens, but one at least is needed. Write a word.")
        return tuple(ids)

    def _parts_of(self, word: str) -> list[str]:
        """Return the text in each place of the answer; with the first one go the blanks before it."""
        parts = word.split(DIVIDER) if self.n_answers > 1 and DIVIDER in word else [word] * self.n_answers
        if len(parts) != self.n_answers:
            raise UserError(
                f"the answer {word!r} has {len(parts)} parts, but the template has {self.n_answers} places for it. "
                f"Write one for each, divided by {DIVIDER}, or a single one."
            )
        if not all(part.strip() for part in parts):
            raise UserError(f"the answer {word!r} has no tokens, but one at least is needed. Write a word.")
        first, *others = parts
        first = first.lstrip(" ") if self.answer_blank or self.is_answer_apart else first
        return [self.answer_blank + first, *(other.strip(" ") for other in others)]

    def _following(self, pieces: Sequence[Piece]) -> list[int]:
        """Return the tokens of what begins with an answer, in its first place."""
        last = self.segments[-1].parts[-1:]
        if last and isinstance(last[0], str) and not self.is_answer_apart:
            return self.tokens.after(last[0], pieces)
        return self.tokens.ids(pieces, not self.is_answer_apart)

    def _with_behind(self, words: Sequence[str], texts: Sequence[str]) -> tuple[int, ...]:
        """Return the tokens of words in the places of the answer and of all else from the first of them on."""
        n_before = sum(isinstance(part, Field) for segment in self.segments for part in segment.parts)
        first, *others = words
        again, rest = iter(others), iter(texts[n_before:])
        ids: list[int] = []
        for number, segment in enumerate(self.behind):
            pieces: list[Piece] = [] if number else [(first, True)]
            for part in segment.parts:
                text = part if isinstance(part, str) else next(again if part == ANSWER else rest)
                pieces.append((text, not isinstance(part, str)))
            ids += [*segment.slots, *self.tokens.ids(pieces, True)] if number else self._following(pieces)
        return tuple(ids)

    def _size_behind(self, texts: Sequence[str]) -> int:
        """Count the slots of what stands behind the answer, without the answer."""
        return len(self._with_behind([""] * self.n_answers, texts)) if self.behind else 0

    def _slots(self, texts: Iterable[str]) -> tuple[int, ...]:
        rest = iter(texts)
        slots: list[int] = []
        for segment in self.segments:
            pieces = [(part, False) if isinstance(part, str) else (next(rest), True) for part in segment.parts]
            slots += [*segment.slots, *self.tokens.ids(pieces, segment.follows)]
        has_start = tuple(slots[: len(self.start_ids)]) == self.start_ids
        return tuple(slots) if has_start else (*self.start_ids, *slots)


def longest_first(lengths: Sequence[int], excess: int) -> list[int]:
    """Shorten the longest of some lengths to one level, so that `excess` is taken away in all, or everything."""
    kept = list(lengths)
    for _ in range(min(excess, sum(kept))):
        kept[len(kept) - 1 - kept[::-1].index(max(kept))] -= 1  # of equals the last
    return kept
