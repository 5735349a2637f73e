"""Published numbers, as the cards of the data sets carry them, in rows to stand beside one's own.

Nothing is looked up or remembered here: what no card says is left blank. All of them were measured on the split that
CoOp published, so they never stand beside results on another.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from mmprompt.data.card import Reference
from mmprompt.data.catalog import read_card
from mmprompt.experiments.cells import Origin


@dataclass(frozen=True)
class PublishedRow:
    """One published method.

    Args:
        method, backbone: as its paper writes them.
        values: percent by a key of the table: shots, a target, or base and new.
        sources: where the numbers were read.
    """

    method: str
    backbone: str
    values: Mapping[object, float] = field(default_factory=dict)
    sources: tuple[str, ...] = ()


def references_of(origin: Origin, official: Collection[str] = ()) -> tuple[Reference, ...]:
    """The published numbers that a result on a data set may stand beside; none on a folder of one's own.

    Args:
        origin: the data set.
        official: names of data sets whose makers' own split was used, on which none of the numbers was measured.
    """
    return () if origin.name in official else _of_card(origin)


def left_out(origins: Sequence[Origin], official: Collection[str]) -> tuple[str, ...]:
    """The data sets that have published numbers which `references_of` holds back."""
    return tuple(origin.name for origin in origins if origin.name in official and _of_card(origin))


def _of_card(origin: Origin) -> tuple[Reference, ...]:
    return () if origin.data is not None else read_card(origin.name, origin.datasets_dir).reference


def few_shot_rows(references: Sequence[Reference], shots: Sequence[int | None]) -> list[PublishedRow]:
    """Rows by shots on one data set, zero-shot at 0; rows without a value that is shown are left out.

    Args:
        references: of the data set.
        shots: which are shown, 0 if zero-shot is.
    """
    groups: dict[tuple[str, str, str], dict[object, float]] = {}
    for one in references:
        at = 0 if one.protocol == "zero-shot" else one.shots
        if one.protocol in {"few-shot", "zero-shot"} and at in shots and "accuracy" in one.values:
            groups.setdefault((one.method, one.backbone, one.source), {})[at] = one.values["accuracy"]
    return [PublishedRow(m, b, values, (source,)) for (m, b, source), values in groups.items()]


def base_to_new_rows(references: Sequence[Reference], shots: Sequence[int | None]) -> list[PublishedRow]:
    """Rows with `base` and `new` on one data set; arguments as for `transfer_rows`."""
    return [
        PublishedRow(one.method, one.backbone, {"base": one.values["base"], "new": one.values["new"]}, (one.source,))
        for one in references
        if one.protocol == "base-to-new" and one.shots in (None, *shots) and {"base", "new"} <= one.values.keys()
    ]


def transfer_rows(
    references: Mapping[str, Sequence[Reference]], protocol: str, shots: Sequence[int | None]
) -> list[PublishedRow]:
    """Rows by data set of one transfer protocol.

    Args:
        references: by data set, the source among them.
        protocol: `cross-dataset` or `domain-generalisation`.
        shots: which are shown; references without any, such as zero-shot CLIP, are shown too.
    """
    groups: dict[tuple[str, str], tuple[dict[object, float], dict[str, None]]] = {}
    for name, ones in references.items():
        for one in ones:
            if one.protocol == protocol and one.shots in (None, *shots) and "accuracy" in one.values:
                values, sources = groups.setdefault((one.method, one.backbone), ({}, {}))
                values[name] = one.values["accuracy"]
                sources[one.source] = None
    return [PublishedRow(m, b, values, tuple(sources)) for (m, b), (values, sources) in groups.items()]


def average_rows(by_set: Sequence[Sequence[PublishedRow]], printed: Sequence[PublishedRow] = ()) -> list[PublishedRow]:
    """The averages of published rows over data sets: of those methods and keys that every set has.

    Papers print such averages too, but not always right; these are computed from the rows shown. A printed one only
    fills what cannot be computed.

    Args:
        by_set: the rows of each data set.
        printed: averages over the very same data sets as a document prints them.
    """
    first, *others = by_set
    rows = []
    for row in first:
        twins = [row, *(twin for rows in others for twin in rows if same_row(twin, row))]
        if len(twins) == len(by_set):
            keys = [key for key in row.values if all(key in twin.values for twin in twins)]
            sources = dict.fromkeys(source for twin in twins for source in twin.sources)
            averages = {key: fmean(twin.values[key] for twin in twins) for key in keys}
            rows.append(PublishedRow(row.method, row.backbone, averages, tuple(sources)))
    return _filled([row for row in rows if row.values], printed)


def _filled(computed: Sequence[PublishedRow], printed: Sequence[PublishedRow]) -> list[PublishedRow]:
    """Computed rows, with the printed values that they lack, and printed rows of other methods."""
    rows = list(computed)
    for row in printed:
        names = [(one.method, one.backbone) for one in rows]
        if (row.method, row.backbone) not in names:
            rows.append(row)
            continue
        at = names.index((row.method, row.backbone))
        if row.values.keys() - rows[at].values.keys():
            sources = tuple(dict.fromkeys((*rows[at].sources, *row.sources)))
            rows[at] = replace(rows[at], values={**row.values, **rows[at].values}, sources=sources)
    return rows


def same_row(a: PublishedRow, b: PublishedRow) -> bool:
    """Whether two rows are of the same method on the same backbone from the same place."""
    return (a.method, a.backbone, a.sources) == (b.method, b.backbone, b.sources)
