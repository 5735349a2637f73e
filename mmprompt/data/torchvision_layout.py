"""Sets as torchvision lays them out, with the official split that it reads: another split than Zhou's.

torchvision's own classes list the images, and here nothing is ever downloaded. Its sets without an official split
are not here. This file does not know CoOp's layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmprompt.data.card import DatasetCard
from mmprompt.data.class_names import readable_names
from mmprompt.data.jsonl import text_lines
from mmprompt.data.splits import SPLITS, Item, SplitName, Splits
from mmprompt.errors import UserError, bad_file
from mmprompt.files import SafeRoot

_FOLDERS = {
    "DTD": "dtd/dtd",
    "Flowers102": "flowers-102",
    "Food101": "food-101",
    "OxfordIIITPet": "oxford-iiit-pet",
    "StanfordCars": "stanford_cars",
}
_HAS_VAL = ("DTD", "Flowers102")
_AGAIN = "Get the set again."

Listed = tuple[list[str], dict[SplitName, list[tuple[Path, int]]]]


def read_torchvision(card: DatasetCard, root: Path, shared: Sequence[Path] = ()) -> Splits | None:
    """Read the images of a set in torchvision's layout; return None where it is not there.

    Args:
        card: what its YAML says.
        root: what torchvision calls root.
        shared: folders that other layouts use too, so that finding one does not mean this layout.
    Raises:
        UserError: the layout is there but damaged, an image leaves it, or scipy is needed to read it.
    """
    kind = card.torchvision
    if kind is None or not (root / _FOLDERS[kind]).is_dir():
        return None
    folder = root.resolve() / _FOLDERS[kind]
    listed = _list_pets(folder) if kind == "OxfordIIITPet" else _list(kind, root.resolve(), folder)
    if listed is None:
        if root / _FOLDERS[kind] in shared:
            return None
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


def _list(kind: str, root: Path, folder: Path) -> Listed | None:
    from torchvision import datasets

    opened: dict[SplitName, Any] = {}
    try:
        for split in SPLITS:
            if split != "val" or kind in _HAS_VAL:
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
