"""A user's own pictures: a folder for each class, a Hugging Face `imagefolder`, or a table of paths and labels.

Folders are either `ROOT/CLASS/picture.jpg`, or `ROOT/train/CLASS/picture.jpg` with `test` and perhaps `val` beside
`train`, in small or capital letters. Where a `metadata.csv` or `metadata.jsonl` lies beside the pictures, it says their
classes. Pictures are found by their suffix and opened only when a run reads them. This file does not know the catalog
of published sets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from mmprompt.data.class_names import shortened
from mmprompt.data.fewshot import draw_dataset
from mmprompt.data.images import IMAGE_SUFFIXES
from mmprompt.data.metadata import metadata_file, metadata_rows
from mmprompt.data.splits import SPLITS, Dataset, Row, SplitName, Splits, assemble, refuse_missing
from mmprompt.data.table import read_table
from mmprompt.errors import UserError, bad_file
from mmprompt.files import SafeRoot

_SPLIT_FOLDERS: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def ImageFolder(  # noqa: N802  the name people know from torchvision
    root: str | Path,
    shots: int | None = None,
    seed: int = 1,
    template: str = "a photo of a {}.",
    augment: str = "coop",
    rule: str = "coop",
) -> Dataset:
    """A dataset from a folder of class folders, or an `imagefolder` with metadata.

    Args:
        root: holds a folder of pictures for each class, or pictures and a `metadata.csv` or `metadata.jsonl` of
            file_name and label; or `train`, `test` and perhaps `val` (`validation`), which do.
        shots: training pictures a class, at least 1, or None for all.
        seed: of the draw of shots. The held-out test part does not depend on it.
        template: the hand-written prompt, with one `{}`.
        augment: `"coop"` (random crop and mirror) or `"none"`.
        rule: how the shots are drawn: `"coop"`, `"clip-lora"` or `"tip-adapter"`.
    Raises:
        UserError: the folder is missing or empty, a class has no picture or no name, or there is one class only.
    """
    splits = read_folder(root)
    return draw_dataset(splits, splits.root.name, shots, seed, template, protocol="folder", augment=augment, rule=rule)


def ImageTable(  # noqa: N802  the sister of ImageFolder
    path: str | Path,
    root: str | Path | None = None,
    shots: int | None = None,
    seed: int = 1,
    template: str = "a photo of a {}.",
    augment: str = "coop",
    rule: str = "coop",
) -> Dataset:
    """A dataset from a CSV or JSONL file with a row for each picture, or from a split file.

    Args:
        path: the table or the split file, as in `read_table`.
        root: what the paths are relative to; the file's own folder by default.
        shots: training pictures a class, at least 1, or None for all.
        seed: of the draw of shots. The held-out test part does not depend on it.
        template: the hand-written prompt, with one `{}`.
        augment: `"coop"` (random crop and mirror) or `"none"`.
        rule: how the shots are drawn: `"coop"`, `"clip-lora"` or `"tip-adapter"`.
    Raises:
        UserError: the file, a row or the classes are bad, or a picture is missing.
    """
    splits = read_table(path, root)
    refuse_missing(item for split in SPLITS for item in splits.items(split))
    return draw_dataset(splits, Path(path).stem, shots, seed, template, protocol="folder", augment=augment, rule=rule)


def read_folder(root: str | Path, hold_out: bool = True) -> Splits:
    """All pictures below a folder of class folders, classes sorted by name, pictures by path.

    Args:
        root: as in `ImageFolder`. Hidden files and other suffixes are passed over.
        hold_out: whether a test part is held out where there is none.
    Raises:
        UserError: as in `ImageFolder`, or folders of parts and of classes lie side by side.
    """
    root = _existing_folder(Path(root))
    if metadata_file(root) is not None:
        return assemble(root, metadata_rows(root, _SPLIT_FOLDERS), str(root), hold_out)
    folders = _visible_folders(root)
    inside = SafeRoot(root)
    if not folders:
        found = "holds pictures but no class folders" if _pictures(root, inside) else "holds no class folders"
        raise bad_file(root, found, "Make a folder of pictures for each class.")
    parts = [folder for folder in folders if _split_of(folder)]
    if len(parts) == len(folders):
        rows = [row for folder in folders for row in _part_rows(folder, inside)]
    elif any(_visible_folders(folder) for folder in parts):
        others = [folder.name for folder in folders if folder not in parts]
        problem = f"holds {shortened([f.name for f in parts])} beside {shortened(others)}, parts beside classes"
        raise bad_file(root, problem, "Move what is not a part elsewhere.")
    else:
        rows = list(_class_rows(root, "train", inside))
    splits = assemble(root, rows, str(root), hold_out)
    return replace(splits, notes=(*splits.notes, *_passed_over(folders)))


def _split_of(folder: Path) -> SplitName | None:
    return _SPLIT_FOLDERS.get(folder.name.lower())


def _passed_over(folders: Iterable[Path]) -> tuple[str, ...]:
    """A note on files of suffixes that are not read, such as a telephone's `.heic`."""
    counts: Counter[str] = Counter()
    for folder in folders:
        for path in folder.rglob("*"):
            is_read = path.suffix.lower() in IMAGE_SUFFIXES or path.name.startswith("metadata.")
            if not is_read and path.is_file() and all(map(_is_visible, path.relative_to(folder).parts)):
                counts[path.suffix.lower() or "no suffix"] += 1
    if not counts:
        return ()
    kinds = shortened([f"{counts[suffix]} {suffix}" for suffix in sorted(counts, key=lambda one: (-counts[one], one))])
    return (f"Files that are not read as pictures: {kinds}.",)


def _existing_folder(root: Path) -> Path:
    if root.is_file():
        problem = "is a file, but neither a table (.csv, .jsonl) nor a split file (.json)"
        raise bad_file(root, problem, "Give one of these, or a folder of class folders.")
    if not root.is_dir():
        raise bad_file(root, "is not there", "Give a folder that holds a folder of pictures for each class.")
    return root.resolve()


def _part_rows(folder: Path, inside: SafeRoot) -> Iterator[Row]:
    split = _SPLIT_FOLDERS[folder.name.lower()]
    if metadata_file(folder) is None:
        return _class_rows(folder, split, inside)
    return (row._replace(split=split) for row in metadata_rows(folder))


def _class_rows(parent: Path, split: SplitName, inside: SafeRoot) -> Iterator[Row]:
    empty = []
    for folder in _visible_folders(parent):
        pictures = _pictures(folder, inside)
        if not pictures:
            empty.append(folder.name)
        yield from (Row(picture, folder.name, split) for picture in pictures)
    if empty:
        raise UserError(
            f"{parent}: no picture in the class folders {shortened(empty)}. "
            f"Add pictures ({', '.join(sorted(IMAGE_SUFFIXES))}) or remove the folders."
        )


def _visible_folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir() and _is_visible(path.name))


def _pictures(folder: Path, inside: SafeRoot) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    visible = sorted(path for path in found if all(map(_is_visible, path.relative_to(folder).parts)))
    return [path for path in visible if inside.join(path.relative_to(inside.root).as_posix()).is_file()]


def _is_visible(name: str) -> bool:
    return not name.startswith((".", "__MACOSX"))
