"""The tables of the papers, filled with a comparison, published values beside.

All numbers are percent. Several seeds are shown as mean ± standard deviation, a single run with its 95 % interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmprompt.data.card import Reference
from mmprompt.experiments.averages import harmonic_mean
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
from mmprompt.experiments.summary import Comparison, Line
from mmprompt.reports.numbers import in_shots
from mmprompt.reports.tables import Table

AVERAGE = "average"
BLANK = "\N{EN DASH}"


def few_shot_table(comparison: Comparison) -> Table:
    """Accuracy by shots, a block a data set and one for their average (the layout of Zhou et al. 2022, CoOp)."""
    grid = comparison.grid
    columns: list[int | None] = [0] if any(line.shots == 0 for line in comparison.lines) else []
    columns += grid.shots
    rows: list[tuple[str, ...]] = []
    published: list[list[PublishedRow]] = []
    for source in grid.sources:
        for contender, label in zip(grid.contenders, comparison.labels, strict=True):
            found = [_exact(comparison, label, source.name, shots) for shots in columns]
            rows.append((source.name, label, contender.backbone, *map(cell_text, found)))
        published.append(few_shot_rows(references_of(source, comparison.official), columns))
        rows += [(source.name, *_published(row, columns)) for row in published[-1]]
    if len(grid.sources) > 1:
        tests = [(source.name, source.name) for source in grid.sources]
        for contender, label in zip(grid.contenders, comparison.labels, strict=True):
            lines = [_exact(comparison, label, grid.sources[0].name, shots) for shots in columns]
            means = [
                None if line is None else comparison.average(label, tests, shots)
                for line, shots in zip(lines, columns, strict=True)
            ]
            rows.append((AVERAGE, label, contender.backbone, *map(percent, means)))
        published.append(average_rows(published, few_shot_rows(_printed_averages(comparison), columns)))
        rows += [(AVERAGE, *_published(row, columns)) for row in published[-1]]
    headers = ("data set", "method", "backbone", *map(in_shots, columns))
    return Table(headers, tuple(rows), 3, notes_of(comparison, published))


def base_to_new_table(comparison: Comparison) -> Table:
    """Base, new and their harmonic mean, a block a data set and one for the average (Zhou et al. 2022, CoCoOp).

    The harmonic mean of the average is that of the two averages.
    """
    grid, shots = comparison.grid, comparison.grid.shots[0]
    rows: list[tuple[str, ...]] = []
    published: list[list[PublishedRow]] = []
    for source in grid.sources:
        for contender, label in zip(grid.contenders, comparison.labels, strict=True):
            lines = [comparison.find(label, source.name, part, shots) for part in (BASE, NEW)]
            means = [None if line is None else line.mean for line in lines]
            rows.append((source.name, label, contender.backbone, *map(cell_text, lines), _harmonic(*means)))
        published.append(base_to_new_rows(references_of(source, comparison.official), grid.shots))
        rows += [(source.name, *_published_halves(row)) for row in published[-1]]
    if len(grid.sources) > 1:
        for contender, label in zip(grid.contenders, comparison.labels, strict=True):
            averages = [
                comparison.average(label, [(source.name, part) for source in grid.sources], shots)
                for part in (BASE, NEW)
            ]
            row = (*map(percent, averages), _harmonic(*averages))
            rows.append((AVERAGE, label, contender.backbone, *row))
        published.append(average_rows(published, base_to_new_rows(_printed_averages(comparison), grid.shots)))
        rows += [(AVERAGE, *_published_halves(row)) for row in published[-1]]
    headers = ("data set", "method", "backbone", "base", "new", "H")
    return Table(headers, tuple(rows), 3, notes_of(comparison, published))


def transfer_table(comparison: Comparison, protocol: str) -> Table:
    """The source, each target, and the average over targets, a row a method (Zhou et al. 2022, CoCoOp).

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
        average = comparison.average(label, [(source.name, name) for name in names[1:]], shots)
        rows.append((label, contender.backbone, *map(cell_text, lines), percent(average)))
    sets = (source, *grid.targets) if source.name == SOURCE and source.data is None else ()
    references = {origin.name: references_of(origin, comparison.official) for origin in sets}
    published = transfer_rows(references, protocol, grid.shots)
    for row in published:
        targets = [row.values.get(name) for name in names[1:]]
        known = [value for value in targets if value is not None]
        average = sum(known) / len(known) / 100 if len(known) == len(targets) and known else None
        rows.append((*_published(row, names), percent(average)))
    headers = ("method", "backbone", f"source: {source.name}", *names[1:], AVERAGE)
    return Table(headers, tuple(rows), 2, notes_of(comparison, [published]))


def cell_text(line: Line | None) -> str:
    """A line's accuracy in percent, with what says how sure it is."""
    if line is None:
        return BLANK
    if line.std is not None:
        return f"{100 * line.mean:.2f} ± {100 * line.std:.2f}"
    low, high = line.interval
    return f"{100 * line.mean:.2f} [{100 * low:.1f}, {100 * high:.1f}]"


def percent(share: float | None) -> str:
    """A share in percent, a dash for none."""
    return BLANK if share is None else f"{100 * share:.2f}"


def notes_of(comparison: Comparison, published: Iterable[Sequence[PublishedRow]]) -> tuple[str, ...]:
    """What makes the rows comparable: how numbers were made, each method's settings, where published ones are from."""
    grid = comparison.grid
    seeds = ", ".join(map(str, grid.seeds))
    form = f"mean ± standard deviation over seeds {seeds}" if len(grid.seeds) > 1 else f"seed {seeds}"
    notes = [f"Ours: percent of test pictures right, {form}; [ ] is the 95 % bootstrap interval of a single run."]
    for label in comparison.labels:
        lines = [line for line in comparison.lines if line.label == label]
        if lines:
            notes.append(f"{label}: {settings_of(lines)}.")
    notes += data_notes(comparison)
    held_back = left_out((*grid.sources, *grid.targets), comparison.official)
    if held_back:
        sets = ", ".join(held_back)
        notes.append(
            f"No published rows on {sets}: they were measured on CoOp's split, these results on the official one."
        )
    sources: dict[str, list[str]] = {}
    for row in (row for rows in published for row in rows):
        for source in row.sources:
            named = f"{row.method} on {row.backbone}"
            if named not in sources.setdefault(source, []):
                sources[source].append(named)
    notes += [f"Published: {', '.join(names)} from {source}." for source, names in sources.items()]
    if sources:
        notes.append("Published rows stand on another backbone unless the same is named; compare methods within one.")
    return (*notes, *(f"Not computed: {what}: {why}" for what, why in comparison.failures.items()))


def data_notes(comparison: Comparison) -> list[str]:
    """What was decided on the user's behalf about each source and what is tested on it, each said once."""
    pairs = [(line.source, note) for line in comparison.lines for note in line.facts.get("data_notes", ())]
    return [f"{source}: {note}" for source, note in dict.fromkeys(pairs)]


def settings_of(lines: Sequence[Line]) -> str:
    """What has to be the same for two rows to be comparable, in one line."""
    facts = [line.facts for line in lines]
    parts = [
        f"backbone {lines[0].contender.backbone} ({facts[0]['backbone_fingerprint'][:12]})",
        f"precision {_each(fact['dtype'] for fact in facts)}",
        f"template {_each(fact['template'] for fact in facts)}",
        f"selection: {_each(fact['selection'] for fact in facts)}",
    ]
    settings = {key: value for key, value in facts[0]["settings"].items() if value not in (None, False)}
    if settings:
        parts.append(", ".join(f"{key} {value}" for key, value in settings.items()))
    recipes = [fact["recipe"] for fact in facts if "recipe" in fact]
    if recipes:
        names = ("optimizer", "lr", "epochs", "batch_size", "precision", "augment")
        parts.append(", ".join(f"{name} {_each(recipe[name] for recipe in recipes)}" for name in names))
    sizes = _each(format(fact["n_parameters"], ",") for fact in facts)
    parts.append(f"{sizes} trainable parameters")
    return "; ".join(parts)


def _each(values: Iterable[Any]) -> str:
    """The different values in order, as `50/100`."""
    return "/".join(dict.fromkeys(map(str, values)))


def _printed_averages(comparison: Comparison) -> tuple[Reference, ...]:
    """Averages that documents print, if the same eleven sets are compared on the split of the papers."""
    names = {source.name for source in comparison.grid.sources if source.data is None}
    return AVERAGES_OF_ELEVEN if names == set(ELEVEN) and not names & comparison.official else ()


def _exact(comparison: Comparison, label: str, source: str, shots: int | None) -> Line | None:
    """The line at these shots and no others: zero-shot stands in its own column."""
    line = comparison.find(label, source, source, shots)
    return line if line is not None and line.shots == shots else None


def _harmonic(base: float | None, new: float | None) -> str:
    return BLANK if base is None or new is None else percent(harmonic_mean(base, new))


def _published(row: PublishedRow, keys: Sequence[object]) -> tuple[str, ...]:
    values = [row.values.get(key) for key in keys]
    return (f"{row.method} (published)", row.backbone, *(BLANK if v is None else f"{v:.2f}" for v in values))


def _published_halves(row: PublishedRow) -> tuple[str, ...]:
    base, new = (row.values[part] / 100 for part in (BASE, NEW))
    return (*_published(row, (BASE, NEW)), _harmonic(base, new))


LAYOUTS: Mapping[str, Any] = {
    "few-shot": few_shot_table,
    "base-to-new": base_to_new_table,
    "cross-dataset": lambda comparison: transfer_table(comparison, "cross-dataset"),
    "domain-generalisation": lambda comparison: transfer_table(comparison, "domain-generalisation"),
}
