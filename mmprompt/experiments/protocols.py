"""The papers' protocols: which data sets, shots and classes each one takes, as a grid to be filled.

Their tables are in `layouts`; how a grid is computed is in `compare`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmprompt.errors import bad_value
from mmprompt.experiments.cells import Origin
from mmprompt.experiments.grid import Contender, Grid

SOURCE = "imagenet"
TEN = (
    "caltech101",
    "oxford_pets",
    "stanford_cars",
    "oxford_flowers",
    "food101",
    "fgvc_aircraft",
    "sun397",
    "dtd",
    "eurosat",
    "ucf101",
)
ELEVEN = (SOURCE, *TEN)
SHIFTED = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
FEW_SHOT, BASE_TO_NEW, CROSS_DATASET, DOMAIN = PROTOCOLS = (
    "few-shot",
    "base-to-new",
    "cross-dataset",
    "domain-generalisation",
)
SETS: Mapping[str, tuple[str, ...]] = {
    FEW_SHOT: ELEVEN,
    BASE_TO_NEW: ELEVEN,
    CROSS_DATASET: (SOURCE, *TEN),
    DOMAIN: (SOURCE, *SHIFTED),
}
SHOTS: Mapping[str, tuple[int, ...]] = {FEW_SHOT: (1, 2, 4, 8, 16)}
SEEDS = (1, 2, 3)


def protocol_grid(
    protocol: str,
    origins: Sequence[Origin],
    contenders: Sequence[Contender],
    shots: Sequence[int | None],
    seeds: Sequence[int],
    recipe: Mapping[str, Any],
) -> Grid:
    """The grid of a protocol.

    Args:
        protocol: one of `PROTOCOLS`.
        origins: the data sets; of the transfer protocols the source first, then its targets.
        contenders: what is compared.
        shots: training pictures a class; all protocols but few-shot take one number.
        seeds: the papers use 1, 2 and 3.
        recipe: what differs from the published recipe.
    Raises:
        UserError: a transfer protocol has no target, or several numbers of shots are given where one is expected.
    """
    if protocol != FEW_SHOT and len(shots) != 1:
        shown = ",".join(map(str, shots))
        raise bad_value("shots", shown, f"{protocol} is measured at one number of shots", "Use `shots=16`.")
    if protocol in {CROSS_DATASET, DOMAIN}:
        if len(origins) < 2:
            advice = "Use `data=SOURCE,TARGET`."
            raise bad_value("datasets", origins[0].name, f"{protocol} needs a source and at least one target", advice)
        return Grid((origins[0],), tuple(contenders), tuple(shots), tuple(seeds), recipe, targets=tuple(origins[1:]))
    divided = protocol == BASE_TO_NEW
    return Grid(tuple(origins), tuple(contenders), tuple(shots), tuple(seeds), recipe, is_divided=divided)
