"""ImageNet and its relatives: a folder of images for each class, and `classnames.txt` for the names.

A label is the rank of the class folder among those that are there, sorted, so that a relative with 200 of the 1,000
classes has labels 0 to 199 and only those names. Folders named by a number mean the line of `classnames.txt`.
Within a class images are sorted by name: the published code took them in the order of the disk, which no other
machine has, so its picks cannot be drawn again. This file does not know where the set lies.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mmprompt.data.class_names import readable_names, shortened
from mmprompt.data.images import IMAGE_SUFFIXES
from mmprompt.data.jsonl import text_lines
from mmprompt.data.splits import Item, Splits
from mmprompt.data.templates import open_clip_lists
from mmprompt.errors import bad_file
from mmprompt.files import SafeRoot

CLASS_NAMES = "classnames.txt is not there, so the class names are those that open_clip ships."
NO_VAL = (
    "There is no validation part: the part that the papers test on is never used to choose anything. Pictures of a "
    "class are taken in the order of their names, so a seed picks others than in published runs."
)


def read_imagenet(
    names_file: Path, images: Path, train: str, test: str, rename: Mapping[str, str] | None = None
) -> Splits:
    """Read the images of a set of ImageNet's form.

    Args:
        names_file: lines of a folder's name, a blank and the class name. Where it is missing the names are those of
            open_clip, in the order of the sorted folders.
        images: holds the parts, or the class folders themselves where there is one part.
        train: the folder of training images below images; empty for a set that is only tested on.
        test: the folder of test images below images; empty for images itself.
        rename: class names by folder, for classes that would have the same name.
    Raises:
        UserError: the names are missing or of another form, a class folder has no name or no image, two classes
            have the same name, train and test have different classes, or a link in them leads out.
    """
    tested = _class_folders(images / test)
    trained = _class_folders(images / train) if train else []
    notes = (NO_VAL,) if train else ()
    if names_file.is_file():
        name_of = _names(names_file)
    else:
        name_of = _open_clip_names(tested, images / test)
        notes = (*notes, CLASS_NAMES)
    wnids = [_wnid(folder, name_of, names_file) for folder in tested]
    odd = sorted({folder.name for folder in trained} ^ {folder.name for folder in tested})
    if train and odd:
        raise bad_file(images, f"train and test differ in the classes {shortened(odd)}", "Restore the folders.")
    class_names = readable_names(wnids, str(names_file), name_of | dict(rename or {}))
    return Splits(images, class_names, _items(trained), (), _items(tested), notes)


def _open_clip_names(folders: list[Path], place: Path) -> dict[str, str]:
    names = open_clip_lists()["IMAGENET_CLASSNAMES"]
    if len(folders) != len(names):
        problem = f"has {len(folders)} class folders, but without classnames.txt all {len(names)} are needed"
        raise bad_file(place, problem, "Get classnames.txt.")
    return {folder.name: name for folder, name in zip(folders, names, strict=True)}


def _names(path: Path) -> dict[str, str]:
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


def _items(folders: list[Path]) -> tuple[Item, ...]:
    items = []
    for label, folder in enumerate(folders):
        images = [e for e in os.scandir(folder) if Path(e.name).suffix.lower() in IMAGE_SUFFIXES and e.name[0] != "."]
        if not images:
            raise bad_file(folder, "is a class without pictures", "Restore its pictures.")
        for entry in sorted(images, key=lambda e: e.name):
            if entry.is_symlink():
                SafeRoot(folder.parent).join(f"{folder.name}/{entry.name}")  # refuses one that leads out
            items.append(Item(folder / entry.name, label))
    return tuple(items)
