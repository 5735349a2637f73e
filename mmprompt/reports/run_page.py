"""The report of a run of a captioner or a language model, from its folder alone: what was learned from what, how the
training went, and what is to be known of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmprompt.core.header import read_header
from mmprompt.errors import UserError
from mmprompt.files import read_json, write_bytes
from mmprompt.reports import figures
from mmprompt.reports.pages import chart, missing_extra, render_page
from mmprompt.training.log import read_log


def write_report(folder: Path) -> Path:
    """Write `report.html` and `learning_curve.png` of a finished run into its folder.

    Args:
        folder: a run folder.
    Returns:
        The path of the HTML file.
    Raises:
        UserError: the folder holds no finished run, or the report extra is not installed.
    """
    problem = missing_extra()
    if problem:
        raise UserError(problem)
    header = read_header(folder)
    run = read_json(folder / "run.json") if (folder / "run.json").is_file() else header["training"]
    log = read_log(folder / "log.jsonl") if (folder / "log.jsonl").is_file() else []
    figure = None
    if log:
        loss, accuracy, validation = (
            [float(entry[name]) for entry in log if entry.get(name) is not None]
            for name in ("loss", "accuracy", "val_accuracy")
        )
        epochs = range(1, len(log) + 1)
        light, figure = chart(lambda theme: figures.draw_learning_curve(epochs, loss, accuracy, validation, theme))
        write_bytes(folder / "learning_curve.png", light)
    data, method = run.get("data", {}), run.get("method", {"name": "a prompt", "settings": {}})
    page = render_page(
        "run",
        title=f"{data.get('name', folder.name)}: {method['name']}",
        eyebrow=" · ".join([header["kind"], data.get("name", folder.name), f"on {header['backbone']['name']}"]),
        method=method["name"],
        backbone=header["backbone"]["name"],
        data=data,
        log=log,
        figure=figure,
        notices=header["training"].get("notices", []),
        facts=facts_of(header, run),
        folder=folder.name,
        verb={"captioning": "caption eval --prompts", "language": "llm eval --prompt"}.get(header["kind"], "eval"),
    )
    path = folder / "report.html"
    write_bytes(path, page.encode())
    return path


def facts_of(header: Mapping[str, Any], run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List the facts of a run, name and value."""
    settings = {**run.get("method", {}).get("settings", {}), **run.get("recipe", {})}
    facts = {
        "template": header["template"],
        "focus": header.get("focus"),
        "labels": ", ".join((header.get("verbalizer") or {}).get("words", {})),
        "settings": ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None),
        "seed": run.get("seed"),
        "weights": f"{header['backbone']['name']}, {header['backbone']['fingerprint'][:16]}",
        "versions": ", ".join(f"{name} {version}" for name, version in run.get("versions", {}).items()),
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]
