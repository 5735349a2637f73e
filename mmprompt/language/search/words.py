"""Words in the places of a template's soft vectors: which tokens they may be, and whether their text is read back.

Token ids alone are no prompt: their text, tokenised again within the template, may give others. Nothing is known here
of how the words are found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmprompt.core.template import Bos, Field, Part, Soft
from mmprompt.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from mmprompt.language.templates.template import BoundTemplate, Template


TokenIds = tuple[int, ...]


class Words:
    """A template whose P soft vectors are to become words.

    Args:
        bound: the template with soft slots, bound to a tokenizer.
        start_ids: what every text begins with, as the template was bound with it.
    """

    def __init__(self, bound: BoundTemplate, start_ids: Sequence[int] = ()) -> None:
        from mmprompt.language.templates.tokens import ANCHOR

        self.bound, self._start_ids = bound, tuple(start_ids)
        self._tokenizer = bound.tokens.tokenizer
        self._anchor: list[int] = self._tokenizer(ANCHOR, add_special_tokens=False)["input_ids"]
        spans = dict.fromkeys(segment.slots for segment in bound.segments if segment.slots and segment.slots[0] < 0)
        self._groups = [[-1 - slot for slot in span] for span in spans]
        """Of each group of vectors, which ones."""
        parts = [part for part in bound.template.messages[0].parts if not isinstance(part, Bos)]
        first = None if bound.template.is_chat else parts[0]
        self._leading = first.group if isinstance(first, Soft) else None
        """The group that a text begins with, None where something stands before the first one."""

    def texts(self, ids: TokenIds) -> tuple[str, ...]:
        """The words of each group of soft vectors, as they stand in the template."""
        return tuple(
            self._decode([ids[place] for place in group], number != self._leading)
            for number, group in enumerate(self._groups)
        )

    def template(self, ids: TokenIds) -> Template:
        """The template with these words and no soft slots.

        Raises:
            UserError: with them it is no template.
        """
        from mmprompt.language.templates.template import Template

        texts = self.texts(ids)
        written = []
        for message in self.bound.template.messages:
            mark = "" if message.role is None else f"[[{message.role}]] "
            written.append(mark + _written(message.parts, texts))
        return Template.parse("\n".join(written) + "{answer}")

    def first_misread(
        self, ids: TokenIds, row: Mapping[str, str], slots: Sequence[int], room: int, answers: Mapping[str, TokenIds]
    ) -> int | None:
        """Find the first token that the template with the text of the words does not give back for a row.

        Args:
            ids: P tokens.
            row: fields of the row.
            slots: what is read of it, with soft slots.
            room: as in `BoundTemplate.encode`.
            answers: the tokens of answers by their text; these are to be read as they are, too.
        Returns:
            None where they are, else which of the P tokens is the first that is not, or the last before it.
        """
        wanted = place_words(slots, ids)
        try:
            bound = self.template(ids).bind(
                self._tokenizer, self._start_ids, is_answer_apart=self.bound.is_answer_apart
            )
            found = bound.encode(row, room, max(map(len, answers.values()))).slots
            is_same = bound.answers(answers) == tuple(answers.values())
        except UserError:
            return 0
        if found == wanted:
            return None if is_same else len(ids) - 1
        same = next((n for n, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), len(wanted) - 1)
        return next((-1 - slot for slot in (*slots[same::-1], *slots) if slot < 0), 0)

    def _decode(self, ids: list[int], follows: bool) -> str:
        """The text that gives tokens; after another text the blank before the first token is a part of it."""
        alone = self._text(ids)
        whole, before = self._text([*self._anchor, *ids]), self._text(self._anchor)
        within = whole.removeprefix(before)
        texts = (within, alone) if follows else (alone, within, alone.removeprefix(" "))
        is_back = (text for text in texts if self.bound.tokens.ids([(text, False)], follows) == ids)
        return next(is_back, texts[0])

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def place_words(slots: Sequence[int], ids: TokenIds) -> TokenIds:
    """Slots of a row with tokens where soft vectors stood."""
    return tuple(ids[-1 - slot] if slot < 0 else slot for slot in slots)


def _written(parts: Sequence[Part], texts: Sequence[str]) -> str:
    """The parts of a message as a template says them, with words for soft vectors, which carry their own blank."""
    written = ""
    for part in parts:
        if isinstance(part, Soft):
            written = written.removesuffix(" ") + _escaped(texts[part.group])
        elif isinstance(part, Bos):
            written += "{bos}"
        elif isinstance(part, Field):
            cut = "" if not part.is_cut else ":cut" if part.most is None else f":cut={part.most}"
            written += f"{{{part.name}{cut}}}"
        else:
            written += _escaped(part)
    return written


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def start_words(template: Template, words: str) -> Template:
    """A template whose bare `{soft}` has as many vectors as these words have tokens, and starts from them.

    Raises:
        UserError: there is no bare `{soft}`.
    """
    if not template.has_bare_soft:
        raise UserError('words were given to start from, but the template has no {soft}. Write {soft:"words"} in it.')
    groups = tuple(replace(group, words=words) if group.is_bare else group for group in template.groups)
    return replace(template, groups=groups)


def allowed_tokens(tokenizer: Any, vocabulary_size: int, is_ascii: bool) -> Tensor:
    """Mark the tokens that a prompt in words may hold: text that can be printed, and no special token.

    Args:
        tokenizer: of transformers.
        vocabulary_size: V, of the model; it may have more rows than the tokenizer has tokens.
        is_ascii: whether letters beyond ASCII are left out.
    Returns:
        [V] bool.
    """
    import torch

    known = range(min(vocabulary_size, len(tokenizer)))
    texts = tokenizer.batch_decode([[token] for token in known], clean_up_tokenization_spaces=False)
    added = tokenizer.added_tokens_decoder.keys() | set(tokenizer.all_special_ids)
    allowed = torch.zeros(vocabulary_size, dtype=torch.bool)
    allowed[: len(texts)] = torch.tensor(
        [
            token not in added
            and text.isprintable()
            and text.strip() != ""
            and "\ufffd" not in text
            and (text.isascii() or not is_ascii)
            for token, text in zip(known, texts, strict=True)
        ]
    )
    return allowed
