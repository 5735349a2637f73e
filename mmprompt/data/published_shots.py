"""Published few-shot picks: `shot_K-seed_S_train.jsonl` and `..._val.jsonl`, one picture a line.

A line is an object with `_impath`, `_label`, `_domain` and `_classname`. The paths were written on another machine, so
a picture is found by the end of its path, in the train and val parts alone: no published list can bring a test picture
into training. Nothing here draws.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from mmprompt.data.splits import Item, Splits
from mmprompt.errors import UserError, bad_file
from mmprompt.files import read_bytes

_ADVICE = "Restore the published file."


def read_published_shots(
    folder: Path, splits: Splits, shots: int, seed: int
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """The train and val picks of one number of shots and one seed, in the order of the files.

    Args:
        folder: the `split_fewshot` folder of the set.
        splits: all pictures of the set.
        shots: pictures a class.
        seed: of the published draw.
    Raises:
        UserError: a file is missing or of another form, or names a picture or a label that the set does not have.
    """
    known = {item.path.relative_to(splits.root).as_posix(): item for item in (*splits.train, *splits.val)}
    stem = f"shot_{shots}-seed_{seed}"
    return _read(folder / f"{stem}_train.jsonl", known), _read(folder / f"{stem}_val.jsonl", known)


def _read(path: Path, known: dict[str, Item]) -> tuple[Item, ...]:
    if not path.is_file():
        raise bad_file(path, "is not there", "Get the published lists, or use --protocol coop.")
    picks = []
    for line, text in enumerate(read_bytes(path).decode("utf-8-sig", "replace").splitlines(), start=1):
        if text.strip():
            picks.append(_pick(text, known, path, line))
    if not picks:
        raise bad_file(path, "names no picture", _ADVICE)
    return tuple(picks)


def _pick(text: str, known: dict[str, Item], path: Path, line: int) -> Item:
    try:
        record = json.loads(text)
        place, label = str(record["_impath"]), record["_label"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise bad_file(path, "is not an object with _impath and _label", _ADVICE, line) from None
    item = next((known[end] for end in _ends(place) if end in known), None)
    if item is None:
        raise bad_file(path, f"{place!r} is neither a train nor a val picture of this set", _ADVICE, line)
    if type(label) is not int or label != item.label:
        raise UserError(f"{path}, line {line}: label {label!r} is {item.label} in this set. {_ADVICE}")
    return item


def _ends(place: str) -> Iterable[str]:
    """The path and its ends, the longest first."""
    parts = PurePosixPath(place.replace("\\", "/")).parts
    return ("/".join(parts[start:]) for start in range(len(parts)))
