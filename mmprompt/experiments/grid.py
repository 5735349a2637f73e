"""Grids of cells: all combinations of data sets, backbones, methods, shots and seeds, checked before any is computed.

It makes cells and their keys; computing them is the workers' business, and what came out that of `summary`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from mmprompt.core.method import settled
from mmprompt.data.splits import SPLITS, Dataset
from mmprompt.errors import UserError, bad_value
from mmprompt.experiments.cells import Cell, Origin, cell_key, simplify

if TYPE_CHECKING:
    from mmprompt.models.dual_encoder.interface import DualEncoder


@dataclass(frozen=True)
class Contender:
    """What is compared: a method on a backbone, with its settings.

    Args:
        backbone: the name of the frozen model.
        method: a method by name.
        settings: of the method.
    """

    backbone: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """All that is compared.

    Args:
        sources: the data sets that are learned from.
        contenders: what is compared.
        shots: training pictures a class, each at least 1, None for all.
        seeds: the papers use 1, 2 and 3.
        recipe: what differs from the published recipe and from what each data set says.
        targets: further data sets that each fit is tested on.
        is_divided: learn from base classes, test on base and new ones.
    """

    sources: tuple[Origin, ...]
    contenders: tuple[Contender, ...]
    shots: tuple[int | None, ...] = (16,)
    seeds: tuple[int, ...] = (1, 2, 3)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[Origin, ...] = ()
    is_divided: bool = False

    def __post_init__(self) -> None:
        for name in ("sources", "contenders", "shots", "seeds"):
            values = getattr(self, name)
            if not values:
                raise UserError(f"{name} is empty, but a comparison needs at least one. Name one.")
            if any(values.count(value) > 1 for value in values):
                raise bad_value(name, ",".join(map(str, values)), "each may be named once", "Leave out the repetition.")

    def cells(self) -> tuple[Cell, ...]:
        """Every cell once, those of one backbone side by side."""
        combinations = product(self.contenders, self.sources, self.shots, self.seeds)
        cells = [self.cell(*combination) for combination in combinations]
        unique: list[Cell] = []
        for cell in sorted(cells, key=lambda cell: [c.backbone for c in self.contenders].index(cell.backbone)):
            if cell not in unique:
                unique.append(cell)
        return tuple(unique)

    def cell(self, contender: Contender, source: Origin, shots: int | None, seed: int) -> Cell:
        """The cell of one combination, the same for several where shots or seed have no influence."""
        return simplify(
            Cell(
                source,
                contender.backbone,
                contender.method,
                contender.settings,
                self.recipe,
                shots,
                seed,
                self.targets,
                self.is_divided,
            )
        )


@dataclass(frozen=True)
class Planned:
    """A cell, its key, and the pictures that it needs."""

    cell: Cell
    key: str
    data: Dataset
    tests: Mapping[str, Dataset]


def plan(cells: Sequence[Cell], device: str = "auto") -> list[Planned]:
    """Check every cell and find its key, before anything is computed.

    Args:
        cells: those of one backbone side by side.
        device: as for `load_backbone`.
    Raises:
        UserError: a data set is missing, a setting is wrong, or a backbone cannot carry a method.
    """
    from mmprompt.models.dual_encoder.load import load_backbone

    planned: list[Planned] = []
    loaded: dict[Any, tuple[Dataset, dict[str, Dataset]]] = {}
    backbone: DualEncoder | None = None
    name = ""
    for cell in cells:
        if backbone is None or cell.backbone != name:
            backbone, name = load_backbone(cell.backbone, device), cell.backbone
        draw = (cell.source, cell.targets, cell.is_divided, cell.shots, cell.seed)
        if draw not in loaded:
            loaded[draw] = cell.load()
        data, tests = loaded[draw]
        _try_out(cell, backbone, data, tests)
        planned.append(Planned(cell, cell_key(cell, backbone, data, tests), data, tests))
    return planned


def without_broken(grid: Grid, device: str = "auto", progress: Callable[[int, int], None] | None = None) -> Grid:
    """The same grid with all pictures left out that cannot be read.

    Args:
        grid: whose pictures are opened, but for those whose features on its first backbone are stored.
        device: as for `load_backbone`.
        progress: called with how many of a data set are opened and how many there are.
    Raises:
        UserError: something about a data set is wrong.
    """
    from mmprompt.models.dual_encoder.load import load_backbone
    from mmprompt.models.image_features import ImageFeatures

    draws = list(product(grid.shots, grid.seeds))
    known = ImageFeatures(load_backbone(grid.contenders[0].backbone, device)).stored
    sources = tuple(source.without_broken(draws, SPLITS, progress, known) for source in grid.sources)
    whole = [(None, grid.seeds[0])]
    targets = tuple(target.without_broken(whole, ("test",), progress, known) for target in grid.targets)
    return replace(grid, sources=sources, targets=targets)


def _try_out(cell: Cell, backbone: DualEncoder, data: Dataset, tests: Mapping[str, Dataset]) -> None:
    """Refuse now what the cell would be refused for later."""
    from mmprompt.classification.task import ClassificationTask

    for test in tests.values():
        if not test.test:
            raise UserError(f"{test.name} has no test pictures, so nothing can be compared on it. Leave it out.")
    method = settled(cell.make(), cell.backbone, "classification")
    if method.is_trained:
        cell.make_recipe(data)
    ClassificationTask.of(data).predictor(method, backbone, seed=0)


def read_pictures(
    planned: Sequence[Planned], device: str = "auto", progress: Callable[[int, int], None] | None = None
) -> None:
    """Encode the pictures of cells once, so that a broken one is met now and the workers find features in the store.

    Args:
        planned: the cells that are to be computed.
        device: as for `load_backbone`.
        progress: called with how many pictures are encoded and how many are missing.
    Raises:
        UserError: a picture cannot be read.
    """
    from mmprompt.models.dual_encoder.load import load_backbone
    from mmprompt.models.image_features import ImageFeatures

    for name in dict.fromkeys(one.cell.backbone for one in planned):
        mine = [one for one in planned if one.cell.backbone == name]
        sets = [data for one in mine for data in (one.data, *one.tests.values())]
        paths = [item.path for data in sets for split in SPLITS for item in data.items(split)]
        ImageFeatures(load_backbone(name, device), progress=progress).of(list(dict.fromkeys(paths)))
