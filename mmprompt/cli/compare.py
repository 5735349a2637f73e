"""`mmprompt compare`: a grid of methods, data sets, shots and seeds, computed once and shown as table and report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmprompt.cli.grid import GridCall, read_grid_call
from mmprompt.experiments.grid import Grid, without_broken
from mmprompt.experiments.protocols import FEW_SHOT, protocol_grid
from mmprompt.files import write_json
from mmprompt.progress import ProgressDisplay
from mmprompt.terminal.lists import counts_in, shots_in
from mmprompt.terminal.output import Output
from mmprompt.terminal.run_folder import check_place, command_of
from mmprompt.training.problem import RunFailed

if TYPE_CHECKING:
    from mmprompt.experiments.summary import Comparison


DESCRIPTION = "Compare methods and baselines over data sets, shots and seeds. What was computed once is not again."
STDOUT = Path("-")


def run(arguments: Sequence[str], prog: str) -> None:
    """Compute what is missing of a grid and show all of it.

    Raises:
        UserError: something in the call or the data is wrong; nothing is computed then.
        RunFailed: some cells could not be computed; the others are shown.
    """
    call = read_grid_call(arguments, prog, DESCRIPTION)
    given = call.compared
    grid = protocol_grid(
        FEW_SHOT, call.origins(), call.contenders, shots_in(given.shots), counts_in("seed", given.seed), call.recipe
    )
    show(call, grid, FEW_SHOT, command_of(arguments, prog))


def show(call: GridCall, grid: Grid, protocol: str, command: str) -> None:
    """Compute a grid, print its table, and write tables, figures and report.

    Raises:
        UserError: something in the grid is wrong; nothing is computed then.
        RunFailed: some cells could not be computed; the others are shown.
    """
    from mmprompt.experiments.compare import compare_grid

    given = call.compared
    output = Output(given.json == STDOUT)
    check_place(given.out)
    check_place(given.results)
    n_cells = len(grid.cells())
    methods = ", ".join(dict.fromkeys(one.name for one in grid.contenders))
    sets = ", ".join(one.name for one in (*grid.sources, *grid.targets))
    count = "1 cell" if n_cells == 1 else f"{n_cells:,} cells"
    output.say(f"{count}: {methods} on {sets}; shots {given.shots}, seeds {given.seed}.")
    output.say(f"Finished ones are kept in {given.results}; the same command goes on where it was stopped.")
    with ProgressDisplay() as progress:
        if given.skip_broken:
            grid = without_broken(grid, given.device, progress.count("opened"))
        comparison = compare_grid(grid, given.results, given.workers, given.device, progress.show)
    conclude(output, call, comparison, protocol, command)


def conclude(output: Output, call: GridCall, comparison: Comparison, protocol: str, command: str) -> None:
    """Print the table, say where everything lies, and fail if a cell did.

    Raises:
        RunFailed: some cells could not be computed.
    """
    from mmprompt.experiments.comparison_report import write_comparison
    from mmprompt.experiments.layouts import LAYOUTS
    from mmprompt.reports.pages import missing_extra

    given = call.compared
    if comparison.lines:
        table = LAYOUTS[protocol](comparison)
        output.say()
        output.table(table.headers, table.rows, range(table.n_names, len(table.headers)))
        output.say()
        for note in table.notes:
            output.say(note, "dim")
        problem = missing_extra()
        report = None if problem else write_comparison(comparison, given.out, protocol, command)
        output.say()
        output.say(f"report   {report or problem}")
        output.say(f"tables   {given.out}/table.txt, .md, .csv, .tex" if report else "")
    content = {"protocol": protocol, "command": command, **comparison.to_json()}
    if given.json is not None and given.json != STDOUT:
        write_json(given.json, content)
        output.say(f"numbers  {given.json}")
    output.document(content)
    if comparison.failures:
        what, why = next(iter(comparison.failures.items()))
        raise RunFailed(f"{len(comparison.failures)} cells could not be computed, the first: {what}: {why}")
