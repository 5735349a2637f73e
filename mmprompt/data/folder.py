"""A user's own images: a folder for each class, a Hugging Face `imagefolder`, or a table of paths and labels.

Folders are either `ROOT/CLASS/image.jpg`, or `ROOT/train/CLASS/image.jpg` with `test` and perhaps `val` beside
`train`, in small or capital letters. Where a `metadata.csv` or `metadata.jsonl` of file_name and label lies beside the
images, it says their classes; its other columns are passed over. A table is a CSV or JSONL file of
`path,label[,split][,novel]`, or a split file; what is refused in one is named with its line. Images are found by
their suffix and opened only when a run reads them. This file does not know the catalog of published sets.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from mmprompt.data.class_names import Rewrite, shortened
from mmprompt.data.fewshot import draw_dataset
from mmprompt.data.images import IMAGE_SUFFIXES, is_visible
from mmprompt.data.split_file import read_coop_split
from mmprompt.data.splits import SPLITS, Dataset, Row, SplitName, Splits, assemble, refuse_missing
from mmprompt.data.tables import PARTS, csv_records
from mmprompt.errors import UserError, bad_file, bad_value, unknown_name
from mmprompt.files import SafeRoot, read_objects
from mmprompt.settings import checked, expanded

_TRUTH = {"1": True, "true": True, "0": False, "false": False, "": False}


@checked
def ImageFolder(  # noqa: N802  the name people know from torchvision
    root: str | Path,
    shots: int | None = None,
    seed: int = 1,
    template: str = "a photo of a {}.",
    augment: Literal["coop", "none"] = "coop",
    protocol: str = "coop",
) -> Dataset:
    """Make a dataset of a folder of class folders, or of an `imagefolder` with metadata.

    Args:
        root: holds a folder of images for each class, or images and a `metadata.csv` or `metadata.jsonl` of
            file_name and label; or `train`, `test` and perhaps `val` (`validation`), which do.
        shots: training images a class, at least 1, or None for all.
        seed: of the draw of shots. The held-out test part does not depend on it.
        template: the hand-written prompt, with one `{}`.
        augment: `"coop"` (random crop and mirror) or `"none"`.
        protocol: how the shots are drawn: `"coop"`, `"clip-lora"` or `"tip-adapter"`.
    Raises:
        UserError: the folder is missing or empty, a class has no image or no name, or there is one class only.
    """
    splits = read_folder(root)
    return draw_dataset(
        splits, splits.root.name, shots, seed, template, protocol="folder", augment=augment, rule=protocol
    )


@checked
def ImageTable(  # noqa: N802  the sister of ImageFolder
    path: str | Path,
    root: str | Path | None = None,
    shots: int | None = None,
    seed: int = 1,
    template: str = "a photo of a {}.",
    augment: Literal["coop", "none"] = "coop",
    protocol: str = "coop",
) -> Dataset:
    """Make a dataset of a CSV or JSONL file with a row for each image, or of a split file.

    The path and the root of what it lists are those of `read_table`, all else is as for `ImageFolder`.

    Raises:
        UserError: the file, a row or the classes are bad, or an image is missing.
    """
    splits = read_table(path, root)
    refuse_missing(item for split in SPLITS for item in splits.items(split))
    return draw_dataset(
        splits, Path(path).stem, shots, seed, template, protocol="folder", augment=augment, rule=protocol
    )


def read_folder(
    root: str | Path, hold_out: bool = True, rename: Mapping[str, str] | None = None, rewrite: Rewrite = "none"
) -> Splits:
    """Read all images below a folder as `ImageFolder` takes it, classes sorted by name, images by path.

    Hidden files and other suffixes are passed over; `hold_out` holds out a test part where there is none. Names are
    changed as by `readable_name`.
    """
    root = expanded(root)
    if root.is_file():
        problem = "is a file, but neither a table (.csv, .jsonl) nor a split file (.json)"
        raise bad_file(root, problem, "Give one of these, or a folder of class folders.")
    if not root.is_dir():
        raise bad_file(root, "is not there", "Give a folder that holds a folder of images for each class.")
    root = root.resolve()
    rows = _metadata_rows(root)
    if rows is not None:
        return assemble(root, _in_parts(rows, root), str(root), hold_out, rename, rewrite)
    inside = SafeRoot(root)
    folders = _visible_folders(root)
    if not folders:
        held = "holds images but no class folders" if _images(root, inside) else "holds no class folders"
        raise bad_file(root, held, "Make a folder of images for each class.")
    parts = {folder: PARTS[folder.name.lower()] for folder in folders if folder.name.lower() in PARTS}
    if len(parts) == len(folders):
        rows = [row for folder, split in parts.items() for row in _part_rows(folder, split, inside)]
    elif any(_visible_folders(folder) for folder in parts):
        others = [folder.name for folder in folders if folder not in parts]
        problem = f"holds {shortened([f.name for f in parts])} beside {shortened(others)}, parts beside classes"
        raise bad_file(root, problem, "Move what is not a part elsewhere.")
    else:
        rows = list(_class_rows(root, "train", inside))
    splits = assemble(root, rows, str(root), hold_out, rename, rewrite)
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
    if not all(name in PARTS for name in first):
        return rows
    return [row._replace(split=PARTS[name]) for row, name in zip(rows, first, strict=True)]


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
            f"{parent}: no image in the class folders {shortened(empty)}. "
            f"Add images ({', '.join(sorted(IMAGE_SUFFIXES))}) or remove the folders."
        )


def _passed_over(folders: list[Path]) -> tuple[str, ...]:
    """Return a note on files of suffixes that are not read, such as a telephone's `.heic`."""
    counts: Counter[str] = Counter()
    for folder in folders:
        for path in folder.rglob("*"):
            is_read = path.suffix.lower() in IMAGE_SUFFIXES or path.name.startswith("metadata.")
            if not is_read and is_visible(path, folder) and path.is_file():
                counts[path.suffix.lower() or "no suffix"] += 1
    kinds = [f"{count} {suffix}" for suffix, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]
    return (f"Files that are not read as images: {shortened(kinds)}.",) if kinds else ()


def _visible_folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir() and is_visible(path, parent))


def _images(folder: Path, inside: SafeRoot) -> list[Path]:
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and is_visible(path, folder))
    return [path for path in sorted(paths) if inside.join(path.relative_to(inside.root).as_posix()).is_file()]


def read_table(
    path: str | Path,
    root: str | Path | None = None,
    hold_out: bool = True,
    rename: Mapping[str, str] | None = None,
    rewrite: Rewrite = "none",
) -> Splits:
    """Read all images of a CSV or JSONL file or a split file, classes sorted by name, images in the order of the rows.

    Whether the images exist is not looked at.

    Args:
        path: a `.csv` file (commas, semicolons or tabulators) whose header is `path,label` and perhaps `split` (train,
            val, test) and `novel` (0, 1), or a `.jsonl` file of objects with these keys; without a test row a part is
            held out. Or a `.json` split file as `mmprompt data split` writes it.
        root: what the paths are relative to; the file's own folder by default.
        hold_out: whether a test part is held out where there is none.
        rename: as for `readable_name`.
        rewrite: as for `readable_name`.
    """
    path = Path(path)
    folder = (path.parent if root is None else Path(root)).resolve()
    kind = path.suffix.lower()
    if kind == ".json":
        return read_coop_split(path, folder, rename, rewrite)
    if kind not in (".csv", ".jsonl"):
        raise bad_file(path, "is neither .csv nor .jsonl nor .json", "Give a table or a split file in one of these.")
    return assemble(folder, table_rows(path, folder, "path", ("split", "novel")), str(path), hold_out, rename, rewrite)


def table_rows(path: Path, folder: Path, image: str, optional: Sequence[str] | None = None) -> list[Row]:
    """Read the rows of a CSV or JSONL file of images and labels, whose paths may not leave the resolved `folder`.

    `image` names the column of paths; other columns are those of `optional`, None for any, which mean nothing.
    """

    def check(columns: list[str], line: int) -> None:
        for name in (image, "label"):
            if name not in columns:
                wanted = f"{image},label" + (f" and perhaps {','.join(optional)}" if optional else "")
                raise bad_file(path, f"lacks {name!r}", f"Name the columns {wanted}.", line)
        known = None if optional is None else (image, "label", *optional)
        for name in columns:
            if known is not None and name not in known:
                raise UserError(f"{path}, line {line}: {unknown_name('column', name, known)}")

    inside = SafeRoot(folder)
    rows: dict[str, Row] = {}
    first_line: dict[str, int] = {}
    for line, record in (_csv_records if path.suffix.lower() == ".csv" else _jsonl_records)(path, check):
        try:
            row = _row(record, image, bool(optional), inside)
        except (UserError, ValueError, OSError) as error:
            raise UserError(f"{path}, line {line}: {error}") from None
        place = os.path.normpath(row.path)
        if place in rows:
            problem = f"lists {record[image]!r} again, after line {first_line[place]}"
            raise bad_file(path, problem, "Keep one row for each image.", line)
        rows[place], first_line[place] = row, line
    if not rows:
        raise bad_file(path, "holds no images", f"Add a row of {image} and label for each image.")
    return list(rows.values())


def _row(record: dict[str, Any], image: str, has_parts: bool, inside: SafeRoot) -> Row:
    for name in (image, "label"):
        if not isinstance(record[name], str) or not record[name].strip():
            advice = "Fill it in." if record[name] in ("", None) else "Write it as text; a class by its name."
            raise UserError(f"{name} is {record[name]!r}, but text was expected. {advice}")
    if os.path.normpath(record[image].strip()) == ".":
        raise bad_value(image, repr(record[image]), "an image was expected, not the folder itself", "Correct it.")
    row = Row(inside.join(os.path.normpath(record[image].strip())), record["label"].strip())
    if not has_parts:
        return row
    split, novel = record.get("split", "train"), record.get("novel", False)
    if split not in SPLITS:
        raise UserError(f"split is {split!r}, but train, val or test was expected. Correct it.")
    if str(novel).lower() not in _TRUTH:
        raise UserError(f"novel is {novel!r}, but 0 or 1 was expected. Correct it.")
    return row._replace(split=split, novel=_TRUTH[str(novel).lower()])


def _csv_records(path: Path, check: Callable[[list[str], int], None]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows by the names of the header, each with its line; `check` refuses wrong names."""

    def check_header(header: list[str]) -> None:
        if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in header):
            names = "file_name,label" if path.name == "metadata.csv" else "path,label or path,label,split"
            problem = f"has no header, its first line is {','.join(header)!r}"
            raise bad_file(path, problem, f"Write {names} above it.", 1)
        check(header, 1)

    return csv_records(path, check=check_header)


def _jsonl_records(path: Path, check: Callable[[list[str], int], None]) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, record in read_objects(path):
        check(list(record), line)
        yield line, record
