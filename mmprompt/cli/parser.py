"""One way from a command line to settings: frozen dataclasses read by tyro.

tyro words its own refusals (a misspelt option, a letter where a number belongs) and exits with 2. What a
dataclass refuses is a `UserError` like any other, and leaves here as one.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from mmprompt.errors import UserError

Settings = TypeVar("Settings")

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
        UserError: a dataclass refuses a value.
        SystemExit: 2 where tyro refuses the command line, 0 after `--help`.
    """
    chosen: dict[str, Any] = {} if default is None else {"default": default}
    held_back = io.StringIO()
    try:
        with contextlib.redirect_stderr(held_back):
            return tyro.cli(settings, args=list(arguments), prog=prog, description=description, config=FORM, **chosen)
    except SystemExit as end:
        refusal = refusal_behind(end)
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
