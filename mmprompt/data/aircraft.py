"""The lists of FGVC-Aircraft: `variants.txt` gives the labels by line, `images_variant_*.txt` the official parts.

This file does not know where the set lies.
"""

from __future__ import annotations

from pathlib import Path

from mmprompt.data.class_names import class_index
from mmprompt.data.splits import SPLITS, Item, Splits
from mmprompt.errors import bad_file, unknown_name
from mmprompt.files import SafeRoot, read_bytes

VARIANTS = "variants.txt"
PARTS = (VARIANTS, *(f"images_variant_{split}.txt" for split in SPLITS))


def read_aircraft(folder: Path, images: Path) -> Splits:
    """The pictures of the official parts.

    Args:
        folder: holds the lists.
        images: holds the pictures, `NUMBER.jpg`.
    Raises:
        UserError: a list is missing or of another form.
    """
    raw = [line for line in _lines(folder / VARIANTS) if line]
    if len(set(raw)) < len(raw):
        raise bad_file(folder / VARIANTS, "names a variant twice", "Restore the published file.")
    names = class_index(raw, str(folder / VARIANTS))
    label_of = {name: label for label, name in enumerate(raw)}
    inside = SafeRoot(images.resolve())
    train, val, test = (_items(folder / name, label_of, inside) for name in PARTS[1:])
    return Splits(inside.root, tuple(names[name] for name in raw), train, val, test)


def _items(path: Path, label_of: dict[str, int], inside: SafeRoot) -> tuple[Item, ...]:
    items = []
    for number, line in enumerate(_lines(path), start=1):
        if not line:
            continue
        image, _, variant = line.partition(" ")
        if variant not in label_of:
            raise bad_file(path, str(unknown_name("variant", variant, label_of)), "Restore the published file.", number)
        items.append(Item(inside.join(f"{image}.jpg"), label_of[variant]))
    return tuple(items)


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in read_bytes(path).decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise bad_file(path, "is not UTF-8 text", "Restore the published file.") from None
