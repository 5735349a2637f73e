"""The tables of the papers, filled with a comparison, published values beside.

All numbers are percent. Several seeds are shown as mean ± standard deviation, a single run with its 95 % interval.
Published ones are those of the data sets' cards and `averages_of_eleven`; what neither says is left blank. All of them
were measured on the split that CoOp published, so they never stand beside results on another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import chain
from statistics import fmean, harmonic_mean, pstdev
from typing import Any

from mmprompt.data.card import Reference
from mmprompt.data.catalog import cards_folder, read_card
from mmprompt.data.strict_yaml import read_yaml
from mmprompt.experiments.grid import BASE, ELEVEN, NEW, SOURCE, TEXTS, Origin
from mmprompt.experiments.summary import Comparison, Line, average
from mmprompt.reports.tables import Table, between, in_shots, signed
from mmprompt.settings import validate

AVERAGE = "average"
COSTS = ("n_parameters", "file_bytes", "cpu_seconds", "peak_bytes")
COSTS_NOTE = (
    "What a training takes ({}), as a mean over seeds and data sets. Memory is that of the GPU, on a CPU that of the "
    "whole process, with its libraries and the frozen model."
)
BLANK = "\N{EN DASH}"


@dataclass(frozen=True)
class _Printed:
    reference: tuple[Reference, ...]


@cache
def averages_of_eleven() -> tuple[Reference, ...]:
    """Read the averages over the eleven sets as documents print them."""
    path = cards_folder() / "averages" / "eleven.yaml"
    return validate(_Printed, read_yaml(path), path).reference


def few_shot_table(comparison: Comparison) -> Table:
    """Return accuracy by shots, a block a data set, one for their average (Zhou et al. 2022, CoOp) and one a target."""
    grid = comparison.grid
    columns: list[int | None] = [0] if any(line.shots == 0 for line in comparison.lines) else []
    columns += grid.shots

    def line_at(label: str, source: str, shots: int | None, target: str = "") -> Line | None:
        line = comparison.find(label, source, target or source, shots)
        return line if line is not None and line.shots == shots else None  # zero-shot stands in its own column

    rows, published = _blocks(comparison, columns, line_at, lambda references: few_shot_rows(references, columns))
    for source, target in comparison.tests:
        for contender, label in zip(grid.contenders, comparison.labels, strict=True) if target != source else ():
            cells = [cell_text(line_at(label, source, shots, target)) for shots in columns]
            rows += ((f"{source}: {target}", label, contender.backbone, *cells),)
    headers = ("data set", "method", "backbone", *map(in_shots, columns))
    return Table(headers, rows, 3, notes_of(comparison, published))


def texts_table(comparison: Comparison) -> Table:
    """Return the few-shot table, and what each method gains at the most shots over the best of the instructions."""
    table, shots = few_shot_table(comparison), comparison.grid.shots[-1]
    pairs = zip(comparison.lines, comparison.gains, strict=True)
    gains = {(line.source, line.label): gain for line, gain in pairs if line.shots in (shots, 0)}
    rows = []
    for row in table.rows:
        gain = gains.get((row[0], row[1]))
        rows.append((*row, "" if gain is None else f"{signed(gain.value)} ({between(gain.interval, True)})"))
    if not any(row[-1] for row in rows):
        return table
    note = (
        "Gains are over the best of the hand-written instructions, which is chosen on these very test rows and so "
        "favoured; intervals are bootstrapped in pairs, over seeds and rows together."
    )
    return Table((*table.headers, "gain, points (95 %)"), tuple(rows), table.n_names, (note, *table.notes))


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

    `line_at` finds the line of a method, a data set and a column; `published_rows` chooses the published rows that have
    these columns; `has_harmonic` ends each row in the harmonic mean of its two values (Zhou et al. 2022, CoCoOp, 4.1).
    """
    grid = comparison.grid
    rows: list[tuple[str, ...]] = []
    published: list[list[PublishedRow]] = []

    def ending(values: Sequence[float | None]) -> tuple[str, ...]:
        if not has_harmonic:
            return ()
        base, new = values
        return (percent(None if base is None or new is None else harmonic_mean((base, new))),)

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
            found = [[line_at(label, source.name, key) for source in grid.sources] for key in keys]
            means = list(map(average, found))
            rows.append((AVERAGE, label, contender.backbone, *map(average_text, found), *ending(means)))
        # printed averages: if the same eleven sets are compared on the split of the papers
        names = {source.name for source in grid.sources if source.data is None}
        printed = averages_of_eleven() if names == set(ELEVEN) and not names & comparison.official else ()
        add_published(AVERAGE, average_rows(published, published_rows(printed)))
    return tuple(rows), published


def transfer_table(comparison: Comparison, protocol: str) -> Table:
    """Return the source, each target, and the average over targets, a row a method (Zhou et al. 2022, CoCoOp).

    The protocol says what published rows stand beside; those that are known all learned from ImageNet.
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


def cost_table(comparison: Comparison) -> Table:
    """Return what each method costs at the most shots: numbers learned, file size, seconds, peak memory."""
    shots = comparison.grid.shots[-1]
    rows = []
    for contender, label in zip(comparison.grid.contenders, comparison.labels, strict=True):
        lines = [comparison.find(label, source, target, shots) for source, target in comparison.tests]
        found = [line.facts for line in lines if line is not None and "peak_bytes" in line.facts]
        if found:
            mean = {name: fmean(facts[name] for facts in found) for name in COSTS}
            learned, seconds = f"{mean['n_parameters']:,.0f}", f"{mean['cpu_seconds']:.1f}"
            memory = f"{mean['peak_bytes'] / 1e6:,.0f}" if mean["peak_bytes"] else BLANK
            rows.append((label, contender.backbone, learned, f"{mean['file_bytes'] / 1e3:,.0f}", seconds, memory))
    headers = ("method", "backbone", "numbers learned", "file, kB", "CPU s", "peak memory, MB")
    return Table(headers, tuple(rows), 2, (COSTS_NOTE.format(in_shots(shots)),) if rows else ())


def cell_text(line: Line | None) -> str:
    """Return a line's accuracy in percent, with its deviation over seeds or the interval of a single run."""
    if line is None:
        return BLANK
    if line.std is not None:
        return f"{100 * line.mean:.2f} ± {100 * line.std:.2f}"
    low, high = line.interval
    return f"{100 * line.mean:.2f} [{100 * low:.1f}, {100 * high:.1f}]"


def average_text(lines: Sequence[Line | None]) -> str:
    """Return the average over tests in percent, with its deviation over seeds where all have the same several."""
    mean = average(lines)
    values = [line.values for line in lines if line is not None]
    if mean is None or len(set(map(len, values))) > 1 or len(values[0]) < 2:
        return percent(mean)
    return f"{100 * mean:.2f} ± {100 * pstdev(map(fmean, zip(*values, strict=True))):.2f}"


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
    are_texts = grid.sources[0].kind == "language"
    are_rouge = [origin.name for origin in grid.sources if are_texts and origin.data.task().data.metric == "rouge_l"]
    right = f"percent of test {'texts' if are_texts else 'images'} right"
    right += f" (of {', '.join(are_rouge)}: ROUGE-L)" if are_rouge else ""
    notes = [f"Ours: {right}, {form}; [ ] is the 95 % bootstrap interval of a single run."]
    for label in comparison.labels:
        lines = [line for line in comparison.lines if line.label == label]
        notes += [f"{label}: {settings_of(lines)}."] if lines else []
    notes += dict.fromkeys(
        f"{line.source}: {note}" for line in comparison.lines for note in line.facts.get("data_notes", ())
    )
    official = [origin for origin in (*grid.sources, *grid.targets) if origin.name in comparison.official]
    held_back = ", ".join(origin.name for origin in official if references_of(origin))
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
        f"template {each(' / '.join(fact['template'].splitlines()) for fact in facts)}",
        f"selection: {each(fact['selection'] for fact in facts)}",
        ", ".join(f"{name} {value}" for name, value in facts[0]["settings"].items() if value not in (None, False)),
    ]
    recipes = [fact["recipe"] for fact in facts if "recipe" in fact]
    if recipes:
        names = ("optimizer", "lr", "epochs", "batch_size", "precision", "augment")
        parts.append(", ".join(f"{name} {each(recipe[name] for recipe in recipes)}" for name in names))
    parts.append(f"{each(format(fact['n_parameters'], ',') for fact in facts)} trainable parameters")
    return "; ".join(part for part in parts if part)


@dataclass(frozen=True)
class PublishedRow:
    """One published method: percent by a key of the table, which is shots, a target, or base and new."""

    method: str
    backbone: str
    values: Mapping[object, float] = field(default_factory=dict)
    sources: tuple[str, ...] = ()


def references_of(origin: Origin, official: Collection[str] = ()) -> tuple[Reference, ...]:
    """Return the published numbers that a result on a data set may stand beside; none on a folder of one's own.

    `official` names the data sets whose makers' own split was used, on which none of the numbers was measured.
    """
    if origin.name in official or origin.data is not None:
        return ()
    return read_card(origin.name, origin.datasets_dir).reference


def few_shot_rows(references: Sequence[Reference], shots: Sequence[int | None]) -> list[PublishedRow]:
    """Return rows by shots on one data set, zero-shot at 0; rows without a value that is shown are left out."""
    groups: dict[tuple[str, str, str], dict[object, float]] = {}
    for reference in references:
        at = 0 if reference.protocol == "zero-shot" else reference.shots
        if reference.protocol in {"few-shot", "zero-shot"} and at in shots and "accuracy" in reference.values:
            group = groups.setdefault((reference.method, reference.backbone, reference.source), {})
            group[at] = reference.values["accuracy"]
    return [PublishedRow(method, backbone, values, (source,)) for (method, backbone, source), values in groups.items()]


def base_to_new_rows(references: Sequence[Reference], shots: Sequence[int | None]) -> list[PublishedRow]:
    """Return rows with `base` and `new` on one data set; arguments as for `transfer_rows`."""
    return [
        PublishedRow(r.method, r.backbone, {"base": r.values["base"], "new": r.values["new"]}, (r.source,))
        for r in references
        if r.protocol == "base-to-new" and r.shots in (None, *shots) and {"base", "new"} <= r.values.keys()
    ]


def transfer_rows(
    references: Mapping[str, Sequence[Reference]], protocol: str, shots: Sequence[int | None]
) -> list[PublishedRow]:
    """Return rows by data set, the source among them, of one transfer protocol.

    References without shots, such as zero-shot CLIP, are shown at any.
    """
    groups: dict[tuple[str, str], tuple[dict[object, float], dict[str, None]]] = {}
    for name, of_set in references.items():
        for reference in of_set:
            is_shown = reference.protocol == protocol and reference.shots in (None, *shots)
            if is_shown and "accuracy" in reference.values:
                values, sources = groups.setdefault((reference.method, reference.backbone), ({}, {}))
                values[name] = reference.values["accuracy"]
                sources[reference.source] = None
    return [
        PublishedRow(method, backbone, values, tuple(sources))
        for (method, backbone), (values, sources) in groups.items()
    ]


def average_rows(by_set: Sequence[Sequence[PublishedRow]], printed: Sequence[PublishedRow] = ()) -> list[PublishedRow]:
    """Return averages of published rows over data sets: of those methods and keys that every set has.

    Papers print such averages too, but not always right; these are computed from the rows shown. A printed one, over
    the very same sets, only fills what cannot be computed.
    """
    first, *others = by_set
    rows = []
    for row in first:
        place = (row.method, row.backbone, row.sources)
        twins = [row, *(t for of_set in others for t in of_set if (t.method, t.backbone, t.sources) == place)]
        keys = [key for key in row.values if all(key in twin.values for twin in twins)]
        if len(twins) == len(by_set) and keys:
            rows.append(replace(row, values={key: fmean(twin.values[key] for twin in twins) for key in keys}))
    for row in printed:
        names = [(computed.method, computed.backbone) for computed in rows]
        if (row.method, row.backbone) not in names:
            rows.append(row)
            continue
        at = names.index((row.method, row.backbone))
        if row.values.keys() - rows[at].values.keys():
            sources = tuple(dict.fromkeys((*rows[at].sources, *row.sources)))
            rows[at] = replace(rows[at], values={**row.values, **rows[at].values}, sources=sources)
    return rows


LAYOUTS: Mapping[str, Callable[[Comparison], Table]] = {
    "few-shot": few_shot_table,
    TEXTS: texts_table,
    "base-to-new": base_to_new_table,
    "cross-dataset": partial(transfer_table, protocol="cross-dataset"),
    "domain-generalisation": partial(transfer_table, protocol="domain-generalisation"),
}
