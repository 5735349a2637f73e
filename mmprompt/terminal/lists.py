"""Several values in one option: `1,2,4` or `coop,zero-shot`, and which options a command line gives."""

from __future__ import annotations

from collections.abc import Sequence

from mmprompt.errors import bad_value


def names_in(option: str, text: str) -> tuple[str, ...]:
    """Return the names of a comma-separated list.

    Args:
        option: its name, for the error message.
        text: as given.
    Raises:
        UserError: there is none, or one is empty.
    """
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        advice = f"Write --{option.replace('_', '-')} one,two."
        raise bad_value(option, repr(text), "names with commas between them were expected", advice)
    return names


def counts_in(option: str, text: str) -> tuple[int, ...]:
    """Return the whole numbers of a comma-separated list, each 0 or more.

    Raises:
        UserError: something in it is no such number.
    """
    parts = names_in(option, text)
    if not all(part.isascii() and part.isdigit() for part in parts):
        advice = f"Use --{option.replace('_', '-')} 1,2."
        raise bad_value(option, repr(text), "whole numbers with commas between them were expected", advice)
    return tuple(map(int, parts))


def shots_in(text: str) -> tuple[int | None, ...]:
    """Return numbers of shots, each 1 or more, None where `all` asks for all there are.

    Raises:
        UserError: something in it is neither.
    """
    shots = tuple(None if part in {"all", "None"} else counts_in("shots", part)[0] for part in names_in("shots", text))
    if 0 in shots:
        raise bad_value("shots", text, "at least 1 picture a class is needed", "Baselines without shots need none.")
    return shots


def is_given(arguments: Sequence[str], name: str) -> bool:
    """Return whether a command line gives an option, with dashes or underscores in its name.

    Args:
        arguments: the words after the verb.
        name: of the setting, with underscores.
    """
    flags = {f"--{name}", "--" + name.replace("_", "-"), "--no-" + name.replace("_", "-")}
    return any(word.split("=")[0] in flags for word in arguments)
