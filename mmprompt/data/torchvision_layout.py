"""Sets as torchvision lays them out, with the official split that it reads: another split than Zhou's.

torchvision's own classes list the pictures, and here nothing is ever downloaded. Its sets without an official split
are not here. This file does not know CoOp's layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmprompt.data.card import DatasetCard
from mmprompt.data.class_names import class_index
from mmprompt.data.splits import SPLITS, Item, SplitName, Splits
from mmprompt.errors import UserError, bad_file
from mmprompt.files import SafeRoot, read_bytes

_FOLDERS = {
    "DTD": "dtd/dtd",
    "Flowers102": "flowers-102",
    "Food101": "food-101",
    "OxfordIIITPet": "oxford-iiit-pet",
    "StanfordCars": "stanford_cars",
}
_HAS_VAL = ("DTD", "Flowers102")

Listed = tuple[list[str], dict[SplitName, list[tuple[Path, int]]]]


def read_torchvision(card: DatasetCard, root: Path, shared: Sequence[Path] = ()) -> Splits | None:
    """The pictures of a set in torchvision's layout, None where it is not there.

    Args:
        card: what its YAML says.
        root: what torchvision calls root.
        shared: folders that other layouts use too, so that finding one does not mean this layout.
    Raises:
        UserError: the layout is there but damaged, a picture leaves it, or scipy is needed to read it.
    """
    if card.torchvision is None or not (root / _FOLDERS[card.torchvision]).is_dir():
        return None
    is_shared = root / _FOLDERS[card.torchvision] in shared
    root = root.resolve()
    folder = root / _FOLDERS[card.torchvision]
    listed = _pets(folder) if card.torchvision == "OxfordIIITPet" else _listed(card.torchvision, root, folder)
    if listed is None:
        if is_shared:
            return None
        raise bad_file(folder, f"is not whole as torchvision's {card.torchvision} has it", "Get the set again.")
    raw, parts = listed
    names = class_index(raw, str(folder), card.rename, card.rewrite)
    inside = SafeRoot(folder)
    train, val, test = (
        tuple(Item(inside.join(_below(path, folder)), label) for path, label in parts.get(split, []))
        for split in SPLITS
    )
    no_val = "" if val else " It has no validation part."
    note = (
        f"The split is the official one that torchvision reads, not Zhou's: results are not comparable with the "
        f"papers' tables.{no_val}"
    )
    return Splits(folder, tuple(names[name] for name in raw), train, val, test, (note,), is_official=True)


def _below(path: Path, folder: Path) -> str:
    """The path as it continues the folder; one that does not is given back as it is, to be refused."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _listed(kind: str, root: Path, folder: Path) -> Listed | None:
    from torchvision import datasets

    splits: Iterable[SplitName] = SPLITS if kind in _HAS_VAL else ("train", "test")
    opened: dict[SplitName, Any] = {}
    try:
        for split in splits:
            # a loader that gives the path back, so that pictures are listed and not opened
            opened[split] = getattr(datasets, kind)(str(root), split=split, download=False, loader=Path)
        parts = {
            split: [(Path(path), int(label)) for path, label in (one[index] for index in range(len(one)))]
            for split, one in opened.items()
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
        raise bad_file(folder, f"is not whole ({str(error).splitlines()[0]})", "Get the set again.") from None
    return list(opened["train"].classes), parts


def _pets(folder: Path) -> Listed | None:
    """The lists of Oxford-IIIT Pet; torchvision's class has no loader to be replaced and would open every picture."""
    files: dict[SplitName, Path] = {
        "train": folder / "annotations" / "trainval.txt",
        "test": folder / "annotations" / "test.txt",
    }
    if not all(path.is_file() for path in files.values()):
        return None
    breed_of: dict[int, str] = {}
    parts: dict[SplitName, list[tuple[Path, int]]] = {}
    for split, path in files.items():
        parts[split] = []
        for number, line in enumerate(read_bytes(path).decode("utf-8", "replace").splitlines(), start=1):
            match line.split():
                case [str(image), str(label), _, _] if label.isdecimal() and "/" not in image:
                    parts[split].append((folder / "images" / f"{image}.jpg", int(label) - 1))
                    breed_of[int(label) - 1] = image.rpartition("_")[0]
                case _:
                    raise bad_file(path, "is not a line of image, class, species and breed", "Get it again.", number)
    if sorted(breed_of) != list(range(len(breed_of))):
        raise bad_file(folder, "has class numbers with a gap", "Get the set again.")
    return [breed_of[label] for label in range(len(breed_of))], parts
