"""Words in the places of a template's soft vectors: which tokens they may be, and whether their text is read back.

Token ids alone are no prompt: their text, tokenised again within the template, may give others. Nothing is known here
of how the words are found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmprompt.core.template import Bos, Field, Part, Soft, escaped
from mmprompt.errors import UserError
from mmprompt.language.templates.bound import ANCHOR, BoundTemplate
from mmprompt.language.templates.template import Template

TokenIds = tuple[int, ...]
N_TRIES = 64
"""How often one token of a prompt is exchanged for the next nearest until its text is read back."""


class Words:
    """A template, bound to a tokenizer and the start ids of every text, whose P soft vectors are to become words."""

    def __init__(self, bound: BoundTemplate, start_ids: Sequence[int] = ()) -> None:
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
        """Return the words of each group of soft vectors, as they stand in the template."""
        return tuple(
            self._decode([ids[place] for place in group], number != self._leading)
            for number, group in enumerate(self._groups)
        )

    def template(self, ids: TokenIds) -> Template:
        """Return the template with these words and no soft slots."""
        texts = self.texts(ids)
        written = []
        for message in self.bound.template.messages:
            mark = "" if message.role is None else f"[[{message.role}]] "
            written.append(mark + _written(message.parts, texts))
        return Template.parse("\n".join(written) + "{answer}" + _written(self.bound.template.behind, texts))

    def first_misread(
        self, ids: TokenIds, row: Mapping[str, str], slots: Sequence[int], room: int, answers: Mapping[str, TokenIds]
    ) -> int | None:
        """Find the first of P tokens that their text within the template does not give back for a row; None for none.

        The row's fields are read as `slots` with soft slots, in `room` as for `BoundTemplate.encode`; the answers,
        whose tokens are given by their text, are to be read as they are, too.
        """
        wanted = place_words(slots, ids)
        try:
            template, is_apart = self.template(ids), self.bound.is_answer_apart
            bound = template.bind(self._tokenizer, self._start_ids, is_answer_apart=is_apart)
            found = bound.encode(row, room, max(map(len, answers.values())))
            is_same = bound.answers(answers) == tuple(answers.values())
        except UserError:
            return 0
        if found == wanted:
            return None if is_same else len(ids) - 1
        same = next((n for n, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), len(wanted) - 1)
        return next((-1 - slot for slot in (*slots[same::-1], *slots) if slot < 0), 0)

    def _decode(self, ids: list[int], follows: bool) -> str:
        """Return the text that gives tokens; after another text the blank before the first token is a part of it."""
        alone = self._text(ids)
        whole, before = self._text([*self._anchor, *ids]), self._text(self._anchor)
        within = whole.removeprefix(before)
        texts = (within, alone) if follows else (alone, within, alone.removeprefix(" "))
        is_back = (text for text in texts if self.bound.tokens.ids([(text, False)], follows) == ids)
        return next(is_back, texts[0])

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def place_words(slots: Sequence[int], ids: TokenIds) -> TokenIds:
    """Return the slots of a row with tokens where soft vectors stood."""
    return tuple(ids[-1 - slot] if slot < 0 else slot for slot in slots)


def _written(parts: Sequence[Part], texts: Sequence[str]) -> str:
    """Write the parts of a message as a template has them, with words for soft vectors, which carry their own blank."""
    written = ""
    for part in parts:
        if isinstance(part, Soft):
            written = written.removesuffix(" ") + escaped(texts[part.group])
        elif isinstance(part, Bos):
            written += "{bos}"
        elif isinstance(part, Field):
            written += part.text
        else:
            written += escaped(part)
    return written


def start_words(template: Template, words: str) -> Template:
    """Give a template's bare `{soft}` as many vectors as these words have tokens, which it starts from."""
    if not template.has_bare_soft:
        raise UserError('words were given to start from, but the template has no {soft}. Write {soft:"words"} in it.')
    groups = tuple(replace(group, words=words) if group.is_bare else group for group in template.groups)
    return replace(template, groups=groups)


def allowed_tokens(tokenizer: Any, vocabulary_size: int, is_ascii: bool) -> Tensor:
    """Mark [V] the tokens that a prompt in words may hold: text that can be printed, and no special token.

    The model may have more rows than the tokenizer has tokens; letters beyond ASCII are left out where `is_ascii`.
    """
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


class Vocabulary:
    """The tokens that a prompt may hold: of all, with embeddings [V, D], those that are allowed [V]."""

    def __init__(self, embeddings: Tensor, allowed: Tensor) -> None:
        self.allowed = allowed
        self._known = allowed.nonzero()[:, 0]
        self._directions = F.normalize(embeddings[self._known], dim=-1)

    def __len__(self) -> int:
        return len(self._known)

    def nearest(self, vectors: Tensor, k: int) -> Tensor:
        """Return [P, k] int64, the tokens nearest to vectors [P, D] by the cosine to their embeddings, best first."""
        cosine = F.normalize(vectors.to(self._directions.dtype), dim=-1) @ self._directions.T
        return self._known[cosine.topk(min(k, len(self)), dim=-1).indices]

    def proposals(self, gradient: Tensor, ids: TokenIds, k: int) -> Tensor:
        """Return [P, k] int64, for each place the tokens that would lower the loss most by its linear estimate.

        The gradient [P, V] is by what stands in each place, one-hot; what stands there is not proposed again.
        """
        scores = gradient.masked_fill(~self.allowed, float("inf"))
        scores[range(len(ids)), ids] = float("inf")
        return scores.topk(min(k, len(self) - 1), dim=-1, largest=False).indices


def readable(nearest: Sequence[Sequence[int]], first_misread: Callable[[TokenIds], int | None]) -> TokenIds | None:
    """Choose the nearest tokens whose text is read back; None where there are none within `N_TRIES` exchanges.

    Of each place its tokens are given, best first; where one is misread first, its next nearest takes its place.
    """
    rank = [0] * len(nearest)
    for _ in range(N_TRIES):
        ids = tuple(some[n] for some, n in zip(nearest, rank, strict=True))
        place = first_misread(ids)
        if place is None:
            return ids
        if rank[place] + 1 == len(nearest[place]):
            return None
        rank[place] += 1
    return None
