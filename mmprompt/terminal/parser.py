"""From a command line to settings and back: frozen dataclasses read by tyro, options found before there is a parser,
settings from a file, and the library's messages in the words of the command line.

What a dataclass refuses is a `UserError`, and leaves here as one. What tyro refuses (a misspelt option, a letter where
a number belongs) it says in a box of several lines on stderr; that leaves here as a `UserError` of one line too. A file
holds `n_ctx: 4` for `--n-ctx 4`; what the command line says wins. `n_ctx=4` in a message becomes --n-ctx 4 if the verb
being run has such an option; other words in backticks stay.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints, overload

from mmprompt.errors import UserError, bad_file, bad_value, unknown_name
from mmprompt.settings import expanded
from mmprompt.training.run_files import RUN

Settings = TypeVar("Settings")

PARSING = r"^Error parsing (\S+): "
WORDINGS = {
    PARSING + r"could not convert string to float: (.+)": r"\1 is \2, but a number was expected",
    PARSING + r"invalid literal for int\(\) with base 10: (.+)": r"\1 is \2, but a whole number was expected",
    PARSING + r"no type matching \{None\}\|(\S+) could .* \[(.+)\]": r"\1 is \3, but \2 or None was expected",
    PARSING + r"Could not find valid parse for arguments: \[(.+)\]": r"\1 is \2, but numbers were expected",
    r"^invalid choice (.+) for argument '(?:settings\.)?(.+)'\. Expected one of \((.+)\)": (
        r"\2 is \1, but one of \3 was expected"
    ),
    r"^Missing value for argument '(-.+)'.*": r"\1 is followed by nothing, but a value was expected",
    r"^Missing (?:value for argument '|from .+?: )(?:settings\.)?([^\s']+).*": r"\1 is missing",
    r"^Unrecognized options: ": "there is no option ",
}
"""What tyro says of a command line, and how it is said here."""
CONFIG_HELP = (
    "Start from the settings in a YAML or JSON file, named as options are, or in the run.json of another run; what the "
    "command line says wins."
)
RUN_KEYS = "format kind backbone data class_names method recipe seed device dtype versions notices call".split()
"""What a run.json holds."""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
BLANK = "\0"
NOTHING = re.compile(r"\(default:((?:[\s│]|\x1b\[[0-9;]*m)*)(None\)|False\)|\))")
OR_NONE = re.compile(r"\{None\}\|((?:\x1b\[[0-9;]*m)*)(\S+)")
SETTING = re.compile(r"`([a-z]\w*)(?:=([^`]*))?`")
QUOTES = "\"'"
OTHER_NAMES = {"model": "backbone", "dataset": "data", "datasets": "data", "learning_rate": "lr", "mode": "method"}
"""What options are called elsewhere, and here."""
_of_verb: set[str] = set()
_collected: list[Any] | None = None


def parse(
    settings: type[Settings],
    arguments: Sequence[str],
    prog: str,
    description: str,
    default: Settings | None = None,
    saved: Mapping[str, Any] | None = None,
) -> Settings:
    """Read settings, a dataclass with a text under each field, from the words after the verb.

    `prog` is the command as typed; `default` holds values to start from instead of the fields' own. Those that the file
    after --config holds come before these, or those that are `saved` of it.
    """
    import tyro

    form = _form(settings)
    remember(form)
    saved = saved_settings(arguments) if saved is None else saved
    if saved:
        default = filled(settings, checked_settings(saved, settings, Path(str(typed(arguments, "config")))), default)
    chosen: dict[str, Any] = {} if default is None else {"default": form(default)}
    style = (
        tyro.conf.OmitArgPrefixes,
        tyro.conf.FlagCreatePairsOff,
        tyro.conf.SuppressFixed,
        tyro.conf.HelptextFromCommentsOff,
    )
    if _collected is not None:
        _collected.append(tyro.extras.get_parser(form, prog=prog, description=description, config=style, **chosen))
        raise SystemExit(0)
    held_back, shown = io.StringIO(), _Shown()
    try:
        with contextlib.redirect_stderr(held_back), contextlib.redirect_stdout(shown):
            read = tyro.cli(form, args=list(arguments), prog=prog, description=description, config=style, **chosen)
        _settle(read.settings)
        return read.settings
    except SystemExit as end:
        refusal = refusal_behind(end) or refusal_in(held_back.getvalue(), prog)
        if refusal is not None:
            raise refusal from None
        sys.stdout.write(without_nothing(shown.getvalue()))
        sys.stderr.write(held_back.getvalue())
        raise


class _Shown(io.StringIO):
    """What tyro shows, in the colours and frames of the stream that it is held back from."""

    encoding = property(lambda self: getattr(sys.__stdout__, "encoding", None))

    def isatty(self) -> bool:
        """Return whether a person looks at the stream."""
        return sys.__stdout__ is not None and sys.__stdout__.isatty()


def without_nothing(text: str) -> str:
    """Blank out in a help text that an option is not given by default, which goes without saying."""
    text = NOTHING.sub(lambda found: BLANK * 9 + found[1] + BLANK * len(found[2]), text)
    lines = [line for line in text.splitlines(True) if BLANK not in line or COLOUR.sub("", line).strip(f"│ {BLANK}\n")]
    return OR_NONE.sub(r"\1\2       ", "".join(lines).replace(BLANK, " "))


def parser_of(run: Callable[[Sequence[str], str], None], prog: str) -> argparse.ArgumentParser:
    """Return the parser that a verb reads its command line with, without running the verb."""
    global _collected
    _collected = []
    try:
        with contextlib.suppress(SystemExit):
            run(["--help"], prog)
        (parser,) = _collected
    finally:
        _collected = None
    return parser


def _form(settings: type) -> Any:
    """Return a dataclass of the settings and the option --config."""
    import tyro

    unnamed = tyro.conf.arg(name="")  # no title of its own in the help
    config = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help=CONFIG_HELP)]
    members: list[Any] = [("settings", Annotated[settings, unnamed]), ("config", config, field(default=None))]
    return make_dataclass("Form", members, frozen=True)


def _settle(settings: Any) -> None:
    """Refuse whole numbers that no library takes, and put the home folder in the place of `~` where no shell did."""
    for one in fields(settings):
        value = getattr(settings, one.name)
        if is_dataclass(value):
            _settle(value)
        elif isinstance(value, Path):
            object.__setattr__(settings, one.name, expanded(value))
        elif isinstance(value, tuple) and any(isinstance(path, Path) for path in value):
            object.__setattr__(settings, one.name, tuple(map(expanded, value)))
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise bad_value(one.name, value, "a number below 2**63 was expected", "Give a smaller one.")


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
    word = re.match(r"there is no option ([^\s,]+)", said)
    if word:
        other = OTHER_NAMES.get(word[1].lstrip("-").replace("-", "_"), "")
        hint = f" Did you mean --{other}?" if other in _of_verb else hint
        if not word[1].startswith("-"):
            said = f"there is no place for {word[1]}"
            places = ("prompt" if Path(word[1], "prompt.json").is_file() else "data", "data", "input")
            hint = next((f" Did you mean --{name} {word[1]}?" for name in places if name in _of_verb), "")
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
        if content.get("kind", "classification") != "classification":
            problem = f"is of a run for {content['kind']}, which no file of options repeats"
            raise bad_file(path, problem, f"Type {content.get('call', {}).get('command', 'its command')}.")
        place = content.get("call", {}).get("data") or {"data": content["data"]["name"]}
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


def saved_settings(arguments: Sequence[str]) -> dict[str, Any]:
    """Return what the file after --config says; without what a command line gives in place of it.

    A run that is gone on with goes on in the folder of the run.json that is given.
    """
    given = typed(arguments, "config")
    if given is None:
        return {}
    from mmprompt.training.recipe import LENGTHS

    path = expanded(given)
    saved = read_settings(path)
    length = [name for name in LENGTHS if typed(arguments, name) is not None]
    saved = {key: value for key, value in saved.items() if key not in LENGTHS or not (value is None or length)}
    if path.name == RUN and "--resume" in arguments:
        saved["out"] = str(path.parent)
    return saved


def checked_settings(saved: Mapping[str, Any], form: type, path: Path) -> dict[str, Any]:
    """Return settings of a file as the fields of a form hold them; a list where one text is held gets commas."""
    from mmprompt.settings import validate

    hints = dict(_leaves(form))
    for key in saved:
        if key not in hints:
            raise unknown_name(f"key in {path}", key, hints)
    worded = {key: _worded(value) if _is_text(hints[key]) else value for key, value in saved.items()}
    read: Any = validate(make_dataclass("Saved", [(key, hints[key]) for key in saved]), worded, path)
    return {key: getattr(read, key) for key in saved}


def filled(form: Any, values: Mapping[str, Any], start: Any = None) -> Any:
    """Make a dataclass, and those within it, of values by name; others are as in `start`, by default the fields' own.

    What has no default is left open for the command line.
    """
    import tyro

    made, hints = {}, get_type_hints(form)
    for one in fields(form):
        if start is not None:
            kept = getattr(start, one.name)
        elif one.default_factory is not MISSING:
            kept = one.default_factory()
        else:
            kept = tyro.MISSING if one.default is MISSING else one.default
        inner = hints[one.name]
        is_group = is_dataclass(inner)
        made[one.name] = filled(inner, values, None if kept is tyro.MISSING else kept) if is_group else kept
        if not is_group and one.name in values:
            made[one.name] = values[one.name]
    return form(**made)


def _is_text(hint: Any) -> bool:
    if get_origin(hint) is Annotated:
        return _is_text(get_args(hint)[0])
    return hint is str or (get_origin(hint) is not tuple and any(map(_is_text, get_args(hint))))


def _worded(value: Any) -> Any:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def remember(settings: type | None) -> None:
    """Take the fields of a dataclass, and of those within it, for the options there are; None for no options."""
    _of_verb.clear()
    _of_verb.update(name for name, _ in _leaves(settings))


def _leaves(kind: Any) -> Iterator[tuple[str, Any]]:
    """Yield names and annotations of all fields of a dataclass and of those in it, also of a union of some."""
    for part in get_args(kind)[: 1 if get_origin(kind) is Annotated else None]:
        yield from _leaves(part)
    if is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        for one in fields(kind):
            yield from list(_leaves(hints[one.name])) or [(one.name, hints[one.name])]


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


def typed(arguments: Sequence[str], name: str) -> str | None:
    """Return the value that a command line gives to an option, before there is a parser for it."""
    found = None
    for index, word in enumerate(arguments):
        flag, sign, value = word.partition("=")
        if flag not in {f"--{name}", "--" + name.replace("_", "-"), "--" + name.replace("-", "_")}:
            continue
        if sign or index + 1 < len(arguments):
            found = value if sign else arguments[index + 1]
    return found


@overload
def peek(arguments: Sequence[str], name: str) -> str | None: ...
@overload
def peek(arguments: Sequence[str], name: str, default: str) -> str: ...
def peek(arguments: Sequence[str], name: str, default: str | None = None) -> str | None:
    """Return the value that a command line gives to an option, or the file that it names, before there is a parser.

    Which options exist depends on the method, so the method has to be known first.
    """
    found = typed(arguments, name)
    if found is None:
        value = saved_settings(arguments).get(name.replace("-", "_"))
        return default if value is None else str(_worded(value))
    return found


def given_names(arguments: Sequence[str], names: Iterable[str]) -> list[str]:
    """Return the names of those options that a command line gives, or the file that it names."""
    words, saved = {word.split("=")[0].replace("_", "-") for word in arguments}, saved_settings(arguments)
    flags = {name: name.replace("_", "-") for name in names}
    return [name for name, flag in flags.items() if {f"--{flag}", f"--no-{flag}"} & words or name in saved]


def typed_recipe(arguments: Sequence[str]) -> dict[str, str]:
    """Return the settings of a recipe that a command line gives, as they are typed, without those of a file."""
    from mmprompt.training.recipe import Recipe

    values = {one.name: typed(arguments, one.name) for one in fields(Recipe)}
    return {name: value for name, value in values.items() if value is not None}


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
