"""What the report of a comparison says in words and aligned numbers; every claim follows from an interval."""

from __future__ import annotations

from typing import Any

from mmprompt.classification.report.sentences import WORDS_NOTE
from mmprompt.core.confidence import reliability
from mmprompt.experiments.layouts import shots_header
from mmprompt.experiments.summary import Comparison, Line
from mmprompt.reports.numbers import between, missing_pictures, percent, signed


def of(comparison: Comparison, shown: Line, protocol: str, command: str, n_missing: int) -> dict[str, Any]:
    """All texts of a report by their name in the template.

    Args:
        comparison: what is shown.
        shown: the line whose mistakes are shown.
        protocol: which layout the table has.
        command: how to repeat it.
        n_missing: pictures that could not be read again.
    """
    grid = comparison.grid
    sets = ", ".join(dict.fromkeys(source.name for source in grid.sources))
    shots = ", ".join("all" if k is None else str(k) for k in grid.shots)
    backbones = ", ".join(dict.fromkeys(contender.backbone for contender in grid.contenders))
    seeds = ", ".join(map(str, grid.seeds))
    return {
        "title": f"{protocol}: {sets}",
        "eyebrow": " · ".join([protocol, sets, f"on {backbones}", f"shots {shots}", f"seeds {seeds}"]),
        "headline": headline(comparison),
        "leads": leads(comparison),
        "gains": gains(comparison),
        "details": details(comparison),
        "shown": f"{shown.label}, {shots_header(shown.shots)}, seed {grid.seeds[0]}, on {where(shown)}",
        "shown_classes": f"{shown.label}, {shots_header(shown.shots)}, mean over seeds, on {where(shown)}",
        "calibration_note": calibration_note(shown),
        "words": shown.facts.get("nearest_words", []),
        "words_note": WORDS_NOTE,
        "command": command,
        "missing_pictures": missing_pictures(n_missing),
    }


def where(line: Line) -> str:
    """What a line was tested on, with its source where that is another."""
    return line.target if line.source == line.target else f"{line.source}: {line.target}"


def ranked(comparison: Comparison) -> list[tuple[float, str]]:
    """Methods by their mean accuracy over all tests at the most shots, best first; those with blanks left out."""
    last = comparison.grid.shots[-1]
    means = [(comparison.average(label, comparison.tests, last), label) for label in comparison.labels]
    return sorted(((mean, label) for mean, label in means if mean is not None), key=lambda pair: -pair[0])


def headline(comparison: Comparison) -> dict[str, str]:
    """Who is right most often at the most shots, the accuracy set apart in it."""
    best = ranked(comparison)
    if not best:
        return {"before": "No method was measured on every data set", "number": "", "after": "."}
    mean, label = best[0]
    n_tests = len(comparison.tests)
    on = where_all(comparison) if n_tests == 1 else f"an average of {n_tests} tests"
    return {"before": f"{label} is right most often on {on}: ", "number": percent(mean), "after": "."}


def where_all(comparison: Comparison) -> str:
    """The single test of a comparison."""
    source, target = comparison.tests[0]
    return target if source == target else f"{source}: {target}"


def leads(comparison: Comparison) -> list[str]:
    """How far the others are behind, and how much was computed."""
    best = ranked(comparison)
    last = comparison.grid.shots[-1]
    others = ", ".join(f"{label} {percent(mean)}" for mean, label in best[1:])
    at = shots_header(last) if last is not None else "all training pictures"
    texts = [f"At {at}, the others: {others}."] if others else []
    n_runs = sum(len(line.values) for line in comparison.lines)
    n_pictures = comparison.lines[0].correct.shape[1]
    texts.append(
        f"{n_runs} measurements over {len(comparison.tests)} test part{'s' if len(comparison.tests) > 1 else ''}, "
        f"the first of {n_pictures:,} pictures; none was used for training or for any choice."
    )
    return texts


def gains(comparison: Comparison) -> list[dict[str, str]]:
    """What each line gains over zero-shot of the same backbone, with its paired interval and what follows from it."""
    rows = []
    for line, gain in zip(comparison.lines, comparison.gains, strict=True):
        if gain is None:
            continue
        low, high = gain.interval
        rows.append(
            {
                "where": where(line),
                "label": line.label,
                "shots": shots_header(line.shots),
                "gain": signed(gain.value),
                "interval": between(gain.interval, True),
                "verdict": "better" if low > 0 else "worse" if high < 0 else "no clear difference",
            }
        )
    return rows


def details(comparison: Comparison) -> list[dict[str, str]]:
    """Other measures of each line, and what it cost."""
    return [
        {
            "where": where(line),
            "label": line.label,
            "shots": shots_header(line.shots),
            "top5": percent(line.numbers["top5"]),
            "macro_f1": percent(line.numbers["macro_f1"]),
            "calibration_error": percent(line.numbers["calibration_error"]),
            "auroc": f"{line.numbers['auroc_of_new_classes']:.3f}" if "auroc_of_new_classes" in line.numbers else "",
            "n_parameters": f"{line.facts['n_parameters']:,}",
            "seconds": f"{line.facts['seconds']:.1f}",
        }
        for line in comparison.lines
    ]


def calibration_note(line: Line) -> str:
    """What the calibration error of the shown run is."""
    error = reliability(line.first.probabilities, line.first.correct).error
    return f"On the dotted line, 80 % sure is right in 80 %. Expected calibration error {percent(error)} (15 bins)."
