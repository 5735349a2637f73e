"""Images that cannot be read, found before a long run meets them.

Every image is decoded whole, because a header tells nothing of a file that was cut off. This file decides nothing:
whether a broken image stops the run or is left out is the caller's choice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmprompt.data.class_names import shortened
from mmprompt.data.images import read_image
from mmprompt.data.parallel import in_workers
from mmprompt.data.splits import SPLITS, Dataset, Item, class_counts
from mmprompt.errors import UserError


@dataclass(frozen=True)
class Broken:
    """An image that cannot be read, and why: one line that names the file."""

    path: Path
    reason: str


def find_broken(
    items: Iterable[Item] | Dataset,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    known: Collection[Path] = (),
) -> tuple[Broken, ...]:
    """Open every image and return those that cannot be read, in the order of the items.

    Args:
        items: the images that will be used, or a dataset for all that it holds. A repeated one is opened once.
        workers: processes, 0 for this one; None chooses by the number of images and cores.
        progress: called with the number of images done and in all.
        known: images that were decoded before as they are now, which are not opened again.
    """
    if isinstance(items, Dataset):
        items = [item for split in SPLITS for item in items.items(split)]
    paths = list(dict.fromkeys(item.path for item in items if item.path not in known))
    broken: list[Broken] = []
    for done, (path, reason) in enumerate(zip(paths, in_workers(why_broken, paths, workers), strict=True), start=1):
        if reason is not None:
            broken.append(Broken(path, reason))
        if progress is not None:
            progress(done, len(paths))
    return tuple(broken)


def why_broken(path: Path) -> str | None:
    """Return why an image cannot be read, None if it can."""
    try:
        read_image(path)
    except UserError as error:
        return str(error)
    return None


def refuse_broken(broken: Sequence[Broken], advice: str = "") -> None:
    """Refuse a dataset with images that cannot be read.

    Raises:
        UserError: there is one; names the first and their number, and gives the advice, a sentence.
    """
    if broken:
        count = "" if len(broken) == 1 else f"{len(broken)} pictures are broken, the first: "
        raise UserError(f"{count}{broken[0].reason} {advice}")


def drop_broken(dataset: Dataset, broken: Sequence[Broken]) -> Dataset:
    """Return the dataset, its shots drawn, without its broken images, and with a note that names them.

    No other image takes their place.

    Raises:
        UserError: a class would have no training image left, or the set no test image.
    """
    bad = {image.path for image in broken}
    if not bad:
        return dataset
    train, val, test = (tuple(item for item in dataset.items(split) if item.path not in bad) for split in SPLITS)
    before, after = (class_counts(items, len(dataset.class_names)) for items in (dataset.train, train))
    emptied = [name for name, had, has in zip(dataset.class_names, before, after, strict=True) if had and not has]
    if emptied or (dataset.test and not test):
        lost = f"training picture of {shortened(emptied)}" if emptied else "test picture"
        raise UserError(f"{broken[0].reason} Without the broken pictures there is no {lost}. Mend them or add others.")
    names = shortened(sorted(path.relative_to(dataset.root).as_posix() for path in bad), limit=3)
    note = f"Broken pictures left out, {len(bad)}: {names}."
    return replace(dataset, train=train, val=val, test=test, notes=(*dataset.notes, note))
