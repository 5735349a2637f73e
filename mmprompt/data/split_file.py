"""Split files in CoOp's form, read and written: an object of train, val and test, each a list of [path, label, name].

A published split is read, never made: a new random one would be another dataset under the same name. One's own images
are divided once, by a seed: every class gives the same shares, at least one image of it stays for training, and a file
that is there is never written over. This file knows no dataset by name.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Lt

from mmprompt.data.class_names import Rewrite, readable_names, shortened
from mmprompt.data.splits import SPLITS, Item, Splits, by_label
from mmprompt.errors import UserError, bad_file, bad_value
from mmprompt.files import SafeRoot, read_json, write_json
from mmprompt.settings import check
from mmprompt.version import __version__

MADE_BY = "made_by"
MIN_FOR_VAL = 3

_ADVICE = "Restore the published split file."


def read_coop_split(
    path: Path, images: Path, rename: Mapping[str, str] | None = None, rewrite: Rewrite = "none"
) -> Splits:
    """Read a split file of the CoOp layout (`split_zhou_*.json`), or one that `mmprompt data split` wrote.

    Its paths are relative to the folder `images`; whether they exist is not looked at. Names are changed as by
    `readable_name`.
    """
    content = read_json(path)
    if not isinstance(content, dict) or set(content) - {MADE_BY} != set(SPLITS):
        raise bad_file(path, "is not one object of train, val and test", _ADVICE)
    inside = SafeRoot(images.resolve())
    raw_names: dict[int, str] = {}
    novel = _novel(content.get(MADE_BY), path)
    train, val, test = (_items(content[split], inside, f"{path}, {split}", raw_names, novel) for split in SPLITS)
    if sorted(raw_names) != list(range(len(raw_names))):
        raise bad_file(path, f"has labels that are not 0 to {len(raw_names) - 1} without a gap", _ADVICE)
    ordered = [raw_names[label] for label in range(len(raw_names))]
    if len(set(ordered)) < len(ordered):
        raise bad_file(path, "gives two labels the same name", _ADVICE)
    class_names = readable_names(ordered, str(path), rename, rewrite)
    trained = {item.label for item in train}
    untrained = [name for label, name in enumerate(class_names) if train and label not in trained]
    if untrained:
        raise bad_file(path, f"has no image to train on for {shortened(untrained)}", _ADVICE)
    if not test:
        raise bad_file(path, "has no test images", _ADVICE)
    seen = {os.path.normpath(item.path) for item in (*train, *val)}
    shared = [item.path.name for item in test if os.path.normpath(item.path) in seen]  # a published file is kept so
    notes = [f"Test images that are in train or val too, {len(shared)}: {shortened(shared, limit=3)}."]
    return Splits(inside.root, class_names, train, val, test, tuple(notes if shared else ()))


def _novel(made_by: Any, path: Path) -> frozenset[str]:
    """Return the images that a file of ours says are novel, by their paths in it."""
    novel = made_by.get("novel", []) if isinstance(made_by, dict) else []
    if not isinstance(novel, list) or not all(isinstance(one, str) for one in novel):
        raise bad_file(path, f"has no list of paths as novel in {MADE_BY}", "Make the split again.")
    return frozenset(novel)


def _items(
    records: Any, inside: SafeRoot, place: str, raw_names: dict[int, str], novel: frozenset[str]
) -> tuple[Item, ...]:
    """Return the images of one part, and note the name that it gives each label."""
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
            items.append(Item(inside.join(relative), label, relative in novel))
        except UserError as error:
            raise UserError(f"{place}, entry {index}: {error}") from None
    return tuple(items)


def divide(splits: Splits, val: float = 0.1, test: float = 0.2, seed: int = 1) -> Splits:
    """Divide images into train, val and test, the same shares of every class; a part that is there already is kept.

    The division depends on the relative paths, the shares and the seed alone. `val` takes of classes with three images
    or more, `test` at least one image of a class with two or more.
    """
    for name, share in (("val", val), ("test", test)):
        check(name, share, Annotated[float, Ge(0), Lt(1)], "Use `val=0.1` and `test=0.2`.")
    if val + test >= 1:
        expected = "less than 1 was expected, so that training keeps a part"
        raise bad_value("val + test", val + test, expected, "Use less.")
    val, test = (0.0 if splits.val else val), (0.0 if splits.test else test)
    if splits.test and val == 0:
        raise UserError(
            f"{splits.root}: nothing is left to divide, for the parts are there already. Train on it as it is."
        )
    if test == 0 and not splits.test:
        raise bad_value("test", test, "there is no test part yet, and a split needs one", "Use `test=0.2`.")
    parts: dict[str, list[Item]] = {"train": [], "val": list(splits.val), "test": list(splits.test)}
    for label, items in sorted(by_label(splits.train).items()):
        ordered = sorted(items, key=lambda item: item.path.relative_to(splits.root).as_posix())
        random.Random(f"split {seed} {splits.class_names[label]}").shuffle(ordered)
        n_test = _share(test, len(ordered), 2)
        n_val = min(_share(val, len(ordered), MIN_FOR_VAL), len(ordered) - n_test - 1)
        parts["test"] += ordered[:n_test]
        parts["val"] += ordered[n_test : n_test + n_val]
        parts["train"] += ordered[n_test + n_val :]
    if not parts["test"]:
        raise UserError(f"{splits.root}: no class has two images, so none can be tested. Add images.")
    train, held, tested = (tuple(parts[split]) for split in SPLITS)
    return Splits(splits.root, splits.class_names, train, held, tested, splits.notes)


def write_split(path: Path, splits: Splits, made_by: dict[str, object]) -> None:
    """Write a new split file, `*.json`, that `read_coop_split` reads; `made_by` tells its finder seed and shares."""
    if path.suffix.lower() != ".json":
        raise bad_file(path, "does not end in .json", "Give a name that does.")
    if path.exists():
        raise bad_file(path, "is there already, and a split is never written over", "Give another `out`.")
    if not path.parent.is_dir():
        raise bad_file(path.parent, "is not a folder", "Give an `out` in a folder that is there.")
    all_items = [item for split in SPLITS for item in splits.items(split)]
    novel = [item.path.relative_to(splits.root).as_posix() for item in all_items if item.novel]
    told = {"novel": novel} if novel else {}  # CoOp's form has no place for it
    content: dict[str, object] = {MADE_BY: {"mmprompt": __version__, **made_by, **told}}
    for split in SPLITS:
        content[split] = [
            [item.path.relative_to(splits.root).as_posix(), item.label, splits.class_names[item.label]]
            for item in splits.items(split)
        ]
    write_json(path, content)


def _share(share: float, n: int, least: int) -> int:
    """Return how many of n images a share is: at least one where there are `least`, and never all."""
    return min(max(1, round(share * n)), n - 1) if share > 0 and n >= least else 0
