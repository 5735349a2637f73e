"""How the pictures of a named set lie on the disk: CoOp's layout, its relatives, and torchvision's own.

The places of a card are looked at in turn, and the first whose parts are all there is read. What is missing is named
with the way to get it; nothing is fetched, and no split is made up. This file knows no dataset by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmprompt.data.aircraft import PARTS, read_aircraft
from mmprompt.data.card import DatasetCard, Place
from mmprompt.data.coop_split import read_coop_split
from mmprompt.data.folder import read_folder
from mmprompt.data.imagenet import read_imagenet
from mmprompt.data.splits import Splits
from mmprompt.data.table import read_table
from mmprompt.data.torchvision_layout import read_torchvision
from mmprompt.errors import UserError, bad_file


@dataclass(frozen=True)
class Part:
    """A file or folder that a set needs.

    Args:
        path: where it is looked for.
        is_there: whether it was found.
        get: the command or link that gets it.
    """

    path: Path
    is_there: bool
    get: str


def read_layout(card: DatasetCard, root: Path) -> Splits:
    """All pictures of a set below a root.

    Args:
        card: what its YAML says.
        root: the folder that holds the set's folder.
    Raises:
        UserError: the set's folder or one of its parts is missing, or a file is of another form.
    """
    place = _whole_place(card, root)
    if place is not None:
        return _read(card, root, place)
    official = read_torchvision(card, root, [root / place.folder for place in _places(card)])
    if official is not None:
        return official
    folder = set_folder(card, root)
    if not folder.is_dir():
        where = f"Give the --root that holds a folder {card.folder!r} of {card.name}, or get it: {card.source}"
        raise bad_file(folder, "is not there", where)
    first = next(part for part in find_parts(card, root) if not part.is_there)
    problem = "is not there, and is never made up" if first.path.suffix else "is not there"  # a split, a folder
    raise bad_file(first.path, problem, f"Get it: {first.get}")


def find_parts(card: DatasetCard, root: Path) -> tuple[Part, ...]:
    """The files and folders that a set needs, at the place where most likely it is: those there and those missing.

    Args:
        card: what its YAML says.
        root: the folder that holds the set's folder.
    """
    return _parts(card, root, _whole_place(card, root) or _likely_place(card, root))


def set_folder(card: DatasetCard, root: str | Path) -> Path:
    """The folder of a set, at the place where it is or most likely would be."""
    root = Path(root)
    return root / (_whole_place(card, root) or _likely_place(card, root)).folder


def given_root(card: DatasetCard, root: str | Path | None) -> Path:
    """The root that a user gave.

    Raises:
        UserError: none was given.
    """
    if root is None:
        raise UserError(
            f"no root was given, but a folder {card.folder!r} of {card.name} is looked for below it. "
            f"Use --root, or get it: {card.source}"
        )
    return Path(root)


def _places(card: DatasetCard) -> tuple[Place, ...]:
    return (Place(card.folder, card.images), *card.also)


def _whole_place(card: DatasetCard, root: Path) -> Place | None:
    return next((place for place in _places(card) if all(part.is_there for part in _parts(card, root, place))), None)


def _likely_place(card: DatasetCard, root: Path) -> Place:
    """The place of which most is there, the root itself not counted; the first one of equals."""

    def found(place: Place) -> int:
        return sum(part.is_there and part.path != root for part in _parts(card, root, place))

    return max(_places(card), key=found)


def _parts(card: DatasetCard, root: Path, place: Place) -> tuple[Part, ...]:
    folder = root / place.folder
    own_folder = card.layout in ("csv", "folder")  # these have no folder of pictures of another name
    names = [("", folder, True)] if own_folder else [(card.images, folder / place.images, True)]
    if card.layout == "coop" or (card.layout == "imagenet" and place == _places(card)[0]):
        names.append((card.split, folder / card.split, False))
    if card.layout == "csv":
        names.append((card.csv, folder / card.csv, False))
    if card.layout == "aircraft":
        names += [(name, folder / name, False) for name in PARTS]
    if card.layout == "imagenet":
        sub = [name for name in (card.train_images, card.test_images) if name]
        names += [(card.images, folder / place.images / name, True) for name in sub]
    return tuple(
        Part(path, path.is_dir() if is_folder else path.is_file(), card.get.get(name, card.source))
        for name, path, is_folder in names
    )


def _read(card: DatasetCard, root: Path, place: Place) -> Splits:
    folder = root / place.folder
    if card.layout == "csv":
        return read_table(folder / card.csv)
    if card.layout == "folder":
        return read_folder(folder)
    images = folder / place.images
    if card.layout == "coop":
        return read_coop_split(folder / card.split, images, card.rename, card.rewrite)
    if card.layout == "aircraft":
        return read_aircraft(folder, images)
    return read_imagenet(folder / card.split, images, card.train_images, card.test_images, card.rename)
