"""How the images of a named set lie on the disk: CoOp's layout, its relatives, ImageNet's, and torchvision's own.

The places of a card are looked at in turn, and the first whose parts are all there is read. What is missing is named
with the way to get it; nothing is fetched, and no split is made up. This file knows no dataset by name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprompt.data.card import DatasetCard, Place
from mmprompt.data.class_names import open_clip_lists, readable_names, shortened
from mmprompt.data.folder import read_folder, read_table
from mmprompt.data.images import IMAGE_SUFFIXES
from mmprompt.data.split_file import read_coop_split
from mmprompt.data.splits import SPLITS, Item, SplitName, Splits
from mmprompt.errors import UserError, bad_file, unknown_name
from mmprompt.files import SafeRoot, text_lines

VARIANTS = "variants.txt"
AIRCRAFT_LISTS = (VARIANTS, *(f"images_variant_{split}.txt" for split in SPLITS))

NAMES_OF_OPEN_CLIP = "classnames.txt is not there, so the class names are those that open_clip ships."
NO_VAL = (
    "There is no validation part: the part that the papers test on is never used to choose anything. Images of a "
    "class are taken in the order of their names, so a seed picks others than in published runs."
)

TORCHVISION_FOLDERS = {
    "DTD": "dtd/dtd",
    "Flowers102": "flowers-102",
    "Food101": "food-101",
    "OxfordIIITPet": "oxford-iiit-pet",
    "StanfordCars": "stanford_cars",
}
TORCHVISION_HAS_VAL = ("DTD", "Flowers102")

_AGAIN = "Get the set again."

Listed = tuple[list[str], dict[SplitName, list[tuple[Path, int]]]]
"""Class names by label, and the images of each part with their labels."""


@dataclass(frozen=True)
class Part:
    """A file or folder that a set needs: where it is looked for, and the command or link that gets it."""

    path: Path
    is_there: bool
    get: str


def read_layout(card: DatasetCard, root: Path) -> Splits:
    """Read all images of a set below the root that holds its folder; refuse one that is missing or not whole."""
    place = _place(card, root)
    folder, images = root / place.folder, root / place.folder / place.images
    missing = [part for part in _parts(card, root, place) if not part.is_there]
    if missing:
        official = _read_torchvision(card, root)
        if official is not None:
            return official
        if not folder.is_dir():
            where = f"Give the `root` that holds a folder {card.folder!r} of {card.name}, or get it: {card.source}"
            raise bad_file(folder, "is not there", where)
        # a split, a folder
        problem = "is not there, and is never made up" if missing[0].path.suffix else "is not there"
        raise bad_file(missing[0].path, problem, f"Get it: {missing[0].get}")
    if card.layout == "csv":
        return read_table(folder / card.csv, rename=card.rename, rewrite=card.rewrite)
    if card.layout == "folder":
        return read_folder(folder, rename=card.rename, rewrite=card.rewrite)
    if card.layout == "coop":
        return read_coop_split(folder / card.split, images, card.rename, card.rewrite)
    read = _read_aircraft if card.layout == "aircraft" else _read_imagenet
    return read(card, folder, images)


def find_parts(card: DatasetCard, root: Path) -> tuple[Part, ...]:
    """Return the files and folders that a set needs, those there and those missing, at its most likely place."""
    return _parts(card, root, _place(card, root))


def set_folder(card: DatasetCard, root: str | Path) -> Path:
    """Return the folder of a set, at the place where it is or most likely would be."""
    return Path(root) / _place(card, Path(root)).folder


def given_root(card: DatasetCard, root: str | Path | None) -> Path:
    """Return the root that a user gave; refuse none."""
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


def _read_aircraft(card: DatasetCard, folder: Path, images: Path) -> Splits:
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
    class_names = readable_names(raw_names, str(folder / VARIANTS), card.rename, card.rewrite)
    return Splits(inside.root, class_names, train, val, test)


def _read_imagenet(card: DatasetCard, folder: Path, images: Path) -> Splits:
    """Read ImageNet or a relative: class folders in one or two parts, and `classnames.txt` for the names.

    A label is the rank of the class folder among those that are there, sorted, so that a relative with 200 of the
    1,000 classes has labels 0 to 199 and only those names. Folders named by a number mean the line of
    `classnames.txt`. Within a class images are sorted by name: the published code took them in the order of the disk,
    which no other machine has, so its picks cannot be drawn again.
    """
    names_file, train = folder / card.split, card.train_images
    tested = _class_folders(images / card.test_images)
    trained = _class_folders(images / train) if train else []
    notes = (NO_VAL,) if train else ()
    if names_file.is_file():
        name_of = _imagenet_names(names_file)
    else:
        names = open_clip_lists()["IMAGENET_CLASSNAMES"]
        if len(tested) != len(names):
            problem = f"has {len(tested)} class folders, but without classnames.txt all {len(names)} are needed"
            raise bad_file(images / card.test_images, problem, "Get classnames.txt.")
        name_of = {folder.name: name for folder, name in zip(tested, names, strict=True)}
        notes = (*notes, NAMES_OF_OPEN_CLIP)
    wnids = [_wnid(folder, name_of, names_file) for folder in tested]
    odd = sorted({folder.name for folder in trained} ^ {folder.name for folder in tested})
    if train and odd:
        raise bad_file(images, f"train and test differ in the classes {shortened(odd)}", "Restore the folders.")
    class_names = readable_names(wnids, str(names_file), name_of | card.rename)
    return Splits(images, class_names, _images_of(trained), (), _images_of(tested), notes)


def _imagenet_names(path: Path) -> dict[str, str]:
    """Return class names by folder, from lines of a folder's name, a blank and the class name."""
    names: dict[str, str] = {}
    for number, line in enumerate(text_lines(path), start=1):
        folder, _, name = line.strip().partition(" ")
        if folder and (not name or folder in names):
            problem = "has no class name" if not name else f"names the folder {folder} again"
            raise bad_file(path, problem, "Restore the published file.", number)
        if folder:
            names[folder] = name
    return names


def _class_folders(parent: Path) -> list[Path]:
    inside = SafeRoot(parent)  # which may be a link itself, as the folders train and val often are
    folders = [inside.join(e.name) for e in os.scandir(parent) if e.is_dir() and not e.name.startswith(".")]
    if all(folder.name.isdecimal() for folder in folders):
        return sorted(folders, key=lambda folder: int(folder.name))
    return sorted(folders)


def _wnid(folder: Path, name_of: Mapping[str, str], names_file: Path) -> str:
    if folder.name in name_of:
        return folder.name
    if folder.name.isdecimal() and int(folder.name) < len(name_of):
        return list(name_of)[int(folder.name)]
    raise bad_file(folder, f"is a class that {names_file.name} does not name", "Restore the folders or the names.")


def _images_of(folders: list[Path]) -> tuple[Item, ...]:
    items = []
    for label, folder in enumerate(folders):
        images = [e for e in os.scandir(folder) if Path(e.name).suffix.lower() in IMAGE_SUFFIXES and e.name[0] != "."]
        if not images:
            raise bad_file(folder, "is a class without images", "Restore its images.")
        for entry in sorted(images, key=lambda e: e.name):
            if entry.is_symlink():
                SafeRoot(folder.parent).join(f"{folder.name}/{entry.name}")  # refuses one that leads out
            items.append(Item(folder / entry.name, label))
    return tuple(items)


def _read_torchvision(card: DatasetCard, root: Path) -> Splits | None:
    """Read a set as torchvision lays it out, with the official split; return None where it is not there.

    torchvision's own classes list the images, and here nothing is ever downloaded.
    """
    kind = card.torchvision
    if kind is None or not (root / TORCHVISION_FOLDERS[kind]).is_dir():
        return None
    folder = root.resolve() / TORCHVISION_FOLDERS[kind]
    listed = _list_pets(folder) if kind == "OxfordIIITPet" else _list_torchvision(kind, root.resolve(), folder)
    if listed is None:
        if root / TORCHVISION_FOLDERS[kind] in [root / place.folder for place in _places(card)]:
            return None  # another layout uses the folder too, so finding it does not mean this one
        raise bad_file(folder, f"is not whole as torchvision's {kind} has it", _AGAIN)
    raw_names, parts = listed
    inside = SafeRoot(folder)

    def item(path: Path, label: int) -> Item:
        below = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
        return Item(inside.join(below), label)  # refuses what does not continue the folder

    train, val, test = (tuple(item(path, label) for path, label in parts.get(split, [])) for split in SPLITS)
    no_val = "" if val else " It has no validation part."
    note = (
        f"The split is the official one that torchvision reads, not Zhou's: results are not comparable with the "
        f"papers' tables.{no_val}"
    )
    class_names = readable_names(raw_names, str(folder), card.rename, card.rewrite)
    return Splits(folder, class_names, train, val, test, (note,), is_official=True)


def _list_torchvision(kind: str, root: Path, folder: Path) -> Listed | None:
    from torchvision import datasets

    opened: dict[SplitName, Any] = {}
    try:
        for split in SPLITS:
            if split != "val" or kind in TORCHVISION_HAS_VAL:
                # a loader that gives the path back, so that images are listed and not opened
                opened[split] = getattr(datasets, kind)(str(root), split=split, download=False, loader=Path)
        parts = {
            split: [(Path(path), int(label)) for path, label in (part[index] for index in range(len(part)))]
            for split, part in opened.items()
        }
    except ImportError:
        raise UserError(
            f"{folder}: its labels are in a .mat file, which scipy reads. Install it: pip install scipy"
        ) from None
    except RuntimeError as error:  # torchvision's word for "not this layout"
        if "cipy" in str(error):
            raise UserError(f"{folder}: its labels are in a .mat file. Install scipy: pip install scipy") from None
        return None
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise bad_file(folder, f"is not whole ({str(error).splitlines()[0]})", _AGAIN) from None
    return list(opened["train"].classes), parts


def _list_pets(folder: Path) -> Listed | None:
    """List Oxford-IIIT Pet, for which torchvision's class has no loader to be replaced and would open every image."""
    files: dict[SplitName, Path] = {
        "train": folder / "annotations" / "trainval.txt",
        "test": folder / "annotations" / "test.txt",
    }
    if not all(path.is_file() for path in files.values()):
        return None
    breed_of: dict[int, str] = {}
    parts: dict[SplitName, list[tuple[Path, int]]] = {split: [] for split in files}
    for split, path in files.items():
        for number, line in enumerate(text_lines(path), start=1):
            match line.split():
                case [str(image), str(label), _, _] if label.isdecimal() and "/" not in image:
                    parts[split].append((folder / "images" / f"{image}.jpg", int(label) - 1))
                    breed_of[int(label) - 1] = image.rpartition("_")[0]
                case _:
                    raise bad_file(path, "is not a line of image, class, species and breed", "Get it again.", number)
    if sorted(breed_of) != list(range(len(breed_of))):
        raise bad_file(folder, "has class numbers with a gap", _AGAIN)
    return [breed_of[label] for label in range(len(breed_of))], parts
