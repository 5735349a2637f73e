"""Class names as a text tower reads them: underscores become spaces, and no two are alike.

This file knows neither templates nor tokenizers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from mmprompt.errors import UserError

Rewrite = Literal["none", "lower-case", "year-first", "camel-case", "reversed-path"]


def readable_name(raw: str, rename: Mapping[str, str] | None = None, rewrite: Rewrite = "none") -> str:
    """The class name for a label as a file or folder spells it.

    A name that was rewritten before stays as it is.

    Args:
        raw: the label, such as `wild_cat`.
        rename: names to replace, such as `{"airplanes": "airplane"}`; they are not rewritten.
        rewrite: a rule for all others: `lower-case`; `year-first` (`Audi TT 2011` becomes `2011 Audi TT`);
            `camel-case` (`ApplyLipstick` becomes `Apply Lipstick`); `reversed-path` (`/a/apse/indoor`
            becomes `indoor apse`).
    Returns:
        The name with single spaces for underscores and runs of white space.
    """
    name = rename[raw] if rename and raw in rename else _rewritten(raw, rewrite)
    return " ".join(name.replace("_", " ").split())


def class_index(
    raw_labels: Sequence[str], place: str, rename: Mapping[str, str] | None = None, rewrite: Rewrite = "none"
) -> dict[str, str]:
    """The class name of every label, checked to be different from all others.

    Args:
        raw_labels: different labels as files or folders spell them.
        place: the file or folder, for the error message.
        rename: as in `readable_name`.
        rewrite: likewise.
    Returns:
        `{label: class name}`, in the order of the class names.
    Raises:
        UserError: a name is empty, two labels give one name, or there are fewer than two classes.
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
        found = f"only the class {next(iter(owner))!r}" if owner else "no class"
        raise UserError(f"{place}: holds {found}, but two or more are needed. Add pictures of another class.")
    return {owner[name]: name for name in sorted(owner)}


def _rewritten(raw: str, rewrite: Rewrite) -> str:
    if rewrite == "lower-case":
        return raw.lower()
    if rewrite == "year-first":
        return re.sub(r"^(?!(?:19|20)\d\d )(.+) ((?:19|20)\d\d)$", r"\2 \1", raw)
    if rewrite == "camel-case":
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", raw)
    if rewrite == "reversed-path" and "/" in raw:
        words = raw.strip("/").split("/")
        return " ".join(
            reversed(words[1:] if len(words[0]) == 1 else words)
        )  # SUN397 files its classes by first letter
    return raw


def shortened(names: Sequence[str], limit: int = 5) -> str:
    """A list of names in one line, cut after `limit` with the number left out."""
    listed = ", ".join(names[:limit])
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit} more"
