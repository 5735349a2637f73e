"""One way from a command line to settings: frozen dataclasses read by tyro.

What a dataclass refuses is a `UserError`, and leaves here as one. What tyro refuses (a misspelt option, a letter where
a number belongs) it says in a box of several lines on stderr; that leaves here as a `UserError` of one line too.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Annotated, Any, TypeVar

import tyro

from mmprompt.errors import UserError
from mmprompt.terminal.options import remember

Settings = TypeVar("Settings")
Device = Annotated[str, tyro.conf.arg(metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")]

PARSING = r"^Error parsing (\S+): "
WORDINGS = {
    PARSING + r"could not convert string to float: (.+)": r"\1 is \2, but a number was expected",
    PARSING + r"invalid literal for int\(\) with base 10: (.+)": r"\1 is \2, but a whole number was expected",
    PARSING + r"no type matching \{None\}\|(\S+) could .* \[(.+)\]": r"\1 is \3, but \2 or None was expected",
    PARSING + r"Could not find valid parse for arguments: \[(.+)\]": r"\1 is \2, but numbers were expected",
    r"^invalid choice (.+) for argument '(.+)'\. Expected one of \((.+)\)": r"\2 is \1, but one of \3 was expected",
    r"^Missing value for argument '(-.+)'.*": r"\1 is followed by nothing, but a value was expected",
    r"^Missing (?:value for argument '|from .+?: )([^\s']+).*": r"\1 is missing",
    r"^Unrecognized options: ": "there is no option ",
}
"""What tyro says of a command line, and how it is said here."""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
FORM = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)


def parse(
    settings: type[Settings], arguments: Sequence[str], prog: str, description: str, default: Settings | None = None
) -> Settings:
    """Read settings from a command line.

    Args:
        settings: a dataclass; its fields are the options, the text under each its help.
        arguments: the words after the verb.
        prog: the command as typed, for the help text.
        description: what it does.
        default: values to start from instead of the fields' own.
    Raises:
        UserError: a dataclass refuses a value, or tyro the command line.
        SystemExit: 0 after `--help`.
    """
    remember(settings)
    chosen: dict[str, Any] = {} if default is None else {"default": default}
    held_back = io.StringIO()
    try:
        with contextlib.redirect_stderr(held_back):
            return tyro.cli(settings, args=list(arguments), prog=prog, description=description, config=FORM, **chosen)
    except SystemExit as end:
        refusal = refusal_behind(end) or refusal_in(held_back.getvalue(), prog)
        if refusal is not None:
            raise refusal from None
        sys.stderr.write(held_back.getvalue())
        raise


def refusal_behind(error: BaseException) -> UserError | None:
    """The `UserError` that an exception was raised on account of, None if there is none."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__ or cause.__context__
    return cause


def refusal_in(box: str, prog: str) -> UserError | None:
    """What a box of tyro's says, in one line; None if there is no box.

    Args:
        box: its title, then paragraphs between rules and frames, perhaps coloured: the refusal, perhaps an option of a
            similar name, help.
        prog: the command as typed.
    """
    lines = [COLOUR.sub("", line).strip("│ ") for line in box.splitlines()[1:]]
    paragraphs = ["" if not line.strip("─-╰╯") else line for line in lines]
    said, *rest = [" ".join(some) for is_text, some in groupby(paragraphs, bool) if is_text] or [""]
    if not said:
        return None
    for pattern, wording in WORDINGS.items():
        said = re.sub(pattern, wording, said)
    near = re.match(r"Perhaps you meant:\s*(--[\w-]+)", " ".join(rest))
    hint = f" Did you mean {near[1]}?" if near else ""
    return UserError(f"{said.rstrip('.')}.{hint} See `{prog} --help`.")


def peek(arguments: Sequence[str], name: str) -> str | None:
    """The value that a command line gives to an option, found before there is a parser for it.

    Which options exist depends on the method, so the method has to be known first.

    Args:
        arguments: the words after the verb.
        name: the option without dashes, such as `method`.
    """
    flag = f"--{name}"
    found = None
    for index, word in enumerate(arguments):
        if word == flag and index + 1 < len(arguments):
            found = arguments[index + 1]
        elif word.startswith(f"{flag}="):
            found = word.removeprefix(f"{flag}=")
    return found
