"""Templates of OpenPrompt (Ding et al. 2022), a text line each, as templates of ours. What they hold is never run.

What stands behind the mask and several masks stay where they are. Of the code in them, a handful of expressions is
known by its form, those of OpenPrompt's own templates, and becomes what ours may do to a field; all other is refused.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprompt.core.template import MAX_VECTORS, escaped, parse
from mmprompt.errors import UserError, bad_file
from mmprompt.files import read_bytes
from mmprompt.settings import Count, checked, holds

MAX_BYTES = 2**20
_PIECE = re.compile(r" *(?:\{((?:[^{}\"']|\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')*)\}|([^{]+))")
PLACES = ("placeholder", "meta", "soft", "mask", "text", "special")
TAKEN = ("answer", "bos", "soft")
"""What no field of ours is named."""
KEYS = (*PLACES, "shortenable", "post_processing", "duplicate", "same", "soft_id")
CODE = {
    "x": "",
    "x[:-1]": ":but-last",
    "x[:1].lower() + x[1:]": ":first-lower",
    "x[0].lower() + x[1:]": ":first-lower",
    "x.strip(string.punctuation)": ":strip",
    "x.rstrip(string.punctuation)": ":rstrip",
}
"""What a `post_processing` may compute of its text x, and what a field of ours says for it; see `_changed` for more."""


@dataclass(frozen=True)
class Converted:
    """A line of a file, and the template that it becomes, with notes on what data must bring, or why it is none."""

    line: int
    source: str
    template: str | None
    notes: tuple[str, ...] = ()
    problem: str | None = None


@checked
def read_openprompt(path: str | Path) -> list[Converted]:
    """Read a file of OpenPrompt's templates, one a line; empty lines are skipped.

    Raises:
        UserError: the file cannot be read, or holds no line.
    """
    text = read_bytes(Path(path), MAX_BYTES).decode("utf-8", "replace")
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                found.append(Converted(number, line, *convert_openprompt(line)))
            except UserError as error:
                found.append(Converted(number, line, None, problem=str(error)))
    if not found:
        raise bad_file(path, "holds no template", "Give a file of OpenPrompt's templates, one a line.")
    return found


def convert_openprompt(line: str) -> tuple[str, tuple[str, ...]]:
    """Turn a template of OpenPrompt into one of ours, with notes; see `Converted`.

    A placeholder becomes a field that may be cut, unless it says `shortenable: False`; `meta` one that may not; `soft`
    becomes vectors, with their words, number (`duplicate`) and shared ones (`soft_id`); each mask an `{answer}`.
    """
    written: list[str] = []
    notes: list[str] = []
    at = 0
    shared: dict[str, str] = {}
    while at < len(line.rstrip(" ")):
        match = _PIECE.match(line, at)
        if match is None:
            raise _refusal(f"the {{ at character {at + 1} is not closed")
        blank = " " if match[0].startswith(" ") or (at and line[at - 1] == " ") else ""
        at = match.end()
        said = {"text": match[2].rstrip(" ")} if match[1] is None else _read(match[1])
        written.append(blank + _piece(said, shared, notes))
    if not any(piece.strip() == "{answer}" for piece in written):
        raise _refusal("it has no mask")
    template = "".join(written)
    try:
        parse(template)
    except UserError as error:
        raise _refusal(str(error).removesuffix(".")) from None
    return template, tuple(notes)


def _read(body: str) -> dict[str, Any]:
    """Read what stands in braces, a set or a mapping of Python's, without running it; code stays a tree."""
    try:
        tree = ast.parse(f"{{{body}}}", mode="eval").body
        if isinstance(tree, ast.Set):
            return {ast.literal_eval(key): None for key in tree.elts}
        if not isinstance(tree, ast.Dict):
            raise ValueError
        pairs = zip(tree.keys, tree.values, strict=True)
        said = {
            ast.literal_eval(key): value if isinstance(value, ast.Lambda) else ast.literal_eval(value)
            for key, value in pairs
            if key is not None
        }
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise _refusal(f"{{{body[:40]}}} is none of OpenPrompt's") from None
    for key in said:
        if key not in KEYS:
            raise _refusal(f"{key!r} is not known")
    return said


def _piece(said: Mapping[str, Any], shared: dict[str, str], notes: list[str]) -> str:
    """Write a text, a field, vectors or the answer as our templates do."""
    kind = next((key for key in PLACES if key in said), "soft" if said.get("soft_id") is not None else None)
    if kind not in ("placeholder", "meta") and said.get("post_processing") is not None:
        raise _refusal(f"{kind} has a post_processing, but a field alone is changed")
    if kind == "mask":
        return "{answer}"
    if kind == "soft":
        return _soft(said, shared)
    if kind is not None and not isinstance(said[kind], str):
        raise _refusal(f"{kind!r} is {said[kind]!r}, but a text was expected")
    if kind == "text":
        return escaped(said["text"])
    if kind == "special":
        raise _refusal(f"{said['special']!r} stands for a token that each model has of its own; write yours")
    if kind is None:
        raise _refusal(f"{sorted(map(str, said))} name no place")
    if said[kind] in TAKEN:
        raise _refusal(f"its field {said[kind]!r} has a name that means something else here; rename it")
    cut = ":cut" if said.get("shortenable", kind == "placeholder") else ""
    change, behind = "", ""
    if said.get("post_processing") is not None:
        change, behind, joined_by = _changed(said["post_processing"])
        if joined_by is not None:
            notes.append(f"{said[kind]} is a list there; give a text of its parts, with {joined_by!r} between them")
    return f"{{{said[kind]}{cut}{change}}}{behind}"


def _soft(said: Mapping[str, Any], shared: dict[str, str]) -> str:
    words, n_vectors, number = said.get("soft"), said.get("duplicate", 1), said.get("soft_id")
    if not holds(n_vectors, Count) or n_vectors > MAX_VECTORS:
        raise _refusal(f"duplicate is {n_vectors!r}, but a whole number from 1 to {MAX_VECTORS} was expected")
    is_same = not words and bool(said.get("same")) and n_vectors > 1
    name = f"id{number}" if number is not None else f"same{len(shared) + 1}" if is_same else ""
    if name in shared:
        return shared[name]
    again = [f"{{soft:{name}}}"] * (n_vectors if is_same else 1)
    if name:
        shared[name] = " ".join(again)
    named = f":{name}" if name else ""
    if is_same:
        return " ".join([f"{{soft*1{named}}}", *again[1:]])
    return f'{{soft:"{words}"{named}}}' if words else f"{{soft*{n_vectors}{named}}}"


def _changed(code: Any) -> tuple[str, str, str | None]:
    """Say what a `post_processing` makes of its field: the change, the text it appends, what it joins a list by."""
    if isinstance(code, str):
        try:
            code = ast.parse(code, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            code = ast.Constant(code)
    refusal = _refusal(f"its post_processing is code that is not known, {ast.unparse(code)[:60]}")
    names = [node for node in ast.walk(code.body) if isinstance(node, ast.Name)] if isinstance(code, ast.Lambda) else []
    if isinstance(code, ast.Lambda) and len(code.args.args) == 1:
        (argument,) = code.args.args
        if {node.id for node in names} - {"string"} != {argument.arg}:
            raise refusal
        for node in names:
            node.id = "x" if node.id == argument.arg else node.id
        match code.body:
            case ast.BinOp(body, ast.Add(), ast.Constant(str(behind))) if (change := _change(body)) is not None:
                return change, escaped(behind), None
            case ast.Call(ast.Attribute(ast.Constant(str(between)), "join"), [ast.Name("x")], []):
                return "", "", between
            case body if (change := _change(body)) is not None:
                return change, "", None
    raise refusal


def _change(body: ast.expr) -> str | None:
    """Write a known change of x as a field of ours says it, None of any other code."""
    match body:
        case ast.Call(ast.Attribute(ast.Name("x"), "strip" | "rstrip" as name), [ast.Constant(str(letters))], []):
            return f':{name}="{letters}"' if letters and '"' not in letters else None
    return CODE.get(ast.unparse(body))


def _refusal(problem: str) -> UserError:
    return UserError(f"a template of OpenPrompt cannot be converted: {problem}. Write it as docs/language.md says.")
