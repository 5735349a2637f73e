"""Pictures that cannot be read, found before a long run meets them.

Every picture is decoded whole, in worker processes, because a header tells nothing of a file that was cut off. This
file decides nothing: whether a broken picture stops the run or is left out is the caller's choice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmprompt.data.class_names import shortened
from mmprompt.data.images import read_image
from mmprompt.data.splits import SPLITS, Dataset, Item, class_counts
from mmprompt.errors import UserError

BATCH = 16
MIN_FOR_WORKERS = 256  # below, starting processes takes longer than reading
MAX_WORKERS = 8


@dataclass(frozen=True)
class Broken:
    """A picture that cannot be read.

    Args:
        path: where it is.
        reason: the refusal, one line that names the file.
    """

    path: Path
    reason: str


def find_broken(
    items: Iterable[Item] | Dataset,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    known: Collection[Path] = (),
) -> tuple[Broken, ...]:
    """Open every picture and give back those that cannot be read, in the order of the items.

    Args:
        items: the pictures that will be used, or a dataset for all that it holds. A repeated one is opened once.
        workers: processes, 0 for this one; None chooses by the number of pictures and cores.
        progress: called with how many are done and how many there are.
        known: pictures that were decoded before as they are now, which are not opened again.
    """
    chosen = [item for split in SPLITS for item in items.items(split)] if isinstance(items, Dataset) else items
    paths = list(dict.fromkeys(item.path for item in chosen if item.path not in known))
    if workers is None:
        workers = 0 if len(paths) < MIN_FOR_WORKERS else min(MAX_WORKERS, os.cpu_count() or 1)
    batches = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]
    found: list[Broken] = []
    done = 0
    for batch, reasons in zip(batches, _reasons(batches, workers), strict=True):
        found += [Broken(path, reason) for path, reason in zip(batch, reasons, strict=True) if reason is not None]
        done += len(batch)
        if progress is not None:
            progress(done, len(paths))
    return tuple(found)


def refuse_broken(broken: Sequence[Broken], advice: str = "") -> None:
    """Refuse a dataset with pictures that cannot be read.

    Args:
        broken: as `find_broken` gives them.
        advice: what else can be done, a sentence.
    Raises:
        UserError: there is one; the first is named, and how many there are.
    """
    if broken:
        count = "" if len(broken) == 1 else f"{len(broken)} pictures are broken, the first: "
        raise UserError(f"{count}{broken[0].reason} {advice}")


def drop_broken(dataset: Dataset, broken: Sequence[Broken]) -> Dataset:
    """The dataset without its broken pictures, and a note that says which. No other picture takes their place.

    Args:
        dataset: with its shots drawn.
        broken: as `find_broken` gives them.
    Raises:
        UserError: a class would have no training picture left, or the set no test picture.
    """
    bad = {one.path for one in broken}
    if not bad:
        return dataset
    train, val, test = (tuple(item for item in dataset.items(split) if item.path not in bad) for split in SPLITS)
    before = class_counts(dataset.train, len(dataset.class_names))
    after = class_counts(train, len(dataset.class_names))
    emptied = [name for name, had, has in zip(dataset.class_names, before, after, strict=True) if had and not has]
    if emptied or (dataset.test and not test):
        lost = f"training picture of {shortened(emptied)}" if emptied else "test picture"
        raise UserError(f"{broken[0].reason} Without the broken pictures there is no {lost}. Mend them or add others.")
    names = shortened(sorted(path.relative_to(dataset.root).as_posix() for path in bad), limit=3)
    note = f"Broken pictures left out, {len(bad)}: {names}."
    return replace(dataset, train=train, val=val, test=test, notes=(*dataset.notes, note))


def reason_broken(path: Path) -> str | None:
    """Why a picture cannot be read, None if it can."""
    try:
        read_image(path)
    except UserError as error:
        return str(error)
    return None


class _Batches:
    """Batches of paths as the indexable that torch's loader wants."""

    def __init__(self, batches: Sequence[Sequence[Path]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> list[str | None]:
        return [reason_broken(path) for path in self.batches[index]]


def _as_it_is(reasons: list[str | None]) -> list[str | None]:
    return reasons


def _reasons(batches: Sequence[Sequence[Path]], workers: int) -> Iterable[list[str | None]]:
    tasks = _Batches(batches)
    if workers == 0 or not batches:
        return (tasks[index] for index in range(len(tasks)))
    from torch.utils.data import DataLoader

    return DataLoader(tasks, batch_size=None, num_workers=workers, collate_fn=_as_it_is)  # type: ignore[arg-type]
