"""One cell of a grid: what is fitted on what and tested on what, and the key that is the same wherever it is computed.

A cell is plain data and survives as JSON. It knows how to load its pictures, and neither fits nor scores.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprompt.classification.methods import METHODS, ClassificationMethod, make_method
from mmprompt.core.method import resolved_recipe, settled
from mmprompt.data.broken import Broken, drop_broken, find_broken
from mmprompt.data.catalog import load_dataset
from mmprompt.data.fewshot import base_new
from mmprompt.data.folder import ImageFolder, ImageTable
from mmprompt.data.splits import SPLITS, Dataset
from mmprompt.files import sha256_bytes
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from mmprompt.models.dual_encoder.interface import DualEncoder


CELL_FORMAT = 2  # raised when a change of the package changes what a cell computes, so that old cells are not reused
BASE, NEW = "base", "new"
TABLES = {".csv", ".jsonl", ".json"}
UNTOLD = {"checkpoint_every", "checkpoint_seconds"}  # of a recipe, without influence on what is learned


@dataclass(frozen=True)
class Origin:
    """Where the pictures of a data set are.

    Args:
        name: of the data set, or of the user's folder.
        data: the user's own folder or table; None for a set known by name.
        root: the folder that holds a named set's folder.
        datasets_dir: a folder with more cards.
        rule: by which the shots are drawn.
        broken: pictures that are left out because they cannot be read, as paths below the set's root.
    """

    name: str
    data: str | None = None
    root: str | None = None
    datasets_dir: str | None = None
    rule: str = "coop"
    broken: tuple[str, ...] = ()

    def load(self, shots: int | None, seed: int) -> Dataset:
        """The data set with its shots drawn.

        Raises:
            UserError: something about the set or its pictures is wrong.
        """
        data = self._load(shots, seed)
        left_out = [data.root / path for path in self.broken]
        return drop_broken(data, [Broken(path, f"{path} cannot be read.") for path in left_out])

    def without_broken(
        self,
        draws: Iterable[tuple[int | None, int]],
        splits: Sequence[str] = SPLITS,
        progress: Callable[[int, int], None] | None = None,
        known: Callable[[Sequence[Path]], Collection[Path]] | None = None,
    ) -> Origin:
        """The same with all pictures left out that cannot be read.

        Args:
            draws: shots and seeds that will be used; a picture that none of them takes is not looked at.
            splits: the parts that will be used.
            progress: called with how many pictures were opened and how many there are.
            known: those of some pictures that were decoded before as they are now, which are not opened again.
        Raises:
            UserError: something about the set is wrong.
        """
        drawn = [self._load(*draw) for draw in draws]
        items = [item for data in drawn for split in splits for item in data.items(split)]
        sound = known([item.path for item in items]) if known else ()
        found = find_broken(items, progress=progress, known=sound)
        names = [one.path.relative_to(drawn[0].root).as_posix() for one in found]
        return replace(self, broken=tuple(names))

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
        source: what is learned from.
        backbone: the name of the frozen model.
        method: a method by name.
        settings: of the method.
        recipe: what differs from the published recipe and from what the data set says.
        shots: training pictures a class, None for all, 0 where nothing is learned.
        seed: of the draw and the start; 0 where nothing is drawn.
        targets: what else it is tested on.
        is_divided: learn from the base classes, test on base and new ones.
    """

    source: Origin
    backbone: str
    method: str
    settings: Mapping[str, Any]
    recipe: Mapping[str, Any]
    shots: int | None
    seed: int
    targets: tuple[Origin, ...] = ()
    is_divided: bool = False

    def make(self) -> ClassificationMethod:
        """Make the method with its settings.

        Raises:
            UserError: the name or a setting is unknown.
        """
        return make_method(self.method, dict(self.settings))

    def load(self) -> tuple[Dataset, dict[str, Dataset]]:
        """What is learned from, and what is tested on by name; pictures that have no use are left out."""
        data = self.source.load(self.shots or None, self.seed)
        if self.shots == 0:
            data = _test_part(data)
        if self.is_divided:
            base, new = base_new(data)
            return base, {BASE: base, NEW: new}
        others = {place.name: _test_part(place.load(None, self.seed)) for place in self.targets}
        return data, {self.source.name: data, **others}

    def make_recipe(self, data: Dataset) -> Recipe:
        """Put the recipe together; see `core.method.resolved_recipe`."""
        from mmprompt.classification.task import ClassificationTask

        recipe = resolved_recipe(self.make(), (self.backbone, "classification"), data.recipe, Recipe(**self.recipe))
        return ClassificationTask.of(data).complete(recipe)


def simplify(cell: Cell) -> Cell:
    """The same cell without what has no influence, so that one zero-shot cell serves all shots and seeds."""
    method = cell.make()
    if method.is_trained:
        return cell
    return replace(cell, recipe={}) if method.needs_shots else replace(cell, recipe={}, shots=0, seed=0)


def cell_key(cell: Cell, backbone: DualEncoder, data: Dataset, tests: Mapping[str, Dataset]) -> str:
    """A hash of all that decides what a cell computes: pictures, weights, method, recipe, shots and seed.

    Where the pictures lie has no part in it, nor has the device.

    Args:
        cell: simplified.
        backbone: its frozen model.
        data: what it learns from, as `load` gave it.
        tests: what it is tested on, by name.
    """
    from mmprompt.core.fit import describe_method

    method = settled(cell.make(), cell.backbone, "classification")
    recipe = asdict(cell.make_recipe(data)) if method.is_trained else {}
    identity = {
        "format": CELL_FORMAT,
        "backbone": [backbone.fingerprint, backbone.transform, str(backbone.dtype)],
        "method": [cell.method, describe_method(method, dict(METHODS))],
        "recipe": {key: value for key, value in recipe.items() if key not in UNTOLD},
        "shots": cell.shots,
        "seed": cell.seed,
        "data": _identity(data),
        "tests": {name: _identity(_test_part(test)) for name, test in tests.items()},
    }
    return sha256_bytes(json.dumps(identity, sort_keys=True).encode())


def _test_part(data: Dataset) -> Dataset:
    return replace(data, train=(), val=())


def _identity(data: Dataset) -> list[Any]:
    return [data.fingerprint, data.template, list(data.templates)]


def cell_to_json(cell: Cell) -> str:
    """A cell as text."""
    return json.dumps(asdict(cell))


def cell_from_json(text: str) -> Cell:
    """A cell from its text."""
    content = json.loads(text)
    source, *targets = [
        Origin(**{**place, "broken": tuple(place["broken"])}) for place in (content["source"], *content["targets"])
    ]
    return Cell(**{**content, "source": source, "targets": tuple(targets)})
