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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmprompt.core.template import ANSWER, Bos, Field, Group, Message, Part, Soft, bare_soft, parse
from mmprompt.errors import UserError, bad_value
from mmprompt.language.templates.bound import BoundTemplate, Tokens, segments_of
from mmprompt.settings import checked

SENTINEL = "<extra_id_{}>"
"""What T5 and its kin were trained to find in place of a text, and to begin it with."""

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

    @classmethod
    def instruction(cls, text: str) -> Template:
        """Read a template in words alone; refuse soft slots, which nothing would fill."""
        found = cls.parse(text)
        if found.groups:
            advice = "Write it in words alone."
            raise bad_value("an instruction", repr(text), "there are no vectors for its {soft}", advice)
        return found

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
        Raises:
            UserError: the tokenizer has no chat template or it refuses these messages, words of a soft slot give no
                tokens, a text is to stand behind the answer where there is no mask, or a vector where it is never read.
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
        segments, answer_blank = segments_of(before, vectors, tuple(start_ids))
        start = () if self.is_chat or Bos() in parts else tuple(start_ids)
        answer_blank = "" if is_answer_apart else answer_blank
        after = segments_of(behind, vectors, ())[0] if behind else ()
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
