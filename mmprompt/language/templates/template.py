"""A template around a row of text, and what a language model reads of it: token ids and the places of soft vectors.

`Template.parse` reads the language of `core.template`; `bind` settles it for one tokenizer and number of vectors.
Nothing is known here of a model, of what the vectors are, or of what an answer means.

Text between soft vectors is tokenised as one string, so that merges are the model's own. What a user's field holds is
text and never a special token, however it is written; the special tokens of the template itself are tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

from mmprompt.core.template import Bos, Field, Group, Message, Part, Soft, bare_soft, parse
from mmprompt.errors import UserError, bad_value
from mmprompt.settings import checked

ANCHOR = "a"
"""A word that stands before a text that begins with a blank, so that the blank is read as one within a text."""

Piece = tuple[str, bool]
"""A text, and whether it comes from a row."""
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
        parts = (part for message in self.messages for part in message.parts)
        return tuple(dict.fromkeys(part.name for part in parts if isinstance(part, Field)))

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
                blank before `{answer}` falls away.
        Raises:
            UserError: the tokenizer has no chat template or it refuses these messages, or words of a soft slot give
                no tokens.
        """
        tokens = Tokens(tokenizer)
        parts = self._chat(tokenizer) if self.is_chat else self.messages[0].parts
        vectors: list[tuple[int, ...]] = []
        starts: list[int | None] = []
        n_vectors = 0
        for group in self.groups:
            words = None if group.words is None else _word_ids(tokens, group.words, parts, len(vectors))
            size = len(words) if words is not None else group.n_vectors or 0
            vectors.append(tuple(-1 - place for place in range(n_vectors, n_vectors + size)))
            starts += words or [None] * size
            n_vectors += size
        segments, answer_blank = _segments(parts, vectors, tuple(start_ids))
        start = () if self.is_chat or Bos() in parts else tuple(start_ids)
        answer_blank = "" if is_answer_apart else answer_blank
        return BoundTemplate(self, tokens, start, tuple(starts), segments, answer_blank, is_answer_apart)

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
        answer_blank: what an answer begins with.
        is_answer_apart: whether an answer is a text of its own.
    """

    template: Template
    tokens: Tokens
    start_ids: tuple[int, ...]
    soft_starts: tuple[int | None, ...]
    segments: tuple[_Segment, ...]
    answer_blank: str
    is_answer_apart: bool

    @property
    def n_soft(self) -> int:
        """P, the number of vectors, numbered in order of first appearance."""
        return len(self.soft_starts)

    @property
    def opening(self) -> tuple[int, ...] | None:
        """The slots that every text begins with, up to its last vector; () without vectors, None where a field stands
        before one.
        """
        last = max((n for n, segment in enumerate(self.segments) if segment.slots and segment.slots[0] < 0), default=-1)
        before = self.segments[: max(0, last)]
        if any(isinstance(part, Field) for segment in before for part in segment.parts):
            return None
        segments = (*before, _Segment(self.segments[last].slots, ()))
        return () if last < 0 else replace(self, segments=segments)._slots(())

    def encode(self, row: Mapping[str, str], room: int, n_answer: int = 0) -> tuple[int, ...]:
        """Encode a row up to its answer: token ids, those at the start of every text included, or -1 - m for vector m.

        As words carry the blank before them, so do soft slots: one blank before a slot has no token, and one after it
        is a part of the text that follows. The blanks before `{answer}` belong to the answer. Fields marked `:cut`
        lose tokens at their end where the row does not fit, the longest first, with the blanks at the cut. What reads
        like a special token in a field stays text.

        Args:
            row: text by name of field.
            room: slots for text, vectors and answer together.
            n_answer: tokens of the longest answer that follows.
        Raises:
            UserError: a field is missing or no text, or the row does not fit.
        """
        fields = [part for segment in self.segments for part in segment.parts if isinstance(part, Field)]
        for name in (field.name for field in fields):
            if name not in row:
                given = ", ".join(map(repr, row)) or "none"
                raise UserError(
                    f"the field {name!r} is missing: the template reads it, but the row has {given}. "
                    f"Give {name!r} too, or write the template's fields as the data names them."
                )
            if not isinstance(row[name], str):
                raise bad_value(f"field {name!r}", repr(row[name])[:40], "a text was expected", "Write it as a text.")
        texts = [row[field.name] for field in fields]
        if n_answer >= room:
            raise UserError(
                f"an answer takes {n_answer} tokens, but there is room for {room} with its text. "
                "Shorten it, or allow fewer tokens."
            )
        slots = self._slots(texts)
        if len(slots) + n_answer > room or any(field.most is not None for field in fields):
            slots = self._fitted(fields, texts, room - n_answer)
        if not slots:
            raise UserError("the text before the answer has no tokens, but one at least is read. Add words to it.")
        return slots

    def is_cut(self, row: Mapping[str, str], room: int, n_answer: int = 0) -> bool:
        """Whether `encode` leaves out something of a row, with the same arguments."""
        fields = [part for segment in self.segments for part in segment.parts if isinstance(part, Field)]
        if not any(field.is_cut for field in fields) or any(
            not isinstance(row.get(field.name), str) for field in fields
        ):
            return False  # all or nothing is read of it
        if len(self._slots(row[field.name] for field in fields)) + n_answer > room:
            return True
        limits = {field.name: field.most for field in fields if field.most is not None}
        return any(len(self.tokens.ends(row[name])) - 1 > most for name, most in limits.items())

    def _fitted(self, fields: Sequence[Field], texts: Sequence[str], room: int) -> tuple[int, ...]:
        """Return the slots with fields cut until they fit."""
        ends = [self.tokens.ends(text) if field.is_cut else [0] for field, text in zip(fields, texts, strict=True)]
        keep = [len(places) - 1 for places in ends]
        keep = [n if field.most is None else min(n, field.most) for field, n in zip(fields, keep, strict=True)]
        while True:
            slots = self._slots(
                text if n >= len(places) - 1 else text[: places[n]].rstrip()
                for text, places, n in zip(texts, ends, keep, strict=True)
            )
            if len(slots) <= room:
                return slots
            if not any(keep):
                is_cut = any(field.is_cut for field in fields)
                gone = " with all gone that may be cut" if is_cut else ""
                advice = "Shorten the template or use fewer vectors."
                raise UserError(
                    f"the row takes {len(slots)} tokens{gone}, {self.n_soft} soft vectors included, but there is room "
                    f"for {room} before the answer. "
                    + (advice if is_cut else "Mark a field with :cut, as in {text:cut}.")
                )
            keep = longest_first(keep, len(slots) - room)

    def answers(self, words: Iterable[str]) -> tuple[tuple[int, ...], ...]:
        """Return the tokens of answers as they stand after the template's text, without an end token.

        Blanks before an answer do not count where the template ends with one.
        """
        return tuple(self._answer(word) for word in words)

    def _answer(self, word: str) -> tuple[int, ...]:
        text = self.answer_blank + (word.lstrip(" ") if self.answer_blank or self.is_answer_apart else word)
        last = self.segments[-1].parts[-1:]
        if self.is_answer_apart:
            ids = self.tokens.ids([(text, True)], False)
        elif last and isinstance(last[0], str):
            ids = self.tokens.after(last[0], text)
        else:
            ids = self.tokens.ids([(text, True)], True)
        if not ids or not word.strip():
            raise UserError(f"the answer {word!r} has no tokens, but one at least is needed. Write a word.")
        return tuple(ids)

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

    def after(self, before: str, text: str) -> list[int]:
        """Return the tokens of a text of the user's that follows a literal one in the same string."""
        first = self.ids([(before, False)], True)
        both = self.ids([(before, False), (text, True)], True)
        return both[len(first) :] if both[: len(first)] == first else self.ids([(text, True)], True)

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
