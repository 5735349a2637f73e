"""Grids of cells: all combinations of data sets, methods on backbones, shots and seeds; those of the papers' protocols.

A cell is one fit and its tests, with a key that is the same wherever it is computed. It knows how to load its data, of
whatever kind; how it is computed is the business of `compute`, and what came out that of `summary`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmprompt.core.method import Method, refuse_idle_recipe, resolved_recipe, settled
from mmprompt.data.catalog import load_dataset
from mmprompt.data.check import Broken, drop_broken, find_broken
from mmprompt.data.fewshot import base_new
from mmprompt.data.folder import ImageFolder, ImageTable
from mmprompt.data.splits import SPLITS, Dataset
from mmprompt.errors import UserError, bad_value
from mmprompt.files import sha256_bytes
from mmprompt.progress import CountProgress
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from mmprompt.core.fit import Task

CELL_FORMAT = 3  # raised when a change of the package changes what a cell computes, so that old cells are not reused
BASE, NEW = "base", "new"
TABLES = {".csv", ".jsonl", ".json"}
UNTOLD = {"checkpoint_every", "checkpoint_seconds"}  # of a recipe, without influence on what is learned
SOURCE = "imagenet"
ELEVEN = (
    SOURCE,
    *"caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101".split(),
)
SHIFTED = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
FEW_SHOT, BASE_TO_NEW, CROSS_DATASET, DOMAIN = "few-shot", "base-to-new", "cross-dataset", "domain-generalisation"
TEXTS, INSTRUCTION = "texts", "instruction"
SETS = {FEW_SHOT: ELEVEN, BASE_TO_NEW: ELEVEN, CROSS_DATASET: ELEVEN, DOMAIN: (SOURCE, *SHIFTED)}


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
    """Where data comes from: images in a place, or a data set or task that is at hand.

    `data` is the user's own folder or table, or the data itself; None for a set known by name. The shots are drawn by
    `rule`. `broken` are images that are left out, as paths below the set's root.
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

    def load(self, shots: int | None, seed: int) -> Any:
        """Load the data set, or a task of captions or texts, with its shots drawn."""
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
        progress: CountProgress | None = None,
        known: Callable[[Sequence[Path]], Collection[Path]] | None = None,
    ) -> Origin:
        """Return the same with all images left out that cannot be read.

        An image that none of the `draws` (shots and seeds) takes is not looked at; those that `known` selects were
        decoded before as they are now.
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
            return ImageTable(self.data, self.root, shots, seed, protocol=self.rule)
        return ImageFolder(self.data, shots, seed, protocol=self.rule)


@dataclass(frozen=True)
class Cell:
    """One fit and its tests.

    `recipe` is what differs from the published recipe and from what the data set says. `shots` are training items a
    class: None for all, 0 where nothing is learned. A divided cell learns from the base classes and is tested on base
    and new ones.
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
        """
        identity = {
            "format": CELL_FORMAT,
            "backbone": [model.fingerprint, model.transform, str(model.dtype)],
            **self.describe(source.task),
            "data": identity_of(source),
            "tests": {name: identity_of(test) for name, test in tests.items()},
            **{name: getattr(source.data, name) for name in getattr(self.method, "reads", ())},
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


def identity_of(part: Part) -> list[Any]:
    """Say what of data and task decides what is computed, JSON-ready but for settings of tasks."""
    task, data = part.task, part.data
    if task.kind == "classification":
        return [data.fingerprint, data.template, list(data.templates)]
    settings = {one.name: getattr(task, one.name) for one in fields(task) if one.name not in {"data", "features"}}
    said = {name: getattr(data, name, None) for name in ("template", "verbalizer", "lexicon", "chosen_by")}
    metric = getattr(data, "metric", "exact")
    return [data.fingerprint, said | ({} if metric == "exact" else {"metric": metric}), settings]


def _test_part(data: Any) -> Any:
    """Leave out the images that are not tested on; captions and texts are not opened before they are used."""
    return replace(data, train=(), val=()) if isinstance(data, Dataset) else data


@dataclass(frozen=True)
class Contender:
    """What is compared: a method on a backbone, both named."""

    name: str
    method: Method
    backbone: str


@dataclass(frozen=True)
class Grid:
    """All that is compared.

    `shots` are training items a class, None for all; they are put in order. `recipe` is what differs from the published
    recipe and from what each data set says. Each fit is tested on the `targets` too. A divided grid learns from base
    classes and is tested on base and new ones.
    """

    sources: tuple[Origin, ...]
    contenders: tuple[Contender, ...]
    shots: tuple[int | None, ...] = (16,)
    seeds: tuple[int, ...] = (1, 2, 3)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[Origin, ...] = ()
    is_divided: bool = False

    def __post_init__(self) -> None:
        for part, name in (("sources", "tasks"), ("contenders", "methods"), ("shots", "shots"), ("seeds", "seeds")):
            values = [_name_of(value) for value in getattr(self, part)]
            if not values:
                raise UserError(f"{name} is empty, but a comparison needs at least one. Name one.")
            if any(values.count(value) > 1 for value in values):
                raise bad_value(name, ",".join(map(str, values)), "each may be named once", "Leave out the repetition.")
        refuse_idle_recipe(self.recipe, {one.name: one.method for one in self.contenders})
        for source in self.sources:
            others = [
                one for one in self.targets if one != source or len(self.sources) == 1
            ]  # that is of other sources
            tested = [source.name, *(one.name for one in others)]
            twice = [name for name in tested if tested.count(name) > 1]
            if twice:
                what = f"{twice[0]} is the name of two data sets that are tested on after learning from {source.name}"
                raise UserError(f"{what}, but each needs its own. Leave one out, or name it otherwise.")
            for target in self.targets:
                if target.kind != source.kind:
                    problem = f"it is for {target.kind}, and {source.name} for {source.kind}"
                    raise bad_value("targets", target.name, problem, "Give targets of the same kind.")
        object.__setattr__(self, "shots", tuple(sorted(self.shots, key=lambda n: math.inf if n is None else n)))

    def cells(self) -> tuple[Cell, ...]:
        """Make every cell once, those of one frozen model side by side."""
        cells: list[Cell] = []
        for combination in product(self.contenders, self.sources, self.shots, self.seeds):
            cell = self.cell(*combination)
            if cell not in cells:
                cells.append(cell)
        backbones = [contender.backbone for contender in self.contenders]
        return tuple(sorted(cells, key=lambda cell: (backbones.index(cell.backbone), cell.source.kind)))

    def cell(self, contender: Contender, source: Origin, shots: int | None, seed: int) -> Cell:
        """Make the cell of one combination, the same for several where recipe, shots or seed have no influence."""
        name, method, backbone = contender.name, contender.method, contender.backbone
        recipe = self.recipe if method.is_trained else {}
        if not (method.is_trained or method.needs_shots):
            shots, seed = 0, 0
        return Cell(name, source, method, backbone, recipe, shots, seed, self.targets, self.is_divided)


def without_broken(grid: Grid, device: str = "auto", progress: CountProgress | None = None) -> Grid:
    """Return the same grid without the images that cannot be read; those with stored features are not opened."""
    from mmprompt.models.dual_encoder.load import load_backbone
    from mmprompt.models.image_features import ImageFeatures

    known = ImageFeatures(load_backbone(grid.contenders[0].backbone, device)).stored

    draws, test_draw = list(product(grid.shots, grid.seeds)), [(None, grid.seeds[0])]
    sources = tuple(origin.without_broken(draws, SPLITS, progress, known) for origin in grid.sources)
    targets = tuple(origin.without_broken(test_draw, ("test",), progress, known) for origin in grid.targets)
    return replace(grid, sources=sources, targets=targets)


def _name_of(value: Any) -> Any:
    """Say what tells an entry of a grid from the others: data by its name, a contender by its name and backbone."""
    return (value.name, value.backbone) if isinstance(value, Contender) else getattr(value, "name", value)


def protocol_grid(
    protocol: str,
    origins: Sequence[Origin],
    contenders: Sequence[Contender],
    shots: Sequence[int | None],
    seeds: Sequence[int],
    recipe: Mapping[str, Any],
) -> Grid:
    """Return the grid of a protocol of the papers; of the transfer protocols the source is the first origin."""
    if protocol != FEW_SHOT and len(shots) != 1:
        shown = ",".join(map(str, shots))
        raise bad_value("shots", shown, f"{protocol} is measured at one number of shots", "Use `shots=16`.")
    if protocol in {CROSS_DATASET, DOMAIN}:
        if len(origins) < 2:
            advice = "Use `data=SOURCE,TARGET`."
            raise bad_value("data", origins[0].name, f"{protocol} needs a source and at least one target", advice)
        return Grid((origins[0],), tuple(contenders), tuple(shots), tuple(seeds), recipe, targets=tuple(origins[1:]))
    divided = protocol == BASE_TO_NEW
    return Grid(tuple(origins), tuple(contenders), tuple(shots), tuple(seeds), recipe, is_divided=divided)
