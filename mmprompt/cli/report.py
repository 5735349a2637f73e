"""`mmprompt report`: the report of a finished run of any kind, written anew into its folder."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mmprompt.core.header import read_header
from mmprompt.terminal.output import JSON_HELP, Output
from mmprompt.terminal.parser import parse


@dataclass(frozen=True)
class Settings:
    """Of which run."""

    run: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """The run folder."""
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False


def run(arguments: Sequence[str], prog: str) -> None:
    """Write `report.html` and the figures into the run folder, from what is in it alone.

    Raises:
        UserError: the folder holds no finished run, or the report extra is not installed.
    """
    settings = parse(Settings, arguments, prog, "Write the report of a finished run: one HTML file, and its figures.")
    own = {"classification": "mmprompt.classification.report"}
    page = importlib.import_module(own.get(read_header(settings.run)["kind"], "mmprompt.reports.run_page"))
    path, output = page.write_report(settings.run), Output(settings.json)
    output.say(f"report  {path}")
    output.document({"run": str(settings.run), "report": str(path)})
