"""The library's messages in the words of the command line: `n_ctx=4` becomes --n-ctx 4.

It knows which options the verb being run has, since it is told; other words in backticks stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

SETTING = re.compile(r"`([a-z]\w*)(?:=([^`]*))?`")
QUOTES = "\"'"
_of_verb: set[str] = set()


def remember(settings: type | None) -> None:
    """Take the fields of a dataclass, and of those within it, for the options there are; None for no options."""
    _of_verb.clear()
    _of_verb.update(_names(settings))


def _names(kind: Any) -> Iterator[str]:
    """Yield the names of the fields of a dataclass and of the dataclasses in it, also of a union of some."""
    for part in get_args(kind):
        yield from _names(part)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        for field in fields(kind):
            yield from list(_names(hints[field.name])) or [field.name]


def in_options(text: str) -> str:
    """Word a message of the library for the command line.

    Args:
        text: with settings in backticks, as `resume=True`, `out` or `words="the mood is"`.
    """

    def option(setting: re.Match[str]) -> str:
        name, value = setting.groups()
        if name not in _of_verb:
            return setting[0]
        flag = "--" + name.replace("_", "-")
        if value in (None, "True"):
            return flag
        return f"{flag} {value if ' ' in value else value.strip(QUOTES)}"

    return SETTING.sub(option, text)
