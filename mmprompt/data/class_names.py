"""Class names as a text tower reads them: underscores become spaces, and no two are alike.

This file knows neither templates nor tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmprompt.errors import UserError


def readable_name(raw: str, rename: Mapping[str, str] | None = None) -> str:
    """The class name for a label as a file or folder spells it.

    Args:
        raw: the label, such as `wild_cat`.
        rename: names to replace before anything else, such as `{"airplanes": "airplane"}`.
    Returns:
        The name with single spaces for underscores and runs of white space.
    """
    return " ".join((rename or {}).get(raw, raw).replace("_", " ").split())


def class_index(raw_labels: Sequence[str], place: str, rename: Mapping[str, str] | None = None) -> dict[str, str]:
    """The class name of every label, checked to be different from all others.

    Args:
        raw_labels: different labels as files or folders spell them.
        place: the file or folder, for the error message.
        rename: as in `readable_name`.
    Returns:
        `{label: class name}`, in the order of the class names.
    Raises:
        UserError: a name is empty, two labels give one name, or there are fewer than two classes.
    """
    owner: dict[str, str] = {}
    for raw in raw_labels:
        name = readable_name(raw, rename)
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


def shortened(names: Sequence[str], limit: int = 5) -> str:
    """A list of names in one line, cut after `limit` with the number left out."""
    listed = ", ".join(names[:limit])
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit} more"
