"""What every dataset becomes: labelled images in train, val and test parts.

`Splits` is all that is there; `Dataset` is what one run sees of it, after the shots were drawn.
This file does not know where the images came from, nor how shots are drawn.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import mmprompt.display as display
from mmprompt.data.class_names import Rewrite, readable_names, shortened
from mmprompt.errors import UserError, bad_file, unknown_name

if TYPE_CHECKING:
    from pandas import DataFrame
    from PIL import Image

    from mmprompt.classification.task import ClassificationTask
    from mmprompt.models.image_features import ImageFeatures

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
TEST_FRACTION = 0.2
SMALL_CLASS = 4
UNBALANCED = 5
N_SHOWN = 8
"""Images that a notebook shows of a data set."""


@dataclass(frozen=True)
class Item:
    """One labelled image.

    Args:
        path: where it is.
        label: index into the class names.
        novel: shows a concept that the backbone's pretraining never saw.
    """

    path: Path
    label: int
    novel: bool = False


class Row(NamedTuple):
    """One image as a folder or table names it, before labels are numbered."""

    path: Path
    label: str
    split: SplitName = "train"
    novel: bool = False


def _items(self: Splits | Dataset, split: str) -> tuple[Item, ...]:
    """Return the images of `"train"`, `"val"` or `"test"`."""
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    return {"train": self.train, "val": self.val, "test": self.test}[split]


def _sizes(parts: Splits | Dataset) -> str:
    return ", ".join([f"{len(parts.class_names)} classes", *(f"{split} {len(parts.items(split))}" for split in SPLITS)])


@dataclass(frozen=True, repr=False)
class Splits:
    """All images of a dataset, with paths below its root and names by label; val may be empty.

    The parts are in the order of their source. The notes say what was decided on the user's behalf, one sentence each;
    `is_official` is a set divided as its makers did, not as the papers on prompts do.
    """

    root: Path
    class_names: tuple[str, ...]
    train: tuple[Item, ...]
    val: tuple[Item, ...]
    test: tuple[Item, ...]
    notes: tuple[str, ...] = ()
    is_official: bool = False

    items = _items

    def __repr__(self) -> str:
        return f"Splits({str(self.root)!r}: {_sizes(self)})"


@dataclass(frozen=True, repr=False)
class Dataset:
    """What one run trains on and is measured on.

    Args:
        name: of the set, or of the user's folder.
        root: the folder below which all paths lie.
        class_names: names by label.
        train: the few-shot part; may be empty in a set that is only tested on.
        val: the few-shot part to choose by; may be empty.
        test: the whole test part.
        template: the hand-written prompt, with one `{}` for the class name.
        templates: the ensemble, may be empty.
        shots: images a class in train, None for all.
        seed: of the draw, None where nothing was drawn.
        protocol: the rule of the draw.
        augment: `"none"` or `"coop"`, what suits these images in training.
        notes: what was decided on the user's behalf, one sentence each.
        licence: of the images.
        recipe: settings of the training recipe that suit this set, chosen on validation.
    """

    name: str
    root: Path
    class_names: tuple[str, ...]
    train: tuple[Item, ...]
    val: tuple[Item, ...]
    test: tuple[Item, ...]
    template: str = "a photo of a {}."
    templates: tuple[str, ...] = ()
    shots: int | None = None
    seed: int | None = None
    protocol: str = "coop"
    augment: str = "coop"
    notes: tuple[str, ...] = ()
    licence: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def task(self, features: ImageFeatures | None = None) -> ClassificationTask:
        """Give what `fit` learns from this data; `features` are shared ones of image files, or chosen by hand."""
        room = importlib.import_module("mmprompt.classification.task")
        task: ClassificationTask = room.ClassificationTask.of(self, features)
        return task

    items = _items

    def __repr__(self) -> str:
        draw = f"shots {self.shots}, seed {self.seed}, protocol {self.protocol}"
        return f"Dataset({self.name!r}: {_sizes(self)}, {draw})"

    def _repr_html_(self) -> str:
        counts = [class_counts(self.items(split), len(self.class_names)) for split in SPLITS]
        rows = [(name, *(count[label] for count in counts)) for label, name in enumerate(self.class_names)]
        said = {"template": self.template, "shots": self.shots, "seed": self.seed, "licence": self.licence}
        return display.section(
            f"{self.name}: {_sizes(self)}",
            display.images(self._examples()),
            display.facts(said | {f"note {number}": note for number, note in enumerate(self.notes, 1)}),
            display.table(("class", *SPLITS), rows),
        )

    def _examples(self) -> Iterator[tuple[str, Image.Image]]:
        """Yield the first image of some classes that can be read."""
        from mmprompt.data.images import read_image

        firsts = {item.label: item for item in reversed(self.train or self.test)}
        for label in sorted(firsts)[:N_SHOWN]:
            with contextlib.suppress(UserError):
                yield self.class_names[label], read_image(firsts[label].path)

    def to_frame(self) -> DataFrame:
        """Return a row for each image: path, label, class, split and novel, as a pandas DataFrame.

        Raises:
            UserError: pandas is not installed.
        """
        items = [(split, item) for split in SPLITS for item in self.items(split)]
        return display.frame(
            {
                "path": [str(item.path) for _, item in items],
                "label": [item.label for _, item in items],
                "class": [self.class_names[item.label] for _, item in items],
                "split": [split for split, _ in items],
                "novel": [item.novel for _, item in items],
            }
        )

    @property
    def is_official(self) -> bool:
        """Whether the parts are those of the set's makers, not those that the papers on prompts measure on."""
        return self.protocol.split(", ")[0] == "official"

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over class names and every image's relative path, label and size, split by split."""
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for split in SPLITS:
            for item in self.items(split):
                try:
                    size = item.path.stat().st_size
                except OSError as error:
                    problem = f"cannot be read ({error.strerror})"
                    raise bad_file(item.path, problem, "Restore the image.") from None
                record = [split, item.path.relative_to(self.root).as_posix(), item.label, size]
                digest.update(json.dumps(record).encode())
        return digest.hexdigest()


def assemble(
    root: Path,
    rows: Sequence[Row],
    place: str,
    hold_out: bool = True,
    rename: Mapping[str, str] | None = None,
    rewrite: Rewrite = "none",
) -> Splits:
    """Number the labels by sorted class name and, to `hold_out`, make a test part where none is given.

    The train part must have an image of every class, unless there are test images alone. `place` is the file or folder,
    for error messages. Names are changed as by `readable_name`.
    """
    labels = list(dict.fromkeys(row.label for row in rows))
    name_of = dict(zip(labels, readable_names(labels, place, rename, rewrite), strict=True))
    class_names = tuple(sorted(name_of.values()))
    untrained = sorted(set(class_names) - {name_of[row.label] for row in rows if row.split == "train"})
    if untrained and any(row.split != "test" for row in rows):
        raise UserError(
            f"{place}: no image to train on for {shortened(untrained)}. "
            "Add one to the train part of each, or remove the class."
        )
    number = {name: label for label, name in enumerate(class_names)}
    parts: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for row in rows:
        parts[row.split].append(Item(row.path, number[name_of[row.label]], row.novel))
    train, val, test = (tuple(parts[split]) for split in SPLITS)
    splits = Splits(root, class_names, train, val, test)
    splits = replace(splits, notes=_size_notes(splits))
    return hold_out_test(splits) if hold_out and not splits.test else splits


def _size_notes(splits: Splits) -> tuple[str, ...]:
    """Return what a careful reader should know of the sizes of the classes, one sentence each."""
    if not splits.train:
        return ()
    notes = []
    names, n_classes = splits.class_names, len(splits.class_names)
    counts = class_counts((*splits.train, *splits.val, *splits.test), n_classes)
    small = [name for name, count in zip(names, counts, strict=True) if count < SMALL_CLASS]
    if small:
        notes.append(
            f"Classes with fewer than {SMALL_CLASS} images, whose results are hardly more than chance: "
            f"{shortened(small)}."
        )
    trained = class_counts(splits.train, n_classes)
    most, fewest = max(trained), min(trained)
    if most >= UNBALANCED * fewest:
        large, little = names[trained.index(most)], names[trained.index(fewest)]
        notes.append(
            f"The classes are unbalanced, from {fewest} images ({little}) to {most} ({large}): read the accuracy of "
            "each class, and train on the same number of shots."
        )
    return tuple(notes)


def hold_out_test(splits: Splits) -> Splits:
    """Move a fifth of train to test: the same share of every class, at least one image.

    The choice follows from the hashes of the relative paths. It is the same for every seed, so that no
    run is measured on what another was trained on, and images added later do not reshuffle it.
    """

    def path_hash(item: Item) -> str:
        path = item.path.relative_to(splits.root).as_posix()
        return hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()

    held: set[Path] = set()
    single: list[str] = []
    for label, items in by_label(splits.train).items():
        if len(items) == 1:
            single.append(splits.class_names[label])
        else:
            n_held = max(1, round(TEST_FRACTION * len(items)))
            held.update(item.path for item in sorted(items, key=path_hash)[:n_held])
    train = tuple(item for item in splits.train if item.path not in held)
    test = tuple(item for item in splits.train if item.path in held)
    if not test:
        raise UserError(f"{splits.root}: no class has two images, so none can be tested. Add images.")
    held_out = f"{len(test)} of {len(splits.train)} images are held out for testing, the same share of every class"
    notes = [f"No test part was given: {held_out}."]
    if single:
        notes.append(f"Trained on and not tested, for want of a second image: {shortened(single)}.")
    return replace(splits, train=train, test=test, notes=(*notes, *splits.notes))


def refuse_missing(items: Iterable[Item]) -> None:
    """Refuse images that are not on the disk: name the first one and say how many are missing."""
    paths = [item.path for item in items]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        problem = f"is not there ({len(missing)} of {len(paths)} images are missing)"
        raise bad_file(missing[0], problem, "Restore them, or list only those you have.")


def class_counts(items: Iterable[Item], n_classes: int) -> tuple[int, ...]:
    """Return the number of images of every class, by label."""
    counts = Counter(item.label for item in items)
    return tuple(counts[label] for label in range(n_classes))


def by_label(items: Iterable[Item]) -> dict[int, list[Item]]:
    """Return the images of every label, labels in order of first appearance."""
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    return groups
