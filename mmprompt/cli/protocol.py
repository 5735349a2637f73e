"""`mmprompt protocol`: the papers' protocols, each one command that ends in their table, published values beside."""

from __future__ import annotations

from collections.abc import Sequence

from mmprompt.cli.compare import show
from mmprompt.cli.grid import read_grid_call
from mmprompt.experiments.protocols import (
    BASE_TO_NEW,
    CROSS_DATASET,
    DOMAIN,
    FEW_SHOT,
    SETS,
    SHOTS,
    protocol_grid,
)
from mmprompt.terminal.lists import counts_in, shots_in
from mmprompt.terminal.run_folder import command_of

ONE_NUMBER = (16,)
DESCRIPTIONS = {
    FEW_SHOT: "Accuracy by shots on each data set and on average; by default the eleven sets of the papers.",
    BASE_TO_NEW: "Learn from the first half of the classes, test on both halves; by default the eleven sets.",
    CROSS_DATASET: "Learn from the first data set, test on the others; by default ImageNet and ten others.",
    DOMAIN: "Learn from the first data set, test on shifted ones; by default ImageNet and its four variants.",
}


def run_few_shot(arguments: Sequence[str], prog: str) -> None:
    """Fill and show the few-shot table.

    Raises:
        UserError: something in the call or the data is wrong.
        RunFailed: some cells could not be computed.
    """
    _run(FEW_SHOT, arguments, prog)


def run_base_to_new(arguments: Sequence[str], prog: str) -> None:
    """Fill and show the base-to-new table; raises as `run_few_shot`."""
    _run(BASE_TO_NEW, arguments, prog)


def run_cross_dataset(arguments: Sequence[str], prog: str) -> None:
    """Fill and show the cross-dataset table; raises as `run_few_shot`."""
    _run(CROSS_DATASET, arguments, prog)


def run_domain_generalisation(arguments: Sequence[str], prog: str) -> None:
    """Fill and show the domain-generalisation table; raises as `run_few_shot`."""
    _run(DOMAIN, arguments, prog)


def _run(protocol: str, arguments: Sequence[str], prog: str) -> None:
    shots = ",".join(map(str, SHOTS.get(protocol, ONE_NUMBER)))
    defaults = {"shots": shots, "out": f"runs/{protocol}"}
    call = read_grid_call(arguments, prog, DESCRIPTIONS[protocol], defaults)
    given = call.compared
    origins = call.origins(SETS[protocol])
    seeds = counts_in("seed", given.seed)
    grid = protocol_grid(protocol, origins, call.contenders, shots_in(given.shots), seeds, call.recipe)
    show(call, grid, protocol, command_of(arguments, prog))
