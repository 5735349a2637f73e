"""What of a dataset is missing, broken or there twice, found before a long run meets it.

Every image that is looked at is decoded whole, because a header tells nothing of a file that was cut off. Nothing is
fetched, repaired or printed; whether a broken image stops the run or is left out is the caller's choice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmprompt.data.class_names import shortened
from mmprompt.data.images import read_image
from mmprompt.data.parallel import in_workers
from mmprompt.data.splits import SPLITS, Dataset, Item, SplitName, Splits, class_counts
from mmprompt.errors import UserError, bad_value
from mmprompt.files import sha256_file


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

    A repeated one is opened once, and one that is `known`, as it was decoded before as it is now, is not opened. None
    workers are chosen by the number of images and cores, 0 is this process; `progress` is called with the number of
    images done and in all.
    """
    if isinstance(items, Dataset):
        items = [item for split in SPLITS for item in items.items(split)]
    paths = list(dict.fromkeys(item.path for item in items if item.path not in known))
    broken: list[Broken] = []
    for done, (path, reason) in enumerate(zip(paths, in_workers(_why_broken, paths, workers), strict=True), start=1):
        if reason is not None:
            broken.append(Broken(path, reason))
        if progress is not None:
            progress(done, len(paths))
    return tuple(broken)


def _why_broken(path: Path) -> str | None:
    try:
        read_image(path)
    except UserError as error:
        return str(error)
    return None


def refuse_broken(broken: Sequence[Broken], advice: str = "") -> None:
    """Refuse a dataset with images that cannot be read: name the first and their number, and give the advice."""
    if broken:
        count = "" if len(broken) == 1 else f"{len(broken)} images are broken, the first: "
        raise UserError(f"{count}{broken[0].reason} {advice}")


def drop_broken(dataset: Dataset, broken: Sequence[Broken]) -> Dataset:
    """Return the dataset, its shots drawn, without its broken images, and with a note that names them.

    No other image takes their place. Refused where a class would have no training image left, or the set no test image.
    """
    bad = {image.path for image in broken}
    if not bad:
        return dataset
    train, val, test = (tuple(item for item in dataset.items(split) if item.path not in bad) for split in SPLITS)
    before, after = (class_counts(items, len(dataset.class_names)) for items in (dataset.train, train))
    emptied = [name for name, had, has in zip(dataset.class_names, before, after, strict=True) if had and not has]
    if emptied or (dataset.test and not test):
        lost = f"training image of {shortened(emptied)}" if emptied else "test image"
        raise UserError(f"{broken[0].reason} Without the broken images there is no {lost}. Mend them or add others.")
    names = shortened(sorted(path.relative_to(dataset.root).as_posix() for path in bad), limit=3)
    note = f"Broken images left out, {len(bad)}: {names}."
    return replace(dataset, train=train, val=val, test=test, notes=(*dataset.notes, note))


@dataclass(frozen=True)
class CheckReport:
    """What a check found: numbers of images by split, and by label in each split.

    Problems are what a run would stumble over, warnings what makes results doubtful, one line each.
    """

    root: Path
    class_names: tuple[str, ...]
    counts: dict[SplitName, int]
    per_class: dict[SplitName, tuple[int, ...]]
    n_decoded: int
    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def is_ok(self) -> bool:
        """Whether there are no problems; warnings are allowed."""
        return not self.problems

    @property
    def lines(self) -> tuple[str, ...]:
        """The report as text, one finding a line."""
        parts = []
        for split in SPLITS:
            counts = self.per_class[split]
            spread = f" ({min(counts)} to {max(counts)} a class)" if any(counts) else ""
            parts.append(f"{split} {self.counts[split]}{spread}")
        return (
            f"{self.root}: {len(self.class_names)} classes; images: {', '.join(parts)}.",
            f"Images opened: {self.n_decoded}.",
            *(f"Problem: {problem}" for problem in self.problems),
            *(f"Warning: {warning}" for warning in self.warnings),
            self.verdict,
        )

    @property
    def verdict(self) -> str:
        """What the set is ready for."""
        if not self.is_ok:
            return "Not ready to train."
        if not self.counts["train"]:
            return "Ready to test; there is nothing to train on."
        return "Ready to train." if self.counts["test"] else "Ready to train; there is nothing to test on."


def check_dataset(
    splits: Splits,
    n_classes: int | None = None,
    sizes: Mapping[SplitName, int] | None = None,
    sample: int | None = 200,
    seed: int = 0,
) -> CheckReport:
    """Count, look for missing, broken and repeated images; decode a `sample` of them, None for all.

    `n_classes` and the `sizes` of splits are what the dataset's card expects.
    """
    if sample is not None and sample < 0:
        raise bad_value("sample", sample, "a number of images was expected, 0 or more", "Use `sample=200`.")
    names = splits.class_names
    paths = {split: [item.path for item in splits.items(split)] for split in SPLITS}
    counts = {split: len(paths[split]) for split in SPLITS}
    per_class = {split: class_counts(splits.items(split), len(names)) for split in SPLITS}
    everything = [path for split in SPLITS for path in paths[split]]
    missing = [path for path in everything if not path.is_file()]
    present = sorted(set(everything) - set(missing))
    chosen = present if sample is None or sample >= len(present) else random.Random(seed).sample(present, sample)
    problems = []
    if n_classes is not None and n_classes != len(names):
        problems.append(f"there are {len(names)} classes, but {n_classes} were expected.")
    for split, size in (sizes or {}).items():
        if counts[split] != size:
            problems.append(f"{split} has {counts[split]} images, but {size} were expected.")
    if missing:
        first = shortened([path.relative_to(splits.root).as_posix() for path in missing], limit=3)
        problems.append(f"missing images, {len(missing)} of {len(everything)}: {first}.")
    problems += [reason for reason in in_workers(_why_broken, chosen) if reason is not None]
    warnings = list(splits.notes)
    untested = [name for name, count in zip(names, per_class["test"], strict=True) if count == 0]
    if untested:
        warnings.append(f"no test image for {shortened(untested)}.")
    repeated = _repeated(splits.root, paths, set(present))
    if repeated:
        warnings.append(f"the same image in two splits: {shortened(repeated, limit=3)}.")
    return CheckReport(splits.root, names, counts, per_class, len(chosen), tuple(problems), tuple(warnings))


def _repeated(root: Path, paths: Mapping[SplitName, list[Path]], present: set[Path]) -> list[str]:
    """Return pairs of images of the same bytes in two splits; only files of equal size are hashed."""
    of_size: dict[int, list[tuple[SplitName, Path]]] = {}
    for split, members in paths.items():
        for path in members:
            if path in present:
                of_size.setdefault(path.stat().st_size, []).append((split, path))
    of_hash: dict[str, list[tuple[SplitName, Path]]] = {}
    for candidates in of_size.values():
        if len({split for split, _ in candidates}) > 1:
            for split, path in candidates:
                of_hash.setdefault(sha256_file(path), []).append((split, path))
    twins = [group for group in of_hash.values() if len({split for split, _ in group}) > 1]
    return [" = ".join(path.relative_to(root).as_posix() for _, path in group[:2]) for group in twins]
