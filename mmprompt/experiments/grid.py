"""Grids of cells: all combinations of data sets, methods on backbones, shots and seeds.

It makes cells; checking and computing them is the business of `compute`, and what came out that of `summary`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from mmprompt.core.method import Method
from mmprompt.data.splits import SPLITS
from mmprompt.errors import UserError, bad_value
from mmprompt.experiments.cells import Cell, Origin, simplify


@dataclass(frozen=True)
class Contender:
    """What is compared: a method on a backbone.

    Args:
        name: of the method, for people.
        method: with its settings.
        backbone: the name of the frozen model.
    """

    name: str
    method: Method
    backbone: str


@dataclass(frozen=True)
class Grid:
    """All that is compared.

    Args:
        sources: the data sets that are learned from.
        contenders: what is compared.
        shots: training items a class, each at least 1, None for all.
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
            values = [_name_of(value) for value in getattr(self, name)]
            if not values:
                raise UserError(f"{name} is empty, but a comparison needs at least one. Name one.")
            if any(values.count(value) > 1 for value in values):
                raise bad_value(name, ",".join(map(str, values)), "each may be named once", "Leave out the repetition.")

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
        """Make the cell of one combination, the same for several where shots or seed have no influence."""
        name, method, backbone = contender.name, contender.method, contender.backbone
        targets, is_divided = self.targets, self.is_divided
        return simplify(Cell(name, source, method, backbone, self.recipe, shots, seed, targets, is_divided))


def without_broken(grid: Grid, device: str = "auto", progress: Callable[[int, int], None] | None = None) -> Grid:
    """Return the same grid with all images left out that cannot be read.

    Args:
        grid: whose images are opened, but for those whose features on its first backbone are stored.
        device: as for `load_backbone`.
        progress: called with how many of a data set are opened and how many there are.
    Raises:
        UserError: something about a data set is wrong.
    """
    from mmprompt.models.dual_encoder.load import load_backbone
    from mmprompt.models.image_features import ImageFeatures

    known = ImageFeatures(load_backbone(grid.contenders[0].backbone, device)).stored

    def sound(origins: Sequence[Origin], draws: list[tuple[int | None, int]], *splits: str) -> tuple[Origin, ...]:
        return tuple(origin.without_broken(draws, splits, progress, known) for origin in origins)

    sources = sound(grid.sources, list(product(grid.shots, grid.seeds)), *SPLITS)
    return replace(grid, sources=sources, targets=sound(grid.targets, [(None, grid.seeds[0])], "test"))


def _name_of(value: Any) -> Any:
    """Say what tells an entry of a grid from the others: data by its name, a contender by its name and backbone."""
    return (value.name, value.backbone) if isinstance(value, Contender) else getattr(value, "name", value)
