"""The tables of the papers, filled with a comparison, published values beside.

All numbers are percent. Several seeds are shown as mean ± standard deviation, a single run with its 95 % interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

from mmprompt.data.card import Reference
from mmprompt.experiments.cells import BASE, NEW
from mmprompt.experiments.protocols import ELEVEN, SOURCE
from mmprompt.experiments.published import (
    PublishedRow,
    average_rows,
    base_to_new_rows,
    few_shot_rows,
    left_out,
    references_of,
    transfer_rows,
)
from mmprompt.experiments.published_averages import AVERAGES_OF_ELEVEN
from mmprompt.experiments.summary import Comparison, Line, average
from mmprompt.reports.numbers import in_shots
from mmprompt.reports.tables import Table

AVERAGE = "average"
BLANK = "\N{EN DASH}"


def few_shot_table(comparison: Comparison) -> Table:
    """Return accuracy by shots, a block a data set and one for their average (the layout of Zhou et al. 2022, CoOp)."""
    grid = comparison.grid
    columns: list[int | None] = [0] if any(line.shots == 0 for line in comparison.lines) else []
    columns += grid.shots

    def line_at(label: str, source: str, shots: int | None) -> Line | None:
        line = comparison.find(label, source, source, shots)
        return line if line is not None and line.shots == shots else None  # zero-shot stands in its own column

    rows, published = _blocks(comparison, columns, line_at, lambda references: few_shot_rows(references, columns))
    headers = ("data set", "method", "backbone", *map(in_shots, columns))
    return Table(headers, rows, 3, notes_of(comparison, published))


def base_to_new_table(comparison: Comparison) -> Table:
    """Return base, new and their harmonic mean, a block a data set and one for the average (Zhou et al. 2022, CoCoOp).

    The harmonic mean of the average is that of the two averages.
    """
    shots = comparison.grid.shots

    def line_at(label: str, source: str, part: str) -> Line | None:
        return comparison.find(label, source, part, shots[0])

    rows, published = _blocks(
        comparison, (BASE, NEW), line_at, lambda references: base_to_new_rows(references, shots), has_harmonic=True
    )
    headers = ("data set", "method", "backbone", "base", "new", "H")
    return Table(headers, rows, 3, notes_of(comparison, published))


def _blocks(
    comparison: Comparison,
    keys: Sequence[Any],
    line_at: Callable[[str, str, Any], Line | None],
    published_rows: Callable[[Sequence[Reference]], list[PublishedRow]],
    has_harmonic: bool = False,
) -> tuple[tuple[tuple[str, ...], ...], list[list[PublishedRow]]]:
    """Return a block of rows for each data set and one for their average, and the published rows in each.

    Args:
        comparison: what is shown.
        keys: of the columns.
        line_at: finds the line of a method, a data set and a column.
        published_rows: chooses those rows of published numbers that have these columns.
        has_harmonic: end each row in the harmonic mean of its two values.
    """
    grid = comparison.grid
    rows: list[tuple[str, ...]] = []
    published: list[list[PublishedRow]] = []

    def ending(values: Sequence[float | None]) -> tuple[str, ...]:
        if not has_harmonic:
            return ()
        base, new = values
        return (percent(None if base is None or new is None else harmonic_mean(base, new)),)

    def add_published(block: str, block_rows: list[PublishedRow]) -> None:
        published.append(block_rows)
        for row in block_rows:
            shares = [row.values[key] / 100 if key in row.values else None for key in keys]
            rows.append((block, *published_cells(row, keys), *ending(shares)))

    for source in grid.sources:
        for contender, label in zip(grid.contenders, comparison.labels, strict=True):
            lines = [line_at(label, source.name, key) for key in keys]
            means = [None if line is None else line.mean for line in lines]
            rows.append((source.name, label, contender.backbone, *map(cell_text, lines), *ending(means)))
        add_published(source.name, published_rows(references_of(source, comparison.official)))
    if len(grid.sources) > 1:
        for contender, label in zip(grid.contenders, comparison.labels, strict=True):
            means = [average([line_at(label, source.name, key) for source in grid.sources]) for key in keys]
            rows.append((AVERAGE, label, contender.backbone, *map(percent, means), *ending(means)))
        # printed averages: if the same eleven sets are compared on the split of the papers
        names = {source.name for source in grid.sources if source.data is None}
        printed = AVERAGES_OF_ELEVEN if names == set(ELEVEN) and not names & comparison.official else ()
        add_published(AVERAGE, average_rows(published, published_rows(printed)))
    return tuple(rows), published


def transfer_table(comparison: Comparison, protocol: str) -> Table:
    """Return the source, each target, and the average over targets, a row a method (Zhou et al. 2022, CoCoOp).

    Args:
        comparison: with one source.
        protocol: `cross-dataset` or `domain-generalisation`, which says what published rows stand beside; those that
            are known all learned from ImageNet.
    """
    grid = comparison.grid
    source, shots = grid.sources[0], grid.shots[0]
    names = [source.name, *(target.name for target in grid.targets)]
    rows: list[tuple[str, ...]] = []
    for contender, label in zip(grid.contenders, comparison.labels, strict=True):
        lines = [comparison.find(label, source.name, name, shots) for name in names]
        rows.append((label, contender.backbone, *map(cell_text, lines), percent(average(lines[1:]))))
    sets = (source, *grid.targets) if source.name == SOURCE and source.data is None else ()
    references = {origin.name: references_of(origin, comparison.official) for origin in sets}
    published = transfer_rows(references, protocol, grid.shots)
    for row in published:
        known = [row.values[name] for name in names[1:] if name in row.values]
        mean = sum(known) / len(known) / 100 if known and len(known) == len(grid.targets) else None
        rows.append((*published_cells(row, names), percent(mean)))
    headers = ("method", "backbone", f"source: {source.name}", *names[1:], AVERAGE)
    return Table(headers, tuple(rows), 2, notes_of(comparison, [published]))


def harmonic_mean(base: float, new: float) -> float:
    """Return the harmonic mean of base and new accuracy (Zhou et al. 2022, CoCoOp, section 4.1); 0 if one is 0."""
    return 2 * base * new / (base + new) if base + new else 0.0


def cell_text(line: Line | None) -> str:
    """Return a line's accuracy in percent, with its deviation over seeds or the interval of a single run."""
    if line is None:
        return BLANK
    if line.std is not None:
        return f"{100 * line.mean:.2f} ± {100 * line.std:.2f}"
    low, high = line.interval
    return f"{100 * line.mean:.2f} [{100 * low:.1f}, {100 * high:.1f}]"


def percent(share: float | None) -> str:
    """Return a share in percent with two digits, a dash for none."""
    return BLANK if share is None else f"{100 * share:.2f}"


def published_cells(row: PublishedRow, keys: Sequence[object]) -> tuple[str, ...]:
    """Return the name, backbone and values of a published row, dashes where there are none."""
    values = [f"{row.values[key]:.2f}" if key in row.values else BLANK for key in keys]
    return (f"{row.method} (published)", row.backbone, *values)


def notes_of(comparison: Comparison, published: Iterable[Sequence[PublishedRow]]) -> tuple[str, ...]:
    """Say what makes rows comparable: how numbers were made, each method's settings, where published ones are from."""
    grid = comparison.grid
    seeds = ", ".join(map(str, grid.seeds))
    form = f"mean ± standard deviation over seeds {seeds}" if len(grid.seeds) > 1 else f"seed {seeds}"
    notes = [f"Ours: percent of test pictures right, {form}; [ ] is the 95 % bootstrap interval of a single run."]
    for label in comparison.labels:
        lines = [line for line in comparison.lines if line.label == label]
        notes += [f"{label}: {settings_of(lines)}."] if lines else []
    notes += dict.fromkeys(
        f"{line.source}: {note}" for line in comparison.lines for note in line.facts.get("data_notes", ())
    )
    held_back = ", ".join(left_out((*grid.sources, *grid.targets), comparison.official))
    if held_back:
        notes.append(
            f"No published rows on {held_back}: they were measured on CoOp's split, these results on the official one."
        )
    sources: dict[str, dict[str, None]] = {}
    for row in chain.from_iterable(published):
        for source in row.sources:
            sources.setdefault(source, {})[f"{row.method} on {row.backbone}"] = None
    notes += [f"Published: {', '.join(names)} from {source}." for source, names in sources.items()]
    if sources:
        notes.append("Published rows stand on another backbone unless the same is named; compare methods within one.")
    return (*notes, *(f"Not computed: {what}: {why}" for what, why in comparison.failures.items()))


def settings_of(lines: Sequence[Line]) -> str:
    """Say in one line what has to be the same for two rows to be comparable; different values as `50/100`."""
    facts = [line.facts for line in lines]

    def each(values: Iterable[Any]) -> str:
        return "/".join(dict.fromkeys(map(str, values)))

    parts = [
        f"backbone {lines[0].contender.backbone} ({facts[0]['backbone_fingerprint'][:12]})",
        f"precision {each(fact['dtype'] for fact in facts)}",
        f"template {each(fact['template'] for fact in facts)}",
        f"selection: {each(fact['selection'] for fact in facts)}",
        ", ".join(f"{name} {value}" for name, value in facts[0]["settings"].items() if value not in (None, False)),
    ]
    recipes = [fact["recipe"] for fact in facts if "recipe" in fact]
    if recipes:
        names = ("optimizer", "lr", "epochs", "batch_size", "precision", "augment")
        parts.append(", ".join(f"{name} {each(recipe[name] for recipe in recipes)}" for name in names))
    parts.append(f"{each(format(fact['n_parameters'], ',') for fact in facts)} trainable parameters")
    return "; ".join(part for part in parts if part)


LAYOUTS: Mapping[str, Callable[[Comparison], Table]] = {
    "few-shot": few_shot_table,
    "base-to-new": base_to_new_table,
    "cross-dataset": partial(transfer_table, protocol="cross-dataset"),
    "domain-generalisation": partial(transfer_table, protocol="domain-generalisation"),
}
