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
    """Return the published numbers that a result on a data set may stand beside; none on a folder of one's own.

    Args:
        origin: the data set.
        official: names of data sets whose makers' own split was used, on which none of the numbers was measured.
    """
    if origin.name in official or origin.data is not None:
        return ()
    return read_card(origin.name, origin.datasets_dir).reference


def left_out(origins: Sequence[Origin], official: Collection[str]) -> tuple[str, ...]:
    """Return the data sets that have published numbers which `references_of` holds back."""
    return tuple(origin.name for origin in origins if origin.name in official and references_of(origin))


def few_shot_rows(references: Sequence[Reference], shots: Sequence[int | None]) -> list[PublishedRow]:
    """Return rows by shots on one data set, zero-shot at 0; rows without a value that is shown are left out.

    Args:
        references: of the data set.
        shots: which are shown, 0 if zero-shot is.
    """
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
    """Return rows by data set of one transfer protocol.

    Args:
        references: by data set, the source among them.
        protocol: `cross-dataset` or `domain-generalisation`.
        shots: which are shown; references without any, such as zero-shot CLIP, are shown too.
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

    Papers print such averages too, but not always right; these are computed from the rows shown. A printed one only
    fills what cannot be computed.

    Args:
        by_set: the rows of each data set.
        printed: averages over the very same data sets as a document prints them.
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
