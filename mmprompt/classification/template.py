"""The words and context vectors around a class name: from class names to the slots of a text tower.

A template is a text such as `a photo of a {}.` or `{soft*4} {name}.`: `{}` and `{name}` are the class name, `{soft*4}`
four learned vectors. The name and the words around it are tokenised together, so that the ids are those of the whole
text, and the vectors are put between them (Zhou et al. 2022, released code). A space before a `{soft*N}` belongs to
it; one after it belongs to the text. Several lines are an ensemble, whose class features are averaged.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from unicodedata import category

from mmprompt.core.template import Bos, Field, Soft, parse_line
from mmprompt.errors import UserError, bad_value
from mmprompt.models.dual_encoder.interface import DualEncoder, without_text
from mmprompt.models.sites import TextSlots
from mmprompt.settings import check

NAME = Field("name")
"""Where the class name stands among the parts of a template."""
_BRACES = re.compile(r"\{\{|\}\}|(\{\})")


@dataclass(frozen=True)
class ClassTemplate:
    """What stands around the class name.

    Args:
        text: the template.
    Attributes:
        n_ctx: M, how many vectors stand in it; in each line where there are several.
        lines: the template itself, or those of an ensemble.
    Raises:
        UserError: the class name does not stand in it exactly once, or a brace is something else.
    """

    text: str
    n_ctx: int = field(init=False)
    lines: tuple[ClassTemplate, ...] = field(init=False, repr=False, compare=False)
    _parts: tuple[str | int | Field, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check("template", self.text, str, 'Write "a photo of a {}."')
        if "\n" in self.text:
            lines = tuple(ClassTemplate(line) for line in self.text.split("\n"))
            object.__setattr__(self, "lines", lines)
            object.__setattr__(self, "n_ctx", lines[0].n_ctx)
            return
        parts, groups = parse_line(_BRACES.sub(lambda found: NAME.text if found[1] else found[0], self.text))
        if [part for part in parts if isinstance(part, Field | Bos)] != [NAME]:
            raise self._refusal("it must hold {} exactly once, and no other field")
        if any(group.n_vectors is None or group.name for group in groups):
            raise self._refusal("vectors in it are written {soft*4}, with their number")
        sizes = [group.n_vectors or 0 for group in groups]
        slots = [sizes[part.group] if isinstance(part, Soft) else part for part in parts]
        object.__setattr__(self, "lines", (self,))
        object.__setattr__(self, "_parts", tuple(slots))
        object.__setattr__(self, "n_ctx", sum(sizes))

    def _refusal(self, problem: str) -> UserError:
        return bad_value("template", repr(self.text), problem, 'Write "a photo of a {}."')

    @classmethod
    def of_context(cls, n_ctx: int, class_position: str = "end") -> ClassTemplate:
        """Return the published layouts of CoOp: M vectors with the name after, amid or before them, and a full stop."""
        before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[class_position]
        soft = [f"{{soft*{n}}}" if n else "" for n in (before, n_ctx - before)]
        return cls(f"{soft[0]} {{name}} {soft[1]}".strip() + ".")

    @property
    def words(self) -> tuple[str, str]:
        """What is written before the class name and after it, in the first line."""
        parts = self.lines[0]._parts
        at = parts.index(NAME)
        before, after = ("".join(part for part in some if isinstance(part, str)) for some in (parts[:at], parts[at:]))
        return before, after

    def row(self, backbone: DualEncoder, class_name: str) -> list[int]:
        """Give the slots of one class between start and end: token ids, and -1 - m for context vector m."""
        words, stops = "", []  # the text without vectors, and how long it is where each run of them stands
        for part in self._parts:
            if isinstance(part, int):
                words = words.rstrip()
                stops.append((len(words), part))
            else:
                part = class_name.replace("_", " ") if isinstance(part, Field) else part
                words += part if words else part.lstrip()
        ids = backbone.tokenize(words)
        row: list[int] = []
        n_read = m = 0
        for length, n_vectors in stops:
            end = len(backbone.tokenize(words[:length])) if length else 0
            row += [*ids[n_read:end], *(-1 - place for place in range(m, m + n_vectors))]
            n_read, m = end, m + n_vectors
        return row + ids[n_read:]

    def slots(self, backbone: DualEncoder, class_names: Sequence[str]) -> TextSlots:
        """Give the slots of all classes, framed for the text tower; refuse names that do not fit."""
        check_class_names(class_names)
        check_room(self.n_ctx, backbone)
        rows = [self.row(backbone, name) for name in class_names]
        slots = backbone.text_slots(rows)
        for name, row, length in zip(class_names, rows, slots.lengths.tolist(), strict=True):
            if len(row) == self.n_ctx:
                raise UserError(f"class name {name!r} gives no token in {backbone.name}. Write it in words it knows.")
            if length > backbone.context_length:
                raise UserError(
                    f"class name {name!r} takes {length} slots with its context, but the text tower of {backbone.name} "
                    f"has {backbone.context_length}. Shorten the name or use fewer context vectors."
                )
        return slots


def check_room(n_ctx: int, backbone: DualEncoder) -> None:
    """Refuse more context vectors than the text tower has slots, or an image tower alone, before any are made."""
    if not backbone.has_text:
        raise without_text(backbone.name)
    if n_ctx > backbone.context_length:
        room = f"the text tower of {backbone.name} has {backbone.context_length} slots for them and the class name"
        raise bad_value("n_ctx", n_ctx, room, "Use fewer context vectors.")


def check_class_names(class_names: Sequence[str]) -> None:
    """Refuse class names that say nothing or cannot be told apart.

    Names are the same where their words are, with spaces or underscores around them. Case counts, though many text
    towers read small letters alone.
    """
    if isinstance(class_names, str) or not hasattr(class_names, "__getitem__"):
        raise bad_value("class_names", repr(class_names), "a list of names was expected", 'Write ["cat", "dog"].')
    if len(class_names) == 0:
        raise UserError("there are no class names, but at least one is needed. Give class_names.")
    seen: set[str] = set()
    for name in class_names:
        if not isinstance(name, str):
            kind = type(name).__name__
            raise UserError(f"class name {name!r} is of type {kind}, but a text was expected. Write it as a string.")
        if any(category(sign) == "Cs" for sign in name):  # half a character, or a byte of a file name that is no text
            raise UserError(f"class name {name!r} holds bytes that are no text. Rename the class in UTF-8.")
        if all(category(sign)[0] in "CZ" for sign in name):
            raise UserError("a class name is empty, but each must hold a word. Name every class.")
        if all(category(sign)[0] in "CPZ" or sign in string.punctuation for sign in name):
            raise UserError(f"class name {name!r} is only punctuation, but it must hold a word. Write it in words.")
        words = " ".join(name.replace("_", " ").split())
        if words in seen:
            raise UserError(f"class name {name!r} stands twice, but names must differ. Rename or merge the classes.")
        seen.add(words)


def refuse_single_class(class_names: Sequence[str]) -> None:
    """Refuse to learn or predict where there is nothing to choose between."""
    if len(class_names) == 1:
        raise UserError(
            f"{class_names[0]!r} is the only class, but two or more are needed to choose between. Name another class."
        )
