"""What a search leaves: the chosen settings as YAML for `mmprompt train --config`, all trials, a figure and a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mmprompt.experiments.tune import Found, Search
from mmprompt.files import make_folder, write_bytes
from mmprompt.reports import curves
from mmprompt.reports.curves import Tried
from mmprompt.reports.numbers import percent, signed
from mmprompt.reports.pages import chart, missing_extra, render_page

N_SHOWN = 10
NEAR = 0.01


def write_recipe(search: Search, found: Found, folder: Path) -> Path:
    """Write the chosen settings, with all else that a training needs to be the same.

    Args:
        search: what was searched for.
        found: what it came to.
        folder: where `recipe.yaml` goes.
    """
    make_folder(folder)
    place: dict[str, Any] = {"data": search.origin.data or search.origin.name}
    place |= {"root": search.origin.root, "datasets_dir": search.origin.datasets_dir}
    settings = {
        **{name: value for name, value in place.items() if value is not None},
        "backbone": search.backbone,
        "method": search.method,
        "shots": search.shots,
        **search.settings,
        **search.recipe,
        **found.best.settings,
    }
    chosen = (
        f"# Chosen by mmprompt tune: {percent(found.best.accuracy)} on the validation pictures, the best of "
        f"{len(found.trials)} trials.\n# The test part was not looked at. Use it with: mmprompt train --config FILE\n"
    )
    path = folder / "recipe.yaml"
    write_bytes(path, (chosen + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)).encode())
    return path


def write_search(search: Search, found: Found, folder: Path, command: str) -> Path | None:
    """Write the recipe, `trials.csv` and, with the report extra, `sensitivity.png` and `report.html`.

    Args:
        search: what was searched for.
        found: what it came to.
        folder: where it goes.
        command: how to repeat it.
    Returns:
        The path of the HTML file, None without the extra.
    """
    recipe = write_recipe(search, found, folder)
    write_bytes(folder / "trials.csv", trials_csv(search, found).encode())
    if missing_extra():
        return None
    axes = {name: limits.is_log for name, limits in search.space.items()}
    light, figure = chart(lambda theme: curves.draw_sensitivity(found.trials, axes, found.best, theme))
    write_bytes(folder / "sensitivity.png", light)
    page = render_page(
        "search",
        title=f"tune: {search.method} on {search.origin.name}",
        eyebrow=" · ".join(
            ["tune", search.origin.name, search.method, f"on {search.backbone}", f"{search.shots} shots"]
        ),
        best=percent(found.best.accuracy),
        leads=leads(found),
        figure=figure,
        sensitivities=sensitivities(found, axes),
        names=list(axes),
        trials=[
            {"accuracy": percent(trial.accuracy), "values": [number(trial.settings[name]) for name in axes]}
            for trial in ranked(found)[:N_SHOWN]
        ],
        recipe=recipe.read_text(encoding="utf-8"),
        command=command,
    )
    path = folder / "report.html"
    write_bytes(path, page.encode())
    return path


def trials_csv(search: Search, found: Found) -> str:
    """Every trial in a row: its settings, its validation accuracy in 0..1, and whether it was stopped early."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*search.space, "validation_accuracy", "pruned"])
    for trial in found.trials:
        writer.writerow([*(trial.settings[name] for name in search.space), trial.accuracy, trial.is_pruned])
    return buffer.getvalue()


def ranked(found: Found) -> list[Tried]:
    """Finished trials, best first."""
    whole = [trial for trial in found.trials if not trial.is_pruned]
    return sorted(whole, key=lambda trial: -trial.accuracy)


def leads(found: Found) -> list[str]:
    """How much was tried, and what the search gained on validation."""
    n_pruned = sum(trial.is_pruned for trial in found.trials)
    texts = [f"{len(found.trials)} trials, {n_pruned} of them stopped early, {found.n_failed} broke down."]
    if found.default is not None:
        texts.append(
            f"The settings it started from reach {percent(found.default.accuracy)}: a gain of "
            f"{signed(found.best.accuracy - found.default.accuracy)} points."
        )
    texts.append(
        "All of this is on validation pictures, and the best of many trials looks better than it is: train with the "
        "recipe to measure it on the test pictures."
    )
    return texts


def sensitivities(found: Found, axes: Mapping[str, bool]) -> list[str]:
    """For each setting the range over which some trial came within a point of the best, and the range tried."""
    near = [trial for trial in ranked(found) if trial.accuracy >= found.best.accuracy - NEAR]
    texts = []
    for name in axes:
        tried = [trial.settings[name] for trial in found.trials]
        good = [trial.settings[name] for trial in near]
        texts.append(
            f"{name}: tried from {number(min(tried))} to {number(max(tried))}; within a point of the best "
            f"from {number(min(good))} to {number(max(good))} ({len(good)} trial{'s' if len(good) > 1 else ''})."
        )
    return texts


def number(value: float) -> str:
    """A setting with three digits."""
    return f"{value:.3g}"
