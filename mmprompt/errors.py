"""The one exception for the user's mistakes, and the helpers that word it.

Every message is one line with three parts: what was wrong (with its value), what was expected,
what to do. A setting to change is named as Python has it, in backticks (`n_ctx=4`); the command line
turns these into its options. This file knows nothing about prompts, models or data.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path

COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys and does not show, marks that turn the order of letters, and halves of characters."""


def visible(text: str) -> str:
    """Return a text that only shows: names of files and classes may come from a stranger. It stays what JSON it was."""
    return COMMANDS.sub(lambda letter: f"\\u{ord(letter[0]):04x}", text)


class UserError(ValueError):
    """A mistake the user can mend; its text is one line and is shown without a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(visible(" ".join(message.split())))


def is_first_process() -> bool:
    """Return whether this process speaks for its job, such as one that `torchrun` started."""
    return os.environ.get("RANK", "0") == "0"


def bad_value(name: str, value: object, expected: str, advice: str) -> UserError:
    """Word the refusal of a setting: "depth is 13, but this text tower has 12 layers. Use `depth=12` or less."."""
    return UserError(f"{name} is {value}, but {expected}. {advice}")


def unknown_name(kind: str, name: str, known: Iterable[str], advice: str = "") -> UserError:
    """Word the refusal of a name that is not in a list, with the nearest one that is."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(names) or 'none'}."
    return UserError(f"there is no {kind} named {name!r}. {hint} {advice}")


def bad_file(path: str | Path, problem: str, advice: str, line: int | None = None) -> UserError:
    """Word the refusal of a file, with its path and, where there is one, the line."""
    place = f"{path}, line {line}" if line is not None else f"{path}"
    return UserError(f"{place}: {problem}. {advice}")
