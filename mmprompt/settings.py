"""Settings and arguments held to their annotations: `Annotated[int, Ge(1)]` takes 4 and numpy's 4, and refuses 0, "4"
and True in one line.

Numbers and their limits, text, paths, choices, classes, collections and unions of these are looked at; whatever else an
annotation says is not. pydantic reads the same annotations where settings come from a file. Here it is not asked:
strictly, it refuses numpy's numbers, and it cannot build a schema for most classes that arguments are of.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from annotated_types import Ge, Gt, Le, Lt

from mmprompt.errors import UserError, bad_file, bad_value, unknown_name

if TYPE_CHECKING:
    from pydantic import TypeAdapter

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

Count = Annotated[int, Ge(1)]
"""A whole number, 1 or more."""
Width = Annotated[int, Ge(1), Le(16384)]
"""How wide a layer is that a method makes, or the rank of a matrix: at most as wide as the widest models."""
Share = Annotated[float, Ge(0), Le(1)]
"""A share or a probability."""

NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    Path: "a path",
    NoneType: "None",
    Mapping: "a mapping",
    Callable: "a function",
}


def check_settings(settings: Any) -> None:
    """Refuse a field of a dataclass that its annotation does not hold; keep numbers as Python's own, paths as paths.

    One spelling of a value (8, not numpy's int64(8), nor `~` for the home folder) matters, since hashes and JSON are
    made of settings.
    """
    hints = annotations_of(type(settings))  # type: ignore[arg-type]
    for field in fields(settings):
        name, hint, value = field.name, hints[field.name], getattr(settings, field.name)
        members = list(_members(hint))
        if isinstance(value, str) and Path in members and str not in members:
            value = Path(value)
            object.__setattr__(settings, name, value)
        has_default = (field.default, field.default_factory) != (MISSING, MISSING)
        check(name, value, hint, f"Leave `{name}` out for the default." if has_default else "Give another.")
        object.__setattr__(settings, name, _plain(value, hint))


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse arguments of a public function that their annotations do not hold, before it is called with plain numbers
    and paths.

    Which arguments there are Python checks itself, with its own TypeError.
    """
    signature, called = inspect.signature(function), function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)
        hints = annotations_of(function)
        for name, value in bound.arguments.items():
            hint = hints.get(name, Any)
            check(name, value, hint, f"See help({called}).")
            bound.arguments[name] = _plain(value, hint)
        return function(*bound.args, **bound.kwargs)

    return call


def validate(cls: type[T], mapping: Mapping[str, Any], path: str | Path, advice: str = "", is_whole: bool = True) -> T:
    """Make a frozen dataclass from what a file says, without converting types; its annotations are the schema.

    Args:
        cls: whose annotations and `__post_init__` say what may stand there.
        mapping: the content, JSON-ready.
        path: of the file, for the error message.
        advice: what to do; by default to correct the file.
        is_whole: refuse keys that are none of its fields.
    Raises:
        UserError: a key is unknown, missing or bad; the first is named.
    """
    from pydantic import ValidationError

    known = [field.name for field in fields(cls) if field.init]  # type: ignore[arg-type]
    try:
        # Through JSON, because strict validation of Python objects would refuse a list for a tuple.
        content = json.dumps(dict(mapping))
        return _adapter(cls).validate_json(content, strict=True, extra="forbid" if is_whole else "ignore")  # type: ignore[arg-type]
    except ValidationError as error:
        # a misspelt key first: it is the reason why another one seems to be missing
        first = min(error.errors(), key=lambda found: found["type"] != "unexpected_keyword_argument")
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "unexpected_keyword_argument":
            raise UserError(f"{path}: {unknown_name('key', key, known)}") from None
        if first["type"] == "missing":
            raise bad_file(path, f"lacks the key {key!r}", advice or "Add it.") from None
        if first["type"] == "value_error":
            raise UserError(f"{path}: {first['ctx']['error']}") from None
        problem = f"{key} is {repr(first['input'])[:60]}, but {first['msg'][0].lower()}{first['msg'][1:]}"
        raise bad_file(path, problem, advice or "Correct it.") from None


@functools.cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def check(name: str, value: object, hint: Any, advice: str) -> None:
    """Refuse a value that an annotation does not hold: name the setting, the value and what was expected."""
    if holds(value, hint):
        return
    choices = [choice for member in _members(hint) if get_origin(member) is Literal for choice in get_args(member)]
    if choices and isinstance(value, str):
        raise unknown_name(name, value, choices)
    if isinstance(value, str):
        shown = repr(value if len(value) < 60 else f"{value[:60]}...")
    else:
        is_short = isinstance(value, Real | NoneType | os.PathLike)
        shown = str(value) if is_short else f"of type {type(value).__name__}"
    raise bad_value(name, shown, f"it must be {expected(hint)}", advice)


def holds(value: object, hint: Any) -> bool:
    """Return whether an annotation holds a value; one that is not looked at holds every value."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return holds(value, arguments[0]) and all(_is_within(value, limit) for limit in arguments[1:])
    if origin in (Union, UnionType):
        return any(holds(value, member) for member in arguments)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if hint in (int, float):
        is_number = isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
        most = 2**63 if hint is int else sys.float_info.max  # a bound that numpy's float32 cannot hold
        return is_number and abs(value.item() if hasattr(value, "item") else value) < most  # type: ignore[arg-type]
    if hint is Path:
        return isinstance(value, os.PathLike)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return isinstance(value, tuple) and len(value) == len(arguments) and all(map(holds, value, arguments))
    if origin in (Sequence, Iterable, tuple):  # what can be read once is not read here
        is_many, many = hasattr(value, "__iter__") and not isinstance(value, str), _listed(value, arguments[0])
        return is_many and (not isinstance(many, list | tuple) or all(holds(each, arguments[0]) for each in many))
    if origin in (Mapping, Callable):
        return isinstance(value, origin)
    is_unknown = not isinstance(hint, type) or hint is Any or origin is not None
    if is_unknown or getattr(hint, "_is_protocol", False) > getattr(hint, "_is_runtime_protocol", False):
        return True
    return isinstance(value, hint)


def expanded(name: str | Path) -> Path:
    """Return a path with the home folder in the place of `~`; refuse that of nobody, and what may not be looked at."""
    try:
        path = Path(name).expanduser()
        path.exists()
    except OSError as error:
        raise bad_file(str(name)[:60], f"cannot be read ({error.strerror})", "Give another path.") from None
    except RuntimeError:
        raise bad_file(str(name), "is below the home folder of nobody here", "Give another path.") from None
    return path


def is_there(name: str | Path) -> bool:
    """Return whether there is a file or folder of that name, which may be words or a list and no path at all."""
    try:
        return expanded(name).exists()
    except UserError:
        return False


def _plain(value: Any, hint: Any) -> Any:
    """Return numbers as Python's own, not numpy's, and paths without `~`, where an annotation holds one or many."""
    members = list(_members(hint))
    if Path in members and isinstance(value, str | Path):
        path = expanded(value)
        return type(value)(path) if str(value).startswith("~") else value
    if int in members or float in members:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        return value if not is_number else float(value) if float in members else int(value)
    each = next((get_args(member)[0] for member in members if get_origin(member) in (Sequence, tuple)), None)
    many = _listed(value, each)
    if type(many) not in (list, tuple) or not {int, float, Path} & set(_members(each)):
        return value
    as_it_is = [isinstance(one, str | Path) and not str(one).startswith("~") for one in many]  # looked at when read
    return type(many)(one if known else _plain(one, each) for one, known in zip(many, as_it_is, strict=True))


def _listed(value: Any, each: Any) -> Any:
    """Return an array of numpy as a list where numbers are wanted, anything else as it is."""
    is_array = type(value).__module__ == "numpy" and {int, float} & set(_members(each))
    return value.tolist() if is_array else value


def _is_within(value: Any, limit: object) -> bool:
    match limit:
        case Ge(least):
            return value >= least
        case Gt(above):
            return value > above
        case Le(most):
            return value <= most
        case Lt(below):
            return value < below
    return True


def expected(hint: Any) -> str:
    """Word what an annotation holds, None left out: `a whole number, 1 or more`."""
    arguments = get_args(hint)
    if get_origin(hint) is Annotated:
        match arguments[1:]:
            case (Ge(least), Le(most)):
                return f"{expected(arguments[0])} from {least} to {most}"
        forms = {Ge: "{0.ge} or more", Gt: "above {0.gt}", Le: "at most {0.le}", Lt: "below {0.lt}"}
        limits = [forms[type(limit)].format(limit) for limit in arguments[1:] if type(limit) in forms]
        return ", ".join([expected(arguments[0]), *([" and ".join(limits)] if limits else [])])
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(expected(member) for member in arguments if member is not NoneType)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if get_origin(hint) is tuple and arguments[-1] is not Ellipsis:
        return f"({', '.join(map(expected, arguments))})"
    if get_origin(hint) in (Sequence, Iterable, tuple):
        return "a list" if arguments[0] is Any else f"a list, each {expected(arguments[0])}"
    name = getattr(hint, "__name__", str(hint))
    return NAMES.get(get_origin(hint) or hint, f"{'an' if name[0] in 'AEIOU' else 'a'} {name}")


def _members(hint: Any) -> Iterable[Any]:
    """Yield the members of a union, without limits; an annotation that is none yields itself."""
    if get_origin(hint) is Annotated:
        yield from _members(get_args(hint)[0])
    elif get_origin(hint) in (Union, UnionType):
        for member in get_args(hint):
            yield from _members(member)
    else:
        yield hint


@functools.cache
def annotations_of(owner: Any) -> dict[str, Any]:
    """Return the annotations of a class or function by name."""
    parts = reversed(owner.__mro__) if isinstance(owner, type) else [owner]
    return {
        name: _resolved(hint, vars(sys.modules[part.__module__]))
        for part in parts
        for name, hint in inspect.get_annotations(part).items()
    }


def _resolved(hint: Any, names: dict[str, Any]) -> Any:
    """Return what an annotation stands for; what is imported for type checkers alone is Any, as is all about it."""
    unknown: dict[str, Any] = {}
    while True:
        try:
            return get_type_hints(SimpleNamespace(__annotations__={"hint": hint}), names, unknown, True)["hint"]
        except NameError as error:
            unknown[str(error.name)] = Any
        except (AttributeError, TypeError):
            return Any
