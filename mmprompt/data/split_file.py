"""Split files of one's own images: a seeded division, written once in CoOp's form, with what made it.

Every class gives the same shares, and at least one image of it stays for training. The division depends on the
relative paths, the shares and the seed alone. A file that is there is never written over: another split under the
same name would be another dataset.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Lt

from mmprompt.data.coop_split import MADE_BY
from mmprompt.data.splits import SPLITS, Item, Splits, by_label
from mmprompt.errors import UserError, bad_file, bad_value
from mmprompt.files import write_json
from mmprompt.settings import check
from mmprompt.version import __version__

MIN_FOR_VAL = 3


def divide(splits: Splits, val: float = 0.1, test: float = 0.2, seed: int = 1) -> Splits:
    """Divide images into train, val and test: the same shares of every class.

    A part that is there already is kept as it is, and only what is missing is taken from train.

    Args:
        splits: as `read_folder` or `read_table` give them without holding out.
        val: share of each class, 0 or more, that goes to val; only of classes with three images or more.
        test: likewise for test, at least one image of a class with two or more.
        seed: of the division.
    Raises:
        UserError: the shares leave nothing to train on, all parts are there, or no class has two images.
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
        raise UserError(f"{splits.root}: no class has two pictures, so none can be tested. Add pictures.")
    train, held, tested = (tuple(parts[split]) for split in SPLITS)
    return Splits(splits.root, splits.class_names, train, held, tested, splits.notes)


def write_split(path: Path, splits: Splits, made_by: dict[str, object]) -> None:
    """Write a split file that `read_coop_split` reads.

    Args:
        path: ends in `.json`; must not exist.
        splits: divided.
        made_by: seed and shares, for who finds the file later.
    Raises:
        UserError: the file exists, has another ending, or cannot be written.
    """
    if path.suffix.lower() != ".json":
        raise bad_file(path, "does not end in .json", "Give a name that does.")
    if path.exists():
        raise bad_file(path, "is there already, and a split is never written over", "Give another `out`.")
    if not path.parent.is_dir():
        raise bad_file(path.parent, "is not a folder", "Give an `out` in a folder that is there.")
    content: dict[str, object] = {MADE_BY: {"mmprompt": __version__, **made_by}}
    for split in SPLITS:
        content[split] = [
            [item.path.relative_to(splits.root).as_posix(), item.label, splits.class_names[item.label]]
            for item in splits.items(split)
        ]
    write_json(path, content)


def _share(share: float, n: int, least: int) -> int:
    """Return how many of n images a share is: at least one where there are `least`, and never all."""
    return min(max(1, round(share * n)), n - 1) if share > 0 and n >= least else 0
