"""A user's own images: a folder for each class, a Hugging Face `imagefolder`, or a table of paths and labels.

Folders are either `ROOT/CLASS/image.jpg`, or `ROOT/train/CLASS/image.jpg` with `test` and perhaps `val` beside
`train`, in small or capital letters. Where a `metadata.csv` or `metadata.jsonl` of file_name and label lies beside the
images, it says their classes; its other columns are passed over. Images are found by their suffix and opened only when
a run reads them. This file does not know the catalog of published sets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal

from mmprompt.data.class_names import shortened
from mmprompt.data.fewshot import draw_dataset
from mmprompt.data.images import IMAGE_SUFFIXES
from mmprompt.data.splits import SPLITS, Dataset, Row, SplitName, Splits, assemble, refuse_missing
from mmprompt.data.table import read_table, table_rows
from mmprompt.errors import UserError, bad_file
from mmprompt.files import SafeRoot
from mmprompt.settings import checked

_SPLIT_FOLDERS: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@checked
def ImageFolder(  # noqa: N802  the name people know from torchvision
    root: str | Path,
    shots: int | None = None,
    seed: int = 1,
    template: str = "a photo of a {}.",
    augment: Literal["coop", "none"] = "coop",
    rule: str = "coop",
) -> Dataset:
    """Make a dataset of a folder of class folders, or of an `imagefolder` with metadata.

    Args:
        root: holds a folder of images for each class, or images and a `metadata.csv` or `metadata.jsonl` of
            file_name and label; or `train`, `test` and perhaps `val` (`validation`), which do.
        shots: training images a class, at least 1, or None for all.
        seed: of the draw of shots. The held-out test part does not depend on it.
        template: the hand-written prompt, with one `{}`.
        augment: `"coop"` (random crop and mirror) or `"none"`.
        rule: how the shots are drawn: `"coop"`, `"clip-lora"` or `"tip-adapter"`.
    Raises:
        UserError: the folder is missing or empty, a class has no image or no name, or there is one class only.
    """
    splits = read_folder(root)
    return draw_dataset(splits, splits.root.name, shots, seed, template, protocol="folder", augment=augment, rule=rule)


@checked
def ImageTable(  # noqa: N802  the sister of ImageFolder
    path: str | Path,
    root: str | Path | None = None,
    shots: int | None = None,
    seed: int = 1,
    template: str = "a photo of a {}.",
    augment: Literal["coop", "none"] = "coop",
    rule: str = "coop",
) -> Dataset:
    """Make a dataset of a CSV or JSONL file with a row for each image, or of a split file.

    The path and the root of what it lists are those of `read_table`, all else is as for `ImageFolder`.

    Raises:
        UserError: the file, a row or the classes are bad, or an image is missing.
    """
    splits = read_table(path, root)
    refuse_missing(item for split in SPLITS for item in splits.items(split))
    return draw_dataset(splits, Path(path).stem, shots, seed, template, protocol="folder", augment=augment, rule=rule)


def read_folder(root: str | Path, hold_out: bool = True) -> Splits:
    """Read all images below a folder as `ImageFolder` takes it, classes sorted by name, images by path.

    Hidden files and other suffixes are passed over; `hold_out` holds out a test part where there is none.
    """
    root = Path(root)
    if root.is_file():
        problem = "is a file, but neither a table (.csv, .jsonl) nor a split file (.json)"
        raise bad_file(root, problem, "Give one of these, or a folder of class folders.")
    if not root.is_dir():
        raise bad_file(root, "is not there", "Give a folder that holds a folder of pictures for each class.")
    root = root.resolve()
    rows = _metadata_rows(root)
    if rows is not None:
        return assemble(root, _in_parts(rows, root), str(root), hold_out)
    inside = SafeRoot(root)
    folders = _visible_folders(root)
    if not folders:
        held = "holds pictures but no class folders" if _images(root, inside) else "holds no class folders"
        raise bad_file(root, held, "Make a folder of pictures for each class.")
    parts = {folder: _SPLIT_FOLDERS[folder.name.lower()] for folder in folders if folder.name.lower() in _SPLIT_FOLDERS}
    if len(parts) == len(folders):
        rows = [row for folder, split in parts.items() for row in _part_rows(folder, split, inside)]
    elif any(_visible_folders(folder) for folder in parts):
        others = [folder.name for folder in folders if folder not in parts]
        problem = f"holds {shortened([f.name for f in parts])} beside {shortened(others)}, parts beside classes"
        raise bad_file(root, problem, "Move what is not a part elsewhere.")
    else:
        rows = list(_class_rows(root, "train", inside))
    splits = assemble(root, rows, str(root), hold_out)
    return replace(splits, notes=(*splits.notes, *_passed_over(folders)))


def _metadata_rows(folder: Path) -> list[Row] | None:
    """Return the images that a folder's metadata names, in the order of the file; None where there is no metadata."""
    files = [path for path in (folder / "metadata.csv", folder / "metadata.jsonl") if path.is_file()]
    if len(files) > 1:
        raise bad_file(files[1], f"lies beside {files[0].name}", "Keep one of the two.")
    return table_rows(files[0], folder.resolve(), "file_name") if files else None


def _in_parts(rows: list[Row], root: Path) -> list[Row]:
    """Put every row into the part that its path begins with, if all paths begin with one."""
    first = [PurePosixPath(row.path.relative_to(root).as_posix()).parts[0] for row in rows]
    if not all(name in _SPLIT_FOLDERS for name in first):
        return rows
    return [row._replace(split=_SPLIT_FOLDERS[name]) for row, name in zip(rows, first, strict=True)]


def _part_rows(folder: Path, split: SplitName, inside: SafeRoot) -> Iterator[Row]:
    rows = _metadata_rows(folder)
    return _class_rows(folder, split, inside) if rows is None else (row._replace(split=split) for row in rows)


def _class_rows(parent: Path, split: SplitName, inside: SafeRoot) -> Iterator[Row]:
    empty = []
    for folder in _visible_folders(parent):
        images = _images(folder, inside)
        if not images:
            empty.append(folder.name)
        yield from (Row(image, folder.name, split) for image in images)
    if empty:
        raise UserError(
            f"{parent}: no picture in the class folders {shortened(empty)}. "
            f"Add pictures ({', '.join(sorted(IMAGE_SUFFIXES))}) or remove the folders."
        )


def _passed_over(folders: list[Path]) -> tuple[str, ...]:
    """Return a note on files of suffixes that are not read, such as a telephone's `.heic`."""
    counts: Counter[str] = Counter()
    for folder in folders:
        for path in folder.rglob("*"):
            is_read = path.suffix.lower() in IMAGE_SUFFIXES or path.name.startswith("metadata.")
            if not is_read and _is_visible(path, folder) and path.is_file():
                counts[path.suffix.lower() or "no suffix"] += 1
    kinds = [f"{count} {suffix}" for suffix, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]
    return (f"Files that are not read as pictures: {shortened(kinds)}.",) if kinds else ()


def _visible_folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir() and _is_visible(path, parent))


def _images(folder: Path, inside: SafeRoot) -> list[Path]:
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and _is_visible(path, folder))
    return [path for path in sorted(paths) if inside.join(path.relative_to(inside.root).as_posix()).is_file()]


def _is_visible(path: Path, folder: Path) -> bool:
    return not any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)
