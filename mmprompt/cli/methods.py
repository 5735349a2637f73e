"""`mmprompt methods`: the ways to learn a prompt, and the settings and recipe of each, read off their dataclasses."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any

import tyro

from mmprompt.captioning.methods import METHODS as OF_CAPTIONERS
from mmprompt.classification.methods import METHODS as OF_CLASSIFIERS
from mmprompt.errors import unknown_name
from mmprompt.language.methods import METHODS as OF_LANGUAGE_MODELS
from mmprompt.terminal.output import Json, OnlyJson, Output
from mmprompt.terminal.parser import parse
from mmprompt.training.recipe import Recipe

VERBS = {"train": OF_CLASSIFIERS, "caption train": OF_CAPTIONERS, "llm train": OF_LANGUAGE_MODELS}
METHODS = tuple(dict.fromkeys((name, kind) for methods in VERBS.values() for name, kind in methods.items()))
"""Names and classes; the same name may be a classifier's method and another of a language model."""
GROUPS = ("prompts", "weights", "heads", "test time", "parts that join", "nothing learned")
PUBLISHED = ("optimizer", "lr", "batch_size", "epochs", "momentum", "weight_decay", "warmup_epochs", "warmup_lr")
"""What CoOp's paper and code say of a recipe; shown of a method that has none of its own."""


@dataclass(frozen=True)
class ShowSettings:
    """Which method is shown."""

    name: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="NAME")]]
    """A method, or several joined by +."""
    json: Json = False


def run_list(arguments: Sequence[str], prog: str) -> None:
    """Print every method with its one-line description, those that learn the same kind of thing together."""
    settings = parse(OnlyJson, arguments, prog, "The ways to learn a prompt.")
    output = Output(settings.json)
    listed = []
    for name, kind in sorted(METHODS, key=lambda method: GROUPS.index(method[1].group)):
        verbs = [verb for verb, methods in VERBS.items() if methods.get(name) is kind]
        listed.append({"name": name, "group": kind.group, "verbs": verbs, "summary": summary_of(kind)})
    for group in GROUPS:
        rows = [
            [str(one["name"]), ", ".join(one["verbs"]), str(one["summary"])] for one in listed if one["group"] == group
        ]
        output.table([group, "of", "what it is"], rows)
        output.say()
    output.say("Methods of a classifier that learn at different places combine: --method coop+vpt, --method coop+gda.")
    output.say("A part joins a method: --method coop+knowledge-guided.")
    output.document(listed)


def run_show(arguments: Sequence[str], prog: str) -> None:
    """Print the settings and the recipe of a method."""
    settings = parse(ShowSettings, arguments, prog, "The settings of one method.")
    output = Output(settings.json)
    shown = []
    for name in (part.strip() for part in settings.name.split("+")):
        kinds = [kind for known, kind in METHODS if known == name]
        if not kinds:
            raise unknown_name("method", name, {known for known, _ in METHODS})
        shown += [_show(output, name, kind) for kind in kinds]
    output.document(shown)


def _show(output: Output, name: str, kind: type[Any]) -> dict[str, Any]:
    """Print the settings and the recipe of one method, and give them JSON-ready."""
    options, recipe, joins = options_of(kind), recipe_of(kind), None if kind.learns else f"coop+{name}"
    facts = {"name": name, "group": kind.group, "summary": summary_of(kind), "settings": options}
    output.say(f"{name}: {summary_of(kind)}", "bold")
    rows = [[flag(option["name"]), cell(option["default"]), option["help"]] for option in options]
    output.table(["option", "default", "meaning"], rows)
    output.say()
    if joins:
        alone = "" if kind.group == "parts that join" else "stands alone, or "
        output.say(f"It {alone}joins a method, which keeps its own recipe: --method {joins}.")
    if recipe is None and not joins:
        output.say("It is not trained by steps, so it has no recipe.")
    elif recipe is not None:
        source = f" ({recipe['source']})" if recipe["source"] else ""
        output.say(f"Recipe{source}" + (":" if recipe["is_coops"] else ", where it differs from CoOp's:"))
        helps = {option["name"]: option["help"] for option in options_of(Recipe)}
        rows = [[flag(key), cell(value), helps[key]] for key, value in recipe["settings"].items()]
        output.table(["option", "value", "meaning"], rows)
    output.say()
    return facts | {"recipe": recipe, "joins": joins}


def recipe_of(kind: type[Any]) -> dict[str, Any] | None:
    """Return where the recipe of a method differs from CoOp's, and who published it; CoOp's own where it does not.

    Of a method that is not trained by steps it is None, and so it is of a part, which is trained by another's recipe.
    """
    if not kind.is_trained or not kind.learns:
        return None
    usual = Recipe()
    own = {key: value for key, value in kind.recipe.given.items() if value != getattr(usual, key)}
    source = re.search(r"\((.+?)\)", summary_of(kind if own else OF_CLASSIFIERS["coop"]))
    is_published = source and kind in OF_CLASSIFIERS.values()
    return {
        "source": source[1] if source and is_published else None,
        "is_coops": not own,
        "settings": own or {key: getattr(usual, key) for key in PUBLISHED},
    }


def flag(name: str) -> str:
    """Return a setting as the command line has it."""
    return "--" + name.replace("_", "-")


def cell(value: object) -> str:
    """Return a value as a table shows it."""
    return "" if value is None else str(value)


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
    return [
        {"name": field.name, "default": field.default, "help": texts.get(field.name, "")}
        for field in fields(kind)
        if field.name != "losses"  # objects, which no command line can give
    ]
