"""One cell of a grid: what is fitted on what and tested on what, and the key that is the same wherever it is computed.

A cell knows how to load its data, of whatever kind; it neither fits nor scores.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmprompt.core.method import Method, resolved_recipe, settled
from mmprompt.data.catalog import load_dataset
from mmprompt.data.check import Broken, drop_broken, find_broken
from mmprompt.data.fewshot import base_new
from mmprompt.data.folder import ImageFolder, ImageTable
from mmprompt.data.splits import SPLITS, Dataset
from mmprompt.files import sha256_bytes
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from mmprompt.core.fit import Task


CELL_FORMAT = 3  # raised when a change of the package changes what a cell computes, so that old cells are not reused
BASE, NEW = "base", "new"
TABLES = {".csv", ".jsonl", ".json"}
UNTOLD = {"checkpoint_every", "checkpoint_seconds"}  # of a recipe, without influence on what is learned


class Part(NamedTuple):
    """What is learned from or tested on: a task, the data that it is of, and the items to test on."""

    task: Any
    data: Any
    items: Sequence[Any]

    @classmethod
    def of(cls, data: Any) -> Part:
        """Make the part of a data set, or of a task of captions or texts."""
        task: Task = data.task()
        data = data if isinstance(data, Dataset) else data.data
        return cls(task, data, data.test)


@dataclass(frozen=True)
class Origin:
    """Where data comes from: a place of images, or a data set or task that is at hand.

    Args:
        name: of the data set, or of the user's folder.
        data: the user's own folder or table, or a data set or task; None for a set known by name.
        root: the folder that holds a named set's folder.
        datasets_dir: a folder with more cards.
        rule: by which the shots are drawn.
        broken: images that are left out because they cannot be read, as paths below the set's root.
    """

    name: str
    data: Any = None
    root: str | None = None
    datasets_dir: str | None = None
    rule: str = "coop"
    broken: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The kind of its task."""
        return "classification" if self.is_place else self.data.task().kind

    @property
    def is_place(self) -> bool:
        """Whether the data is read from a place, not at hand."""
        return self.data is None or isinstance(self.data, str)

    @property
    def is_drawn(self) -> bool:
        """Whether shots are drawn when it is loaded: of images in a place and of rows of text."""
        return self.is_place or self.kind == "language"

    def load(self, shots: int | None, seed: int) -> Any:
        """Load the data set, or a task of captions or texts, with its shots drawn.

        Raises:
            UserError: something about the set or its images is wrong.
        """
        if self.is_place:
            data = self._load(shots, seed)
            return drop_broken(data, [Broken(data.root / path, f"{path} cannot be read.") for path in self.broken])
        if isinstance(self.data, Dataset):
            return self.data
        task = self.data.task()
        if self.kind == "language" and shots is not None:
            from mmprompt.language.data import sample_shots

            return replace(task, data=sample_shots(task.data, shots, seed))
        return replace(task)  # a task remembers what it was fitted to

    def without_broken(
        self,
        draws: Iterable[tuple[int | None, int]],
        splits: Sequence[str] = SPLITS,
        progress: Callable[[int, int], None] | None = None,
        known: Callable[[Sequence[Path]], Collection[Path]] | None = None,
    ) -> Origin:
        """Return the same with all images left out that cannot be read.

        Args:
            draws: shots and seeds that will be used; an image that none of them takes is not looked at.
            splits: the parts that will be used.
            progress: called with how many images were opened and how many there are.
            known: selects those images that were decoded before as they are now, which are not opened again.
        Raises:
            UserError: something about the set is wrong.
        """
        drawn = [self._load(*draw) for draw in draws]
        items = [item for data in drawn for split in splits for item in data.items(split)]
        sound = known([item.path for item in items]) if known else ()
        broken = find_broken(items, progress=progress, known=sound)
        return replace(self, broken=tuple(one.path.relative_to(drawn[0].root).as_posix() for one in broken))

    def _load(self, shots: int | None, seed: int) -> Dataset:
        if self.data is None:
            return load_dataset(self.name, self.root, shots, seed, self.datasets_dir, self.rule)
        if Path(self.data).suffix.lower() in TABLES:
            return ImageTable(self.data, self.root, shots, seed, rule=self.rule)
        return ImageFolder(self.data, shots, seed, rule=self.rule)


@dataclass(frozen=True)
class Cell:
    """One fit and its tests.

    Args:
        name: of what is fitted, for people.
        source: what is learned from.
        method: how.
        backbone: the name of the frozen model.
        recipe: what differs from the published recipe and from what the data set says.
        shots: training items a class, None for all, 0 where nothing is learned.
        seed: of the draw and the start; 0 where nothing is drawn.
        targets: what else it is tested on.
        is_divided: learn from the base classes, test on base and new ones.
    """

    name: str = field(compare=False)
    source: Origin
    method: Method
    backbone: str
    recipe: Mapping[str, Any]
    shots: int | None
    seed: int
    targets: tuple[Origin, ...] = ()
    is_divided: bool = False

    def load(self) -> tuple[Part, dict[str, Part]]:
        """Load what is learned from, and by name what is tested on; images that have no use are left out."""
        data = self.source.load(self.shots or None, self.seed)
        if self.shots == 0:
            data = _test_part(data)
        if self.is_divided:
            base, new = base_new(data)
            return Part.of(base), {BASE: Part.of(_test_part(base)), NEW: Part.of(_test_part(new))}
        others = {place.name: Part.of(_test_part(place.load(None, self.seed))) for place in self.targets}
        return Part.of(data), {self.source.name: Part.of(_test_part(data)), **others}

    def settled_method(self, task: Any) -> Any:
        """Fill in what the method leaves to the backbone or to the kind of task."""
        return settled(self.method, self.backbone, task.kind)

    def make_recipe(self, task: Any) -> Recipe:
        """Put the recipe together; see `core.method.resolved_recipe`."""
        places = (self.backbone, task.kind)
        return task.complete(resolved_recipe(self.method, places, task.recipe, Recipe(**self.recipe)))

    def key(self, model: Any, source: Part, tests: Mapping[str, Part]) -> str:
        """Hash all that decides what the cell computes: data, weights, method, recipe, shots and seed.

        Where images are in the file system has no part in it, nor has the device.

        Args:
            model: the frozen model.
            source: as `load` gave it.
            tests: likewise.
        """
        identity = {
            "format": CELL_FORMAT,
            "backbone": [model.fingerprint, model.transform, str(model.dtype)],
            **self.describe(source.task),
            "data": identity_of(source),
            "tests": {name: identity_of(test) for name, test in tests.items()},
        }
        return sha256_bytes(json.dumps(identity, sort_keys=True, default=repr).encode())[:32]

    def describe(self, task: Any) -> dict[str, Any]:
        """Describe what is fitted, and how, JSON-ready."""
        from mmprompt.core.fit import describe_method

        recipe = asdict(self.make_recipe(task)) if self.method.is_trained else {}
        return {
            "kind": task.kind,
            "method": describe_method(self.settled_method(task), dict(task.methods)),
            "recipe": {name: value for name, value in recipe.items() if name not in UNTOLD},
            "shots": self.shots,
            "seed": self.seed,
        }


def simplify(cell: Cell) -> Cell:
    """Return the same cell without what has no influence, so that one zero-shot cell serves all shots and seeds."""
    if cell.method.is_trained:
        return cell
    return replace(cell, recipe={}) if cell.method.needs_shots else replace(cell, recipe={}, shots=0, seed=0)


def identity_of(part: Part) -> list[Any]:
    """Say what of data and task decides what is computed, JSON-ready but for settings of tasks."""
    task, data = part.task, part.data
    if task.kind == "classification":
        return [data.fingerprint, data.template, list(data.templates)]
    settings = {one.name: getattr(task, one.name) for one in fields(task) if one.name not in {"data", "features"}}
    said = {name: getattr(data, name, None) for name in ("template", "verbalizer", "lexicon", "chosen_by")}
    return [data.fingerprint, said, settings]


def _test_part(data: Any) -> Any:
    """Leave out the images that are not tested on; captions and texts are not opened before they are used."""
    return replace(data, train=(), val=()) if isinstance(data, Dataset) else data
