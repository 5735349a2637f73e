"""A template around a row of text, and what a language model reads of it: token ids and the places of soft vectors.

`Template.parse` reads the language of `core.template`; `bind` settles it for one tokenizer and number of vectors.
Nothing is known here of a model, of what the vectors are, or of what an answer means.

Text between soft vectors is tokenised as one string, so that merges are the model's own. What a user's field holds is
text and never a special token, however it is written; the special tokens of the template itself are tokens.

What stands behind the answer is read with each word of the labels in its place: by a decoder as a part of what it is to
find probable, the answer and all that follows; by an encoder beside the mask that stands for the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmprompt.core.template import ANSWER, Bos, Field, Group, Message, Part, Soft, bare_soft, parse
from mmprompt.errors import UserError, bad_value
from mmprompt.language.templates.tokens import Piece, Tokens
from mmprompt.settings import checked

DIVIDER = "|"
"""Stands between the words of one label where the answer stands in several places; without it all are alike."""
SENTINEL = "<extra_id_{}>"
"""What T5 and its kin were trained to find in place of a text, and to begin it with."""

TokenRows = tuple[tuple[int, ...], ...]
_FIRST_MARK = 0xF0000  # private characters, which stand for fields and vectors while a chat is laid out
_LAST_MARK = 0xFFFFD
_CHAT_DATE = "26 Jul 2024"
"""For chat templates that say the day: a prompt learned on one day reads the same on the next."""


@dataclass(frozen=True)
class Template:
    """A template that was found right: its text, as files keep it, its messages, and its groups of soft vectors."""

    text: str
    messages: tuple[Message, ...]
    groups: tuple[Group, ...]

    @classmethod
    @checked
    def parse(cls, text: str) -> Template:
        """Read a template in the language of `core.template`."""
        return cls(text, *parse(text))

    def with_soft(self, n_soft: int) -> Template:
        """Say how many vectors the bare `{soft}` holds; where it holds none, it goes, and one blank after it too."""
        place = bare_soft(self.text)
        if place is None:
            return self
        if n_soft < 0:
            raise bad_value("n_soft", n_soft, "it must be 0 or more", "Use `n_soft=20`.")
        before, after = self.text[:place], self.text[place + len("{soft}") :]
        if n_soft:
            return Template.parse(f"{before}{{soft*{n_soft}}}{after}")
        return Template.parse(before + after.removeprefix(" "))

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields, in order of first appearance."""
        parts = (part for message in self.messages for part in (*message.parts, *message.behind))
        return tuple(dict.fromkeys(part.name for part in parts if isinstance(part, Field) and part != ANSWER))

    @property
    def behind(self) -> tuple[Part, ...]:
        """What stands behind the answer, `ANSWER` where it stands again."""
        return self.messages[-1].behind

    @property
    def is_chat(self) -> bool:
        """Whether it is laid out by the tokenizer's chat template."""
        return self.messages[0].role is not None

    @property
    def has_bare_soft(self) -> bool:
        """Whether there is a `{soft}`, which holds as many vectors as the method has."""
        return any(group.is_bare for group in self.groups)

    def bind(self, tokenizer: Any, start_ids: Sequence[int] = (), is_answer_apart: bool = False) -> BoundTemplate:
        """Settle the template for a model; a bare `{soft}` holds no vectors, and one blank after it goes too.

        Args:
            tokenizer: of transformers, fast or slow.
            start_ids: what every text begins with; left out where the template's own text begins so, and in a chat,
                whose template says all. They stand where the template has `{bos}`, else before everything.
            is_answer_apart: whether answers are texts of their own, as those of a decoder behind an encoder; then the
                blank before `{answer}` falls away, and where something stands behind it, a mask stands in its place.
        """
        tokens = Tokens(tokenizer)
        before = self._chat(tokenizer) if self.is_chat else self.messages[0].parts
        parts, behind = (*before, ANSWER, *self.behind), self.behind
        n_answers = parts.count(ANSWER)
        masks: tuple[int, ...] = ()
        if is_answer_apart and behind:
            texts, masks = _masks(tokenizer, n_answers)
            rest = iter(texts)
            before, behind = tuple(next(rest) if part == ANSWER else part for part in parts), ()
        vectors: list[tuple[int, ...]] = []
        starts: list[int | None] = []
        n_vectors = 0
        for group in self.groups:
            words = None if group.words is None else _word_ids(tokens, group.words, parts, len(vectors))
            size = len(words) if words is not None else group.n_vectors or 0
            vectors.append(tuple(-1 - place for place in range(n_vectors, n_vectors + size)))
            starts += words or [None] * size
            n_vectors += size
        segments, answer_blank = _segments(before, vectors, tuple(start_ids))
        start = () if self.is_chat or Bos() in parts else tuple(start_ids)
        answer_blank = "" if is_answer_apart else answer_blank
        after = _segments(behind, vectors, ())[0] if behind else ()
        if after and not after[-1].parts:
            if after[-1].slots:
                raise UserError("vectors stand behind all else in the template, where none is read. Move them forward.")
            after = ()  # of vectors alone, of which there are none
        settled = (segments, after, n_answers, masks, answer_blank, is_answer_apart)
        return BoundTemplate(self, tokens, start, tuple(starts), *settled)

    def _chat(self, tokenizer: Any) -> tuple[Part, ...]:
        """Return the parts of a chat as its tokenizer's template lays them out; no field is seen by that template."""
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                "the template is a chat, but the tokenizer of this model has no chat template. "
                "Write a template without [[user]] and [[assistant]]."
            )
        held: list[Part] = []  # fields and vectors, each of which a private character stands for

        def mark(part: Part) -> str:
            if not isinstance(part, str):
                held.append(part)
                return chr(_FIRST_MARK + len(held) - 1)
            if any(_FIRST_MARK <= ord(letter) <= _LAST_MARK for letter in part):
                problem = "the template holds a private character (U+F0000 or above), but a chat takes none"
                raise UserError(f"{problem}. Remove it.")
            return part

        *before, last = self.messages
        messages = [{"role": each.role, "content": "".join(map(mark, each.parts))} for each in before]
        try:
            text: str = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, date_string=_CHAT_DATE
            )
        except ImportError:
            raise UserError('chat templates need jinja2. Install it: pip install "mmprompt[llm]".') from None
        except Exception as error:  # whatever the model's own template raises at messages that it does not take
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"the model's chat template refuses these messages: {reason}. Change them.") from None
        pieces = re.split(f"([{chr(_FIRST_MARK)}-{chr(_LAST_MARK)}])", text)  # texts and marks take turns
        if [ord(letter) - _FIRST_MARK for letter in pieces[1::2]] != list(range(len(held))):
            raise UserError(
                "the model's chat template leaves out, repeats or reorders messages, but each is read once. "
                "Write the template without the message it does not know, often [[system]]."
            )
        parts = [piece if place % 2 == 0 else held[place // 2] for place, piece in enumerate(pieces)]
        return (*parts, *last.parts)


def _masks(tokenizer: Any, n: int) -> tuple[list[str], tuple[int, ...]]:
    """Return what stands for n answers in a text that is read both ways, and what such an answer begins with."""
    known = tokenizer.get_vocab()
    sentinels = [SENTINEL.format(place) for place in range(n)]
    if all(name in known for name in sentinels):
        return sentinels, tuple(known[name] for name in sentinels)
    if getattr(tokenizer, "mask_token", None):
        return [tokenizer.mask_token] * n, ()
    raise UserError(
        "the template goes on behind {answer}, where an encoder reads a mask in its place, but this model's tokenizer "
        "has none. End the template with {answer}."
    )


def _word_ids(tokens: Tokens, words: str, parts: Sequence[Part], group: int) -> list[int]:
    """Return the tokens of the words that a group starts from, with the blank before its first place."""
    first = parts.index(Soft(group))
    before = parts[first - 1] if first else ""
    blank = " " if isinstance(before, str) and before.endswith(" ") else ""
    ids = tokens.ids([(blank + words.removeprefix(blank), False)], first > 0)
    if not ids:
        raise UserError(f"the words {words!r} of a soft slot give no tokens. Use others, or {{soft*4}}.")
    return ids


@dataclass(frozen=True)
class _Segment:
    """Soft vectors or start tokens, and the text after them up to the next."""

    slots: tuple[int, ...]
    parts: tuple[str | Field, ...]

    @property
    def follows(self) -> bool:
        """Whether the text goes on from soft vectors; else it begins here."""
        return bool(self.slots) and self.slots[-1] < 0


def _segments(
    parts: Iterable[Part], vectors: Sequence[tuple[int, ...]], start_ids: tuple[int, ...]
) -> tuple[tuple[_Segment, ...], str]:
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
    return tuple(_Segment(some, tuple(text)) for some, text in zip(slots, texts, strict=True)), blank


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
    segments: tuple[_Segment, ...]
    behind: tuple[_Segment, ...]
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
        segments = (*before, _Segment(self.segments[last].slots, ()))
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
            not isinstance(row.get(field.name), str) for field in self._fields
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
