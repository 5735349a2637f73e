"""Class names as a text tower reads them, and the sentences around them, with one `{}` where the name goes.

Underscores become spaces, and no two names are alike. This file knows no tokenizer, nor which datasets use which
sentence; their YAML says it.
"""

from __future__ import annotations

import importlib.util
import re
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mmprompt.errors import UserError, bad_value

Rewrite = Literal["none", "lower-case", "year-first", "camel-case", "reversed-path"]

ENSEMBLES = {
    "open_clip:OPENAI_IMAGENET_TEMPLATES": "OPENAI_IMAGENET_TEMPLATES",  # the 80 of CLIP's ImageNet notebook
    "open_clip:SIMPLE_IMAGENET_TEMPLATES": "SIMPLE_IMAGENET_TEMPLATES",  # the 7 that it selects
}


def readable_name(raw: str, rename: Mapping[str, str] | None = None, rewrite: Rewrite = "none") -> str:
    """Return the class name for a label as a file or folder spells it, with single spaces for underscores.

    A name that was rewritten before stays as it is.

    Args:
        raw: the label, such as `wild_cat`.
        rename: names to replace, such as `{"airplanes": "airplane"}`; they are not rewritten.
        rewrite: a rule for all others: `lower-case`; `year-first` (`Audi TT 2011` becomes `2011 Audi TT`);
            `camel-case` (`ApplyLipstick` becomes `Apply Lipstick`); `reversed-path` (`/a/apse/indoor`
            becomes `indoor apse`).
    """
    name = raw
    if rename and raw in rename:
        name = rename[raw]
    elif rewrite == "lower-case":
        name = raw.lower()
    elif rewrite == "year-first":
        name = re.sub(r"^(?!(?:19|20)\d\d )(.+) ((?:19|20)\d\d)$", r"\2 \1", raw)
    elif rewrite == "camel-case":
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", raw)
    elif rewrite == "reversed-path" and "/" in raw:
        words = raw.strip("/").split("/")  # SUN397 files its classes by first letter
        name = " ".join(reversed(words[1:] if len(words[0]) == 1 else words))
    return " ".join(name.replace("_", " ").split())


def readable_names(
    raw_labels: Sequence[str], place: str, rename: Mapping[str, str] | None = None, rewrite: Rewrite = "none"
) -> tuple[str, ...]:
    """Return `readable_name` of every label, in their order; refuse empty and equal names and fewer than two classes.

    `place` is the file or folder, for the error message.
    """
    owner: dict[str, str] = {}
    for raw in raw_labels:
        name = readable_name(raw, rename, rewrite)
        if not name:
            raise UserError(f"{place}: the class name {raw!r} is empty. Give every class a name.")
        if name in owner:
            raise UserError(
                f"{place}: {owner[name]!r} and {raw!r} are both the class {name!r}. Rename one, or merge the two."
            )
        owner[name] = raw
    if len(owner) < 2:
        held = f"only the class {next(iter(owner))!r}" if owner else "no class"
        raise UserError(f"{place}: holds {held}, but two or more are needed. Add images of another class.")
    return tuple(owner)


def shortened(names: Sequence[str], limit: int = 5) -> str:
    """Return a list of names in one line, cut after `limit` with the number left out."""
    listed = ", ".join(names[:limit])
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit} more"


def check_template(template: str) -> str:
    """Return a template; refuse one that does not hold `{}` exactly once, or holds other braces."""
    if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
        expected = "exactly one {} is needed, where the class name goes"
        raise bad_value("template", repr(template), expected, 'Write "a photo of a {}."')
    return template


def check_templates(templates: Sequence[str]) -> None:
    """Refuse an ensemble with a member that is neither a sentence with one `{}` nor the name of an ensemble."""
    for template in templates:
        if template not in ENSEMBLES:
            check_template(template)


def expand_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return the sentences of an ensemble after checking it, with those that are named looked up in open_clip."""
    check_templates(templates)
    sentences: list[str] = []
    for template in templates:
        if template in ENSEMBLES:
            sentences += [fill_in("{}") for fill_in in open_clip_lists()[ENSEMBLES[template]]]
        else:
            sentences.append(template)
    return tuple(sentences)


def open_clip_lists() -> dict[str, Any]:
    """Return open_clip's lists of class names and templates by name, without importing open_clip, which loads torch."""
    package = importlib.util.find_spec("open_clip")
    assert package is not None, "open_clip is a dependency"
    return runpy.run_path(str(Path(package.origin or "").with_name("zero_shot_metadata.py")))
