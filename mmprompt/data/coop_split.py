"""The split files of CoOp: one JSON object of train, val and test, each a list of [path, label, name].

A split file is read, never made: a new random split would be another dataset under the same name.
This file knows no dataset by name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmprompt.data.class_names import Rewrite, readable_names, shortened
from mmprompt.data.splits import SPLITS, Item, Splits
from mmprompt.errors import UserError, bad_file
from mmprompt.files import SafeRoot, read_json

MADE_BY = "made_by"

_ADVICE = "Restore the published split file."


def read_coop_split(
    path: Path, images: Path, rename: Mapping[str, str] | None = None, rewrite: Rewrite = "none"
) -> Splits:
    """Read a split file of the CoOp layout (`split_zhou_*.json`), or one that `mmprompt data split` wrote.

    Args:
        path: the JSON file.
        images: the folder that its paths are relative to. Whether they exist is not looked at.
        rename: class names to replace, as the file spells them.
        rewrite: the rule for all other class names, as for `readable_name`.
    Raises:
        UserError: the file is missing or another form, labels have gaps, names clash, a class that is tested is
            never trained on, or none is tested.
    """
    content = read_json(path)
    if not isinstance(content, dict) or set(content) - {MADE_BY} != set(SPLITS):
        raise bad_file(path, "is not one object of train, val and test", _ADVICE)
    inside = SafeRoot(images.resolve())
    raw_names: dict[int, str] = {}
    train, val, test = (_items(content[split], inside, f"{path}, {split}", raw_names) for split in SPLITS)
    if sorted(raw_names) != list(range(len(raw_names))):
        raise bad_file(path, f"has labels that are not 0 to {len(raw_names) - 1} without a gap", _ADVICE)
    ordered = [raw_names[label] for label in range(len(raw_names))]
    if len(set(ordered)) < len(ordered):
        raise bad_file(path, "gives two labels the same name", _ADVICE)
    class_names = readable_names(ordered, str(path), rename, rewrite)
    trained = {item.label for item in train}
    untrained = [name for label, name in enumerate(class_names) if train and label not in trained]
    if untrained:
        raise bad_file(path, f"has no picture to train on for {shortened(untrained)}", _ADVICE)
    if not test:
        raise bad_file(path, "has no test pictures", _ADVICE)
    seen = {os.path.normpath(item.path) for item in (*train, *val)}
    shared = [item.path.name for item in test if os.path.normpath(item.path) in seen]  # a published file is kept so
    notes = [f"Test pictures that are in train or val too, {len(shared)}: {shortened(shared, limit=3)}."]
    return Splits(inside.root, class_names, train, val, test, tuple(notes if shared else ()))


def _items(records: Any, inside: SafeRoot, place: str, raw_names: dict[int, str]) -> tuple[Item, ...]:
    if not isinstance(records, list):
        raise UserError(f"{place}: is not a list. {_ADVICE}")
    items = []
    for index, record in enumerate(records):
        match record:
            case [str(relative), int(label), str(name)] if not isinstance(label, bool):
                pass
            case _:
                raise UserError(f"{place}, entry {index}: is not [path, whole number, class name]. {_ADVICE}")
        if raw_names.setdefault(label, name) != name:
            raise UserError(
                f"{place}, entry {index}: label {label} is {name!r} here, {raw_names[label]!r} before. {_ADVICE}"
            )
        try:
            items.append(Item(inside.join(relative), label))
        except UserError as error:
            raise UserError(f"{place}, entry {index}: {error}") from None
    return tuple(items)
