"""The words and context vectors around a class name: from class names to the slots of a text tower.

The string is built as in the published code (Zhou et al. 2022): context vectors, the name, a full
stop. The name and the words around it are tokenised together, so the ids are those of the whole text.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args
from unicodedata import category

from mmprompt.errors import UserError, bad_value
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.sites import TextSlots

ClassPosition = Literal["end", "middle", "front"]


@dataclass(frozen=True)
class TextLayout:
    """What stands around the class name.

    Args:
        template: the fixed words with one `{}` for the class name; `"{}."` beside context vectors.
        n_ctx: M, the number of context vectors, 0 for none.
        class_position: where the name stands among the vectors: after them ("end"), after the first
            half ("middle"), or before them ("front").
    Raises:
        UserError: the template has not exactly one `{}`, or a setting is out of range.
    """

    template: str = "{}."
    n_ctx: int = 0
    class_position: ClassPosition = "end"

    def __post_init__(self) -> None:
        if self.template.count("{}") != 1:
            raise bad_value("template", repr(self.template), "it must hold {} exactly once", 'Write "a photo of a {}."')
        if self.n_ctx < 0:
            raise bad_value("n_ctx", self.n_ctx, "it must be 0 or more", "Use --n-ctx 4.")
        if self.class_position not in get_args(ClassPosition):
            choices = ", ".join(get_args(ClassPosition))
            raise bad_value("class_position", repr(self.class_position), f"it must be one of {choices}", "Use end.")

    def check_room(self, backbone: DualEncoder) -> None:
        """Refuse more context vectors than the text tower has slots, before any are made.

        Raises:
            UserError: there are more.
        """
        if self.n_ctx > backbone.context_length:
            room = f"the text tower of {backbone.name} has {backbone.context_length} slots for them and the class name"
            raise bad_value("n_ctx", self.n_ctx, room, "Use fewer context vectors.")

    def row(self, backbone: DualEncoder, class_name: str) -> list[int]:
        """The slots of one class between start and end: token ids, and -1 - m for context vector m."""
        before, after = self.template.split("{}")
        words = backbone.tokenize(before + class_name + after)
        if self.class_position == "end":
            name_end, first = 0, 0
        else:
            name_end = len(backbone.tokenize(before + class_name))
            first = self.n_ctx // 2 if self.class_position == "middle" else 0
        ctx = [-1 - m for m in range(self.n_ctx)]
        return ctx[:first] + words[:name_end] + ctx[first:] + words[name_end:]

    def slots(self, backbone: DualEncoder, class_names: Sequence[str]) -> TextSlots:
        """The slots of all classes, framed for the backbone's text tower.

        Raises:
            UserError: a name is empty, has no token, or does not fit the context length beside the vectors.
        """
        check_class_names(class_names)
        self.check_room(backbone)
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


def check_class_names(class_names: Sequence[str]) -> None:
    """Refuse class names that say nothing or cannot be told apart.

    Raises:
        UserError: there are none, they are no list, or one is no text, empty, only punctuation, or there twice.
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
        if name in seen:
            raise UserError(f"class name {name!r} stands twice, but names must differ. Rename or merge the classes.")
        seen.add(name)


def refuse_single_class(class_names: Sequence[str]) -> None:
    """Refuse to learn or predict where there is nothing to choose between.

    Raises:
        UserError: there is one class only.
    """
    if len(class_names) == 1:
        raise UserError(
            f"{class_names[0]!r} is the only class, but two or more are needed to choose between. Name another class."
        )
