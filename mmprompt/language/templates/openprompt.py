"""Templates of OpenPrompt (Ding et al. 2022), a text line each, as templates of ours. What they hold is never run.

A decoder reads from left to right, so what stands behind the mask has no say in what is predicted there: words are left
away, which is noted, and a field there is refused. So are several masks, and code that does more than append a text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprompt.errors import UserError, bad_file
from mmprompt.files import read_bytes

MAX_BYTES = 2**20
_PIECE = re.compile(r" *(?:\{((?:[^{}\"']|\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')*)\}|([^{]+))")
KEYS = ("placeholder", "meta", "soft", "mask", "text", "shortenable", "post_processing", "duplicate", "same", "soft_id")


@dataclass(frozen=True)
class Converted:
    """A line of a file: what it says, and the template that it becomes or the reason why it becomes none.

    Args:
        notes: what of the line is left away.
    """

    line: int
    source: str
    template: str | None
    notes: tuple[str, ...] = ()
    problem: str | None = None


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
    """Turn a template of OpenPrompt into one of ours, and note what is left away.

    A placeholder becomes a field that may be cut, unless it says `shortenable: False`; `meta` one that may not; `soft`
    becomes vectors, with their words, number (`duplicate`) and shared ones (`soft_id`).

    Raises:
        UserError: it has no mask or several, a field stands behind it, it holds code that does more than append a text,
            or is no such template.
    """
    written: list[str] = []
    behind: list[str] = []
    n_masks, at = 0, 0
    shared: dict[str, str] = {}
    while at < len(line.rstrip(" ")):
        match = _PIECE.match(line, at)
        if match is None:
            raise _refusal(f"the {{ at character {at + 1} is not closed")
        blank = " " if match[0].startswith(" ") or (at and line[at - 1] == " ") else ""
        at = match.end()
        said = {"text": match[2].rstrip(" ")} if match[1] is None else _read(match[1])
        if "mask" in said:
            n_masks += 1
            piece = "{answer}"
        else:
            piece = _piece(said, shared)
        if n_masks and "mask" not in said:
            if "placeholder" in said or "meta" in said:
                raise _refusal(f"{piece} stands behind the mask, where a decoder does not read it before it answers")
            behind.append(blank + piece)
        else:
            written.append(blank + piece)
    if n_masks != 1:
        raise _refusal(f"it has {n_masks} masks, but one was expected")
    note = (f"left away behind the answer: {''.join(behind)!r}",) if "".join(behind).strip() else ()
    return "".join(written), note


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


def _piece(said: Mapping[str, Any], shared: dict[str, str]) -> str:
    """Write a text, a field or vectors as our templates do."""
    if "soft" in said:
        return _soft(said, shared)
    if "text" in said:
        return str(said["text"]).replace("{", "{{").replace("}", "}}")
    kind = next((key for key in ("placeholder", "meta") if key in said), None)
    if kind is None:
        raise _refusal(f"{sorted(map(str, said))} name no place")
    is_cut = said.get("shortenable", kind == "placeholder")
    return f"{{{said[kind]}{':cut' if is_cut else ''}}}{_appended(said.get('post_processing'))}"


def _soft(said: Mapping[str, Any], shared: dict[str, str]) -> str:
    words, n_vectors, number = said["soft"], said.get("duplicate", 1), said.get("soft_id")
    if said.get("same") and n_vectors > 1:
        name = f"same{len(shared) + 1}"
        shared[name] = name
        return " ".join([f"{{soft*1:{name}}}", *[f"{{soft:{name}}}"] * (n_vectors - 1)])
    if number is not None and str(number) in shared:
        return f"{{soft:{shared[str(number)]}}}"
    name = ""
    if number is not None:
        shared[str(number)] = f"id{number}"
        name = f":id{number}"
    return f'{{soft:"{words}"{name}}}' if words else f"{{soft*{n_vectors}{name}}}"


def _appended(code: Any) -> str:
    """Return the text that a `post_processing` appends to its field; "" without one."""
    if code is None:
        return ""
    if isinstance(code, str):
        try:
            code = ast.parse(code, mode="eval").body
        except SyntaxError:
            code = ast.Constant(None)
    body = code.body if isinstance(code, ast.Lambda) else None
    if (
        isinstance(body, ast.BinOp)
        and isinstance(body.op, ast.Add)
        and isinstance(body.left, ast.Name)
        and isinstance(body.right, ast.Constant)
        and isinstance(body.right.value, str)
        and [argument.arg for argument in code.args.args] == [body.left.id]
    ):
        return body.right.value.replace("{", "{{").replace("}", "}}")
    raise _refusal(f"its post_processing is code, {ast.unparse(code)[:60]}, and only appending a text is known")


def _refusal(problem: str) -> UserError:
    return UserError(f"a template of OpenPrompt cannot be converted: {problem}. Write it as docs/language.md says.")
