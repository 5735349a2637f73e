"""From a command line to settings and back: frozen dataclasses read by tyro, options found before there is a parser,
settings from a file, and the library's messages in the words of the command line.

What a dataclass refuses is a `UserError`, and leaves here as one. What tyro refuses (a misspelt option, a letter where
a number belongs) it says in a box of several lines on stderr; that leaves here as a `UserError` of one line too. A file
holds `n_ctx: 4` for `--n-ctx 4`; what the command line says wins. `n_ctx=4` in a message becomes --n-ctx 4 if the verb
being run has such an option; other words in backticks stay.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from mmprompt.errors import UserError, bad_file, bad_value, unknown_name

Settings = TypeVar("Settings")

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
RUN_KEYS = "format kind backbone data class_names method recipe seed device dtype versions notices call".split()
"""What a run.json holds."""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
SETTING = re.compile(r"`([a-z]\w*)(?:=([^`]*))?`")
QUOTES = "\"'"
_of_verb: set[str] = set()


def parse(
    settings: type[Settings], arguments: Sequence[str], prog: str, description: str, default: Settings | None = None
) -> Settings:
    """Read settings, a dataclass with a text under each field, from the words after the verb.

    `prog` is the command as typed; `default` holds values to start from instead of the fields' own.
    """
    import tyro

    remember(settings)
    form = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.SuppressFixed)
    chosen: dict[str, Any] = {} if default is None else {"default": default}
    held_back = io.StringIO()
    try:
        with contextlib.redirect_stderr(held_back):
            read = tyro.cli(settings, args=list(arguments), prog=prog, description=description, config=form, **chosen)
        _refuse_endless(read)
        return read
    except SystemExit as end:
        refusal = refusal_behind(end) or refusal_in(held_back.getvalue(), prog)
        if refusal is not None:
            raise refusal from None
        sys.stderr.write(held_back.getvalue())
        raise


def _refuse_endless(settings: Any) -> None:
    """Refuse whole numbers that no library takes."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            _refuse_endless(value)
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise bad_value(field.name, value, "a number below 2**63 was expected", "Give a smaller one.")


def refusal_behind(error: BaseException) -> UserError | None:
    """Return the `UserError` that an exception was raised on account of, None if there is none."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__ or cause.__context__
    return cause


def refusal_in(box: str, prog: str) -> UserError | None:
    """Say what a box of tyro's says in one line; None if there is no box.

    A box is a title, then paragraphs between rules and frames: the refusal, perhaps a similar option, help.
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


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings of a YAML or JSON file, a `run.json` among them, by option name with underscores."""
    from mmprompt.data.strict_yaml import read_yaml

    content = read_yaml(path)
    if "format" not in content:
        return content
    for key in content:
        if key not in RUN_KEYS:
            raise unknown_name(f"key in {path}", key, RUN_KEYS)
    try:
        place = content.get("call", {}).get("pictures") or {"data": content["data"]["name"]}
        return {
            **{name: value for name, value in place.items() if value is not None},
            "backbone": content["backbone"]["name"],
            "method": content["method"]["name"],
            **content["method"]["settings"],
            **content["recipe"],
            "shots": content["data"]["shots"],
            "seed": content["seed"],
        }
    except (KeyError, TypeError, AttributeError):
        raise bad_file(path, "is not a whole run.json", "Give one as a run wrote it.") from None


def distribute(settings: Mapping[str, Any], groups: Mapping[str, type], path: Path) -> dict[str, Any]:
    """Make each group's dataclass from the settings that are its own; no two groups share a field's name."""
    from mmprompt.settings import validate

    names = {group: [field.name for field in fields(kind)] for group, kind in groups.items()}
    known = [name for members in names.values() for name in members]
    for key in settings:
        if key not in known:
            raise unknown_name(f"key in {path}", key, known)
    return {
        group: validate(kind, {key: value for key, value in settings.items() if key in names[group]}, path)
        for group, kind in groups.items()
    }


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
    """Word a message of the library, with settings in backticks as in `resume=True`, for the command line."""

    def option(setting: re.Match[str]) -> str:
        name, value = setting.groups()
        name = "backbone" if name == "model" and name not in _of_verb else name
        if name not in _of_verb:
            return setting[0]
        flag = "--" + name.replace("_", "-")
        if value in (None, "True"):
            return flag
        return f"{flag} {value if ' ' in value else value.strip(QUOTES)}"

    return SETTING.sub(option, text)


def peek(arguments: Sequence[str], name: str) -> str | None:
    """Return the value that a command line gives to an option, before there is a parser for it.

    Which options exist depends on the method, so the method has to be known first.
    """
    flag = f"--{name}"
    found = None
    for index, word in enumerate(arguments):
        if word == flag and index + 1 < len(arguments):
            found = arguments[index + 1]
        elif word.startswith(f"{flag}="):
            found = word.removeprefix(f"{flag}=")
    return found


def is_given(arguments: Sequence[str], name: str) -> bool:
    """Return whether a command line gives an option, with dashes or underscores in its name."""
    flags = {f"--{name}", "--" + name.replace("_", "-"), "--no-" + name.replace("_", "-")}
    return any(word.split("=")[0] in flags for word in arguments)


def names_in(option: str, text: str) -> tuple[str, ...]:
    """Return the names of a comma-separated list."""
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        advice = f"Write --{option} one,two."
        raise bad_value(option, repr(text), "names with commas between them were expected", advice)
    return names


def counts_in(option: str, text: str) -> tuple[int, ...]:
    """Return the whole numbers of a comma-separated list, each 0 or more."""
    parts = names_in(option, text)
    if not all(part.isascii() and part.isdigit() for part in parts):
        advice = f"Use --{option} 1,2."
        raise bad_value(option, repr(text), "whole numbers with commas between them were expected", advice)
    return tuple(map(int, parts))


def shots_in(text: str) -> tuple[int | None, ...]:
    """Return numbers of shots, each 1 or more, None where `all` asks for all there are."""
    shots = tuple(None if part in {"all", "None"} else counts_in("shots", part)[0] for part in names_in("shots", text))
    if 0 in shots:
        raise bad_value("shots", text, "at least 1 image a class is needed", "Baselines without shots need none.")
    return shots
