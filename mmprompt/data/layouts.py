"""How the images of a named set lie on the disk: CoOp's layout, its relatives, and torchvision's own.

The places of a card are looked at in turn, and the first whose parts are all there is read. What is missing is named
with the way to get it; nothing is fetched, and no split is made up. This file knows no dataset by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from mmprompt.data.card import DatasetCard, Place
from mmprompt.data.class_names import readable_names
from mmprompt.data.coop_split import read_coop_split
from mmprompt.data.folder import read_folder
from mmprompt.data.imagenet import read_imagenet
from mmprompt.data.jsonl import text_lines
from mmprompt.data.splits import SPLITS, Item, Splits
from mmprompt.data.table import read_table
from mmprompt.data.torchvision_layout import read_torchvision
from mmprompt.errors import UserError, bad_file, unknown_name
from mmprompt.files import SafeRoot

VARIANTS = "variants.txt"
AIRCRAFT_LISTS = (VARIANTS, *(f"images_variant_{split}.txt" for split in SPLITS))


@dataclass(frozen=True)
class Part:
    """A file or folder that a set needs: where it is looked for, and the command or link that gets it."""

    path: Path
    is_there: bool
    get: str


def read_layout(card: DatasetCard, root: Path) -> Splits:
    """Read all images of a set.

    Args:
        card: what its YAML says.
        root: the folder that holds the set's folder.
    Raises:
        UserError: the set's folder or one of its parts is missing, or a file is of another form.
    """
    place = _place(card, root)
    missing = [part for part in _parts(card, root, place) if not part.is_there]
    if not missing:
        return _read(card, root / place.folder, place.images)
    official = read_torchvision(card, root, [root / place.folder for place in _places(card)])
    if official is not None:
        return official
    folder = root / place.folder
    if not folder.is_dir():
        where = f"Give the `root` that holds a folder {card.folder!r} of {card.name}, or get it: {card.source}"
        raise bad_file(folder, "is not there", where)
    problem = "is not there, and is never made up" if missing[0].path.suffix else "is not there"  # a split, a folder
    raise bad_file(missing[0].path, problem, f"Get it: {missing[0].get}")


def find_parts(card: DatasetCard, root: Path) -> tuple[Part, ...]:
    """Return the files and folders that a set needs, those there and those missing, at its most likely place."""
    return _parts(card, root, _place(card, root))


def set_folder(card: DatasetCard, root: str | Path) -> Path:
    """Return the folder of a set, at the place where it is or most likely would be."""
    return Path(root) / _place(card, Path(root)).folder


def given_root(card: DatasetCard, root: str | Path | None) -> Path:
    """Return the root that a user gave.

    Raises:
        UserError: none was given.
    """
    if root is None:
        raise UserError(
            f"no root was given, but a folder {card.folder!r} of {card.name} is looked for below it. "
            f"Give `root`, or get it: {card.source}"
        )
    return Path(root)


def _places(card: DatasetCard) -> tuple[Place, ...]:
    return (Place(card.folder, card.images), *card.also)


def _place(card: DatasetCard, root: Path) -> Place:
    """Return the first place whose parts are all there, else that with most of them, the root itself not counted."""

    def n_there(place: Place) -> float:
        parts = _parts(card, root, place)
        is_whole = all(part.is_there for part in parts)
        return math.inf if is_whole else sum(part.is_there and part.path != root for part in parts)

    return max(_places(card), key=n_there)


def _parts(card: DatasetCard, root: Path, place: Place) -> tuple[Part, ...]:
    folder = root / place.folder
    own_folder = card.layout in ("csv", "folder")  # these have no folder of images of another name
    names = [("", folder, True)] if own_folder else [(card.images, folder / place.images, True)]
    if card.layout == "coop" or (card.layout == "imagenet" and place == _places(card)[0]):
        names.append((card.split, folder / card.split, False))
    if card.layout == "csv":
        names.append((card.csv, folder / card.csv, False))
    if card.layout == "aircraft":
        names += [(name, folder / name, False) for name in AIRCRAFT_LISTS]
    if card.layout == "imagenet":
        below = [name for name in (card.train_images, card.test_images) if name]
        names += [(card.images, folder / place.images / name, True) for name in below]
    return tuple(
        Part(path, path.is_dir() if is_folder else path.is_file(), card.get.get(name, card.source))
        for name, path, is_folder in names
    )


def _read(card: DatasetCard, folder: Path, images: str) -> Splits:
    if card.layout == "csv":
        return read_table(folder / card.csv)
    if card.layout == "folder":
        return read_folder(folder)
    if card.layout == "coop":
        return read_coop_split(folder / card.split, folder / images, card.rename, card.rewrite)
    if card.layout == "aircraft":
        return _read_aircraft(folder, folder / images)
    return read_imagenet(folder / card.split, folder / images, card.train_images, card.test_images, card.rename)


def _read_aircraft(folder: Path, images: Path) -> Splits:
    """Read FGVC-Aircraft: `variants.txt` gives the labels by line, `images_variant_*.txt` the official parts."""
    raw_names = [line.strip() for line in text_lines(folder / VARIANTS) if line.strip()]
    if len(set(raw_names)) < len(raw_names):
        raise bad_file(folder / VARIANTS, "names a variant twice", "Restore the published file.")
    label_of = {name: label for label, name in enumerate(raw_names)}
    inside = SafeRoot(images.resolve())
    parts: dict[str, list[Item]] = {name: [] for name in AIRCRAFT_LISTS[1:]}
    for name, items in parts.items():
        path = folder / name
        for number, line in enumerate(text_lines(path), start=1):
            image, _, variant = line.strip().partition(" ")
            if image and variant not in label_of:
                problem = str(unknown_name("variant", variant, label_of))
                raise bad_file(path, problem, "Restore the published file.", number)
            if image:
                items.append(Item(inside.join(f"{image}.jpg"), label_of[variant]))
    train, val, test = map(tuple, parts.values())
    return Splits(inside.root, readable_names(raw_names, str(folder / VARIANTS)), train, val, test)
