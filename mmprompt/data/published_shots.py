"""Published few-shot picks: `shot_K-seed_S_train.jsonl` and `..._val.jsonl`, one image a line.

A line is an object with `_impath`, `_label`, `_domain` and `_classname`. The paths were written on another machine, so
an image is found by the end of its path, in the train and val parts alone: no published list can bring a test image
into training. Nothing here draws.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from mmprompt.data.jsonl import read_objects
from mmprompt.data.splits import Item, Splits
from mmprompt.errors import UserError, bad_file

_ADVICE = "Restore the published file."


def read_published_shots(
    folder: Path, splits: Splits, shots: int, seed: int
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Read the train and val picks of one number of shots and one seed, in the order of the files.

    Args:
        folder: the `split_fewshot` folder of the set.
        splits: all images of the set.
        shots: images a class.
        seed: of the published draw.
    Raises:
        UserError: a file is missing or of another form, or names an image or a label that the set does not have.
    """
    known = {item.path.relative_to(splits.root).as_posix(): item for item in (*splits.train, *splits.val)}
    stem = f"shot_{shots}-seed_{seed}"
    return _read(folder / f"{stem}_train.jsonl", known), _read(folder / f"{stem}_val.jsonl", known)


def _read(path: Path, known: dict[str, Item]) -> tuple[Item, ...]:
    if not path.is_file():
        raise bad_file(path, "is not there", "Get the published lists, or use `protocol='coop'`.")
    picks = []
    for line, record in read_objects(path):
        if not {"_impath", "_label"} <= set(record):
            raise bad_file(path, "is not an object with _impath and _label", _ADVICE, line)
        parts = PurePosixPath(str(record["_impath"]).replace("\\", "/")).parts
        ends = ("/".join(parts[start:]) for start in range(len(parts)))  # the longest first
        item = next((known[end] for end in ends if end in known), None)
        if item is None:
            problem = f"{record['_impath']!r} is neither a train nor a val picture of this set"
            raise bad_file(path, problem, _ADVICE, line)
        label = record["_label"]
        if type(label) is not int or label != item.label:
            raise UserError(f"{path}, line {line}: label {label!r} is {item.label} in this set. {_ADVICE}")
        picks.append(item)
    if not picks:
        raise bad_file(path, "names no picture", _ADVICE)
    return tuple(picks)
