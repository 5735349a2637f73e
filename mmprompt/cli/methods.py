"""`mmprompt methods`: the ways to learn a prompt, and the settings of each, read off their dataclasses."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any

import tyro

from mmprompt.captioning.methods import METHODS as OF_CAPTIONERS
from mmprompt.classification.methods import METHODS as OF_CLASSIFIERS
from mmprompt.errors import unknown_name
from mmprompt.language.methods import METHODS as OF_LANGUAGE_MODELS
from mmprompt.terminal.output import JSON_HELP, Output
from mmprompt.terminal.parser import parse

METHODS = OF_CLASSIFIERS | OF_CAPTIONERS | OF_LANGUAGE_MODELS
VERBS = {"train": OF_CLASSIFIERS, "caption train": OF_CAPTIONERS, "llm train": OF_LANGUAGE_MODELS}


@dataclass(frozen=True)
class ListSettings:
    """How the list is printed."""

    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False


@dataclass(frozen=True)
class ShowSettings:
    """Which method is shown."""

    name: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="NAME")]]
    """A method, or several joined by +."""
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False


def run_list(arguments: Sequence[str], prog: str) -> None:
    """Print every method with its one-line description."""
    settings = parse(ListSettings, arguments, prog, "The ways to learn a prompt.")
    output = Output(settings.json)
    listed = []
    for name, kind in METHODS.items():
        verbs = [verb for verb, methods in VERBS.items() if name in methods]
        listed.append({"name": name, "verbs": verbs, "summary": summary_of(kind)})
    rows = [[str(one["name"]), ", ".join(one["verbs"]), str(one["summary"])] for one in listed]
    output.table(["name", "of", "what it is"], rows)
    output.say()
    output.say("Methods that learn at different places combine: --method coop+vpt, or prompt-tuning+lora of llm train.")
    output.document(listed)


def run_show(arguments: Sequence[str], prog: str) -> None:
    """Print the settings of a method."""
    settings = parse(ShowSettings, arguments, prog, "The settings of one method.")
    output = Output(settings.json)
    shown = []
    for name in (part.strip() for part in settings.name.split("+")):
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
        kind = METHODS[name]
        options = options_of(kind)
        shown.append({"name": name, "summary": summary_of(kind), "settings": options})
        output.say(f"{name}: {summary_of(kind)}", "bold")
        flags = ["--" + option["name"].replace("_", "-") for option in options]
        defaults = ["" if option["default"] is None else str(option["default"]) for option in options]
        rows = list(zip(flags, defaults, (option["help"] for option in options), strict=True))
        output.table(["option", "default", "meaning"], rows)
        output.say()
    output.document(shown)


def summary_of(kind: type) -> str:
    """Return the first sentence of a class's docstring."""
    return (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")


def options_of(kind: type) -> list[dict[str, Any]]:
    """Return name, default and help of every field of a dataclass; the help is the text under the field."""
    texts: dict[str, str] = {}
    for ancestor in reversed([each for each in kind.__mro__ if is_dataclass(each)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(ancestor))).body[0]
        members = body.body if isinstance(body, ast.ClassDef) else []
        for member, after in itertools.pairwise(members):
            is_field = isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name)
            if is_field and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                texts[ast.unparse(member.target)] = " ".join(str(after.value.value).split())  # type: ignore[attr-defined]
    return [{"name": field.name, "default": field.default, "help": texts.get(field.name, "")} for field in fields(kind)]
