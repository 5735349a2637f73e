"""`mmprompt explain`: what a run of any kind has learned, on the terminal and as a page."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmprompt.core.header import read_header
from mmprompt.data.splits import SplitName
from mmprompt.errors import UserError, bad_value
from mmprompt.settings import Count, check_settings
from mmprompt.terminal.output import Backbone, Device, Json, Output, check_folder, check_place
from mmprompt.terminal.parser import parse

if TYPE_CHECKING:
    from mmprompt.reports.explanation import Explanation

DESCRIPTION = (
    "Say what a run has learned: words, vectors, classes, where it looks, its confidence, and what to do next."
)
MOST_ROWS = 12
"""Of a table on the terminal; the page has all."""


@dataclass(frozen=True)
class Settings:
    """What is explained, and where it goes."""

    run: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """The run folder."""
    data: Annotated[str | None, tyro.conf.arg(metavar="NAME|PATH")] = None
    """What to look at, if not the data of the run."""
    root: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """What the data's images lie below, where that is not the place of the run's."""
    split: SplitName = "test"
    """Which part of it."""
    words: Annotated[Count, tyro.conf.arg(metavar="INT")] = 5
    """How many of the nearest words to show for each vector."""
    to_words: bool = False
    """Put the soft prompt into words, and say how much they keep."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where the page goes, with its figures and tables; without it there is no page."""
    calibrated: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Write a classifier's prompt with its temperature, fitted on validation, to this new folder."""
    backbone: Backbone = None
    device: Device = "auto"
    json: Json = False

    def __post_init__(self) -> None:
        check_settings(self)


def run(arguments: Sequence[str], prog: str) -> None:
    """Explain a run; what cannot be done is refused before a model is loaded."""
    settings = parse(Settings, arguments, prog, DESCRIPTION)
    output, header = Output(settings.json), read_header(settings.run)
    if settings.calibrated is not None:
        if header["kind"] != "classification":
            problem = f"{settings.run} is a prompt for {header['kind']}"
            raise bad_value("calibrated", settings.calibrated, problem, "Leave it out.")
        check_folder(settings.calibrated, option="calibrated")
        if settings.out is not None and settings.out.resolve() == settings.calibrated.resolve():
            raise bad_value("calibrated", settings.calibrated, "the page goes there", "Give a folder of its own.")
    if settings.root is not None and header["kind"] == "language":
        raise bad_value("root", settings.root, "texts lie in their tables", "Leave it out.")
    if settings.out is not None:
        from mmprompt.reports.pages import missing_extra

        if missing_extra():
            raise UserError('the page needs more packages. Install them: pip install "mmprompt[explain]".')
        check_place(settings.out)

    from mmprompt.progress import ProgressDisplay
    from mmprompt.reports.explanation import data_of, explain

    data = data_of(header["kind"], settings.run, header["training"], settings.data, settings.root)
    if settings.calibrated is not None:
        from mmprompt.classification.explanation import need_validation

        need_validation(data)
    with ProgressDisplay() as progress:
        what = (settings.split, settings.words, settings.to_words, progress.count, settings.device)
        explanation = explain(settings.run, data, settings.backbone, *what)
        page = None if settings.out is None else explanation.save(settings.out)
    show(output, explanation, settings.to_words)
    if page is None:
        again = shlex.join([*prog.split(), *arguments, "--out", "FOLDER"])
        output.say(f"\nWith figures and images, as a page: {again}")
    else:
        output.say(f"\nThe page: {page}")
    document: dict[str, Any] = explanation.to_dict() | {"page": None if page is None else str(page)}
    if settings.calibrated is not None:
        document |= {"temperature": write_calibrated(settings, header, data)}
        output.say(f"The prompt with its temperature, {document['temperature']:.3f}: {settings.calibrated}")
    output.document(document)


def show(output: Output, explanation: Explanation, has_words: bool) -> None:
    """Print every section, long tables cut."""
    output.say(explanation.headline, "bold")
    for section in explanation.sections:
        output.say(f"\n{section.title}", "bold")
        output.say(section.said)
        rows = section.written
        if rows:
            output.say()
            output.table(list(section.columns), rows[:MOST_ROWS], section.numbers)
        if len(rows) > MOST_ROWS:
            output.say(f"... and {len(rows) - MOST_ROWS} more.", "dim")


def write_calibrated(settings: Settings, header: dict[str, Any], data: Any) -> float:
    """Write a copy of a classifier with the temperature of the validation images, and return it."""
    from mmprompt.classification.explanation import temperature_of
    from mmprompt.classification.forms import calibrated
    from mmprompt.core.file import load, save

    classifier = load(settings.run, settings.backbone, settings.device)
    if data.class_names != classifier.class_names:
        classifier = classifier.with_class_names(data.class_names)
    temperature = temperature_of(classifier, data)
    assert settings.calibrated is not None, "it was asked for"
    save(calibrated(classifier, temperature), settings.calibrated, header["training"])
    return temperature
