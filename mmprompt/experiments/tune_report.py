"""What a search leaves: the chosen settings as YAML for `mmprompt train --config`, all trials, a figure and a page."""

from __future__ import annotations

import csv
import io
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from mmprompt.experiments.tune import Search, SearchResult
from mmprompt.files import make_folder, write_bytes
from mmprompt.reports import curves
from mmprompt.reports.numbers import percent
from mmprompt.reports.pages import missing_extra, write_page

N_SHOWN = 10
NEAR = 0.01


def write_search(search: Search, result: SearchResult, folder: Path, command: str) -> Path | None:
    """Write the recipe, `trials.csv` and, with the report extra, `sensitivity.png` and `report.html`.

    Args:
        search: what was searched for.
        result: what it came to.
        folder: where it goes.
        command: how to repeat it.
    Returns:
        The path of the HTML file, None without the extra.
    """
    make_folder(folder)
    recipe = recipe_yaml(search, result)
    write_bytes(folder / "recipe.yaml", recipe.encode())
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*search.space, "validation_accuracy", "pruned"])
    for trial in result.trials:
        writer.writerow([*(trial.settings[name] for name in search.space), trial.accuracy, trial.is_pruned])
    write_bytes(folder / "trials.csv", buffer.getvalue().encode())
    if missing_extra():
        return None
    ranked = sorted((trial for trial in result.trials if not trial.is_pruned), key=lambda trial: -trial.accuracy)
    near = [trial for trial in ranked if trial.accuracy >= result.best.accuracy - NEAR]
    axes = {name: limits.is_log for name, limits in search.space.items()}
    return write_page(
        folder,
        "search",
        {"sensitivity": partial(curves.draw_sensitivity, result.trials, axes, result.best)},
        {},
        search=search,
        result=result,
        tried={name: [trial.settings[name] for trial in result.trials] for name in axes},
        near={name: [trial.settings[name] for trial in near] for name in axes},
        ranked=ranked[:N_SHOWN],
        recipe=recipe,
        command=command,
    )


def recipe_yaml(search: Search, result: SearchResult) -> str:
    """Return the chosen settings, with all else that a training needs to be the same.

    Args:
        search: what was searched for.
        result: what it came to.
    """
    place: dict[str, Any] = {"data": search.origin.data or search.origin.name}
    place |= {"root": search.origin.root, "datasets_dir": search.origin.datasets_dir}
    settings = {
        **{name: value for name, value in place.items() if value is not None},
        "backbone": search.backbone,
        "method": search.method,
        "shots": search.shots,
        **search.settings,
        **search.recipe,
        **result.best.settings,
    }
    comment = (
        f"# Chosen by mmprompt tune: {percent(result.best.accuracy)} on the validation pictures, the best of "
        f"{len(result.trials)} trials.\n# The test part was not looked at. Use it with: mmprompt train --config FILE\n"
    )
    return comment + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
