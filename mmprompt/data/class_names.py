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
    """Return `readable_name` of every label, in their order; `place` is the file or folder, for the error message.

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
        held = f"only the class {next(iter(owner))!r}" if owner else "no class"
        raise UserError(f"{place}: holds {held}, but two or more are needed. Add pictures of another class.")
    return tuple(owner)


def shortened(names: Sequence[str], limit: int = 5) -> str:
    """Return a list of names in one line, cut after `limit` with the number left out."""
    listed = ", ".join(names[:limit])
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit} more"
