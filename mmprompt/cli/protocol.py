"""`mmprompt protocol`: the papers' protocols, each one command that ends in their table, published values beside."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

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


def run(protocol: str, arguments: Sequence[str], prog: str) -> None:
    """Fill and show the table of a protocol.

    Raises:
        UserError: something in the call or the data is wrong.
        RunFailed: some cells could not be computed.
    """
    shots = ",".join(map(str, SHOTS.get(protocol, ONE_NUMBER)))
    defaults = {"shots": shots, "out": f"runs/{protocol}"}
    call = read_grid_call(arguments, prog, DESCRIPTIONS[protocol], defaults)
    given = call.compared
    origins = call.origins(SETS[protocol])
    seeds = counts_in("seed", given.seed)
    grid = protocol_grid(protocol, origins, call.contenders, shots_in(given.shots), seeds, call.recipe)
    show(call, grid, protocol, command_of(arguments, prog))


run_few_shot = partial(run, FEW_SHOT)
run_base_to_new = partial(run, BASE_TO_NEW)
run_cross_dataset = partial(run, CROSS_DATASET)
run_domain_generalisation = partial(run, DOMAIN)
