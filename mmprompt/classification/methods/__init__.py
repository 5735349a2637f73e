"""The published methods by name. An object that satisfies `Method` works wherever a name does."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass
from typing import Any

from mmprompt.classification.methods.coop import CoOp
from mmprompt.classification.methods.vpt import VPT
from mmprompt.core.method import Method, Together
from mmprompt.errors import unknown_name

METHODS: dict[str, type[Method]] = {"coop": CoOp, "vpt": VPT}

__all__ = ["METHODS", "VPT", "CoOp", "Method", "Together", "describe", "make_method", "method_types"]


def method_types(name: str) -> list[type[Method]]:
    """The methods that a name such as `coop` or `coop+vpt` stands for.

    Raises:
        UserError: a part is not a method.
    """
    parts = [part.strip() for part in name.split("+")]
    for part in parts:
        if part not in METHODS:
            raise unknown_name("method", part, METHODS)
    return [METHODS[part] for part in parts]


def make_method(name: str, settings: dict[str, Any] | None = None) -> Method:
    """A method from its name and settings, as `describe` gives them.

    Args:
        name: `coop`, or several joined by `+`.
        settings: field values of all the methods together.
    Raises:
        UserError: a name or a setting is unknown, or a value is out of range.
    """
    types, given = method_types(name), dict(settings or {})
    made: list[Method] = []
    for kind in types:
        names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
        made.append(kind(**{field: given.pop(field) for field in names if field in given}))
    if given:
        known = [field.name for kind in types for field in fields(kind)]  # type: ignore[arg-type]
        raise unknown_name(f"setting of {name}", next(iter(given)), known)
    return made[0] if len(made) == 1 else Together(tuple(made))


def describe(method: Method) -> dict[str, Any]:
    """A method's name and settings, JSON-ready; a method that is not in `METHODS` goes by its class name."""
    if isinstance(method, Together):
        parts = [describe(part) for part in method.methods]
        settings = {key: value for part in parts for key, value in part["settings"].items()}
        return {"name": "+".join(part["name"] for part in parts), "settings": settings}
    names = {kind: name for name, kind in METHODS.items()}
    settings = asdict(method) if is_dataclass(method) and not isinstance(method, type) else {}
    return {"name": names.get(type(method), type(method).__name__), "settings": settings}
