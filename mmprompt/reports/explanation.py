"""What a run has learned, as text, as tables of plain data and as a page: sections, whatever kind of run they are of.

`explain` finds the room that a run belongs to, which knows what there is to say; how it is shown is here alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from mmprompt.core.file import Predictor, load
from mmprompt.core.header import read_header
from mmprompt.data.splits import SplitName
from mmprompt.errors import UserError, bad_value
from mmprompt.files import make_folder, write_json
from mmprompt.reports.pages import Draw, missing_extra, write_page
from mmprompt.reports.tables import plain_table
from mmprompt.settings import Count, annotations_of, check, checked, expanded
from mmprompt.training.run_files import place_of_data

PAGE, TABLES = "explanation.html", "explanation.json"
Counter = Callable[[str], Callable[[int, int], None]]
"""From the name of a piece of work to what is called with how much of it is done and how much there is."""


def uncounted(name: str) -> Callable[[int, int], None]:
    """Show nothing."""
    return lambda done, total: None


@dataclass(frozen=True)
class Asked:
    """What is asked of a run: on which part, how many words a vector, and whether it is to be put into words.

    `folder` is that of the run, where there is one, and `training` what its file says of where it comes from.
    """

    split: SplitName = "test"
    k: int = 5
    to_words: bool = False
    count: Counter = uncounted
    folder: Path | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seen(self) -> str:
        """What is said of the images or rows that are looked at."""
        return "of the train part" if self.split == "train" else "held out"


@dataclass(frozen=True)
class Picture:
    """An image to show, already shrunk, with a line below it and a softer one."""

    image: Image.Image
    caption: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """One answer: what was found, in sentences, how to read it, a table, figures and images.

    The name is that of its table and, with a number behind, of its figures, which `charts` draw by what they show. Of
    each column `columns` say how its numbers are written, `""` for texts and pairs of a word and a number; rows are
    plain values, and a list in them holds pairs.
    """

    name: str
    title: str
    said: str
    note: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    rows: Sequence[Sequence[Any]] = ()
    charts: Mapping[str, Draw] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()

    @property
    def records(self) -> list[dict[str, Any]]:
        """The rows by the names of their columns, JSON-ready."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    @property
    def written(self) -> list[list[str]]:
        """The rows as people read them."""
        forms = self.columns.values()
        return [[written(cell, form) for cell, form in zip(row, forms, strict=True)] for row in self.rows]

    @property
    def numbers(self) -> tuple[int, ...]:
        """Which columns are numbers."""
        return tuple(place for place, form in enumerate(self.columns.values()) if form)


def written(value: Any, form: str) -> str:
    """Write a cell: a share as `percent` or `signed`, another number in a format such as `.2f`, pairs one by one."""
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return "  ".join(f"{word} {number:.2f}" for word, number in value)
    if form in ("percent", "signed"):
        return f"{100 * value:.1f} %" if form == "percent" else f"{100 * value:+.1f}"
    return format(value, form)


@dataclass(frozen=True)
class Explanation:
    """What a run has learned.

    Args:
        run: its name.
        facts: kind, data and backbone, in a line.
        headline: the first sentence.
        sections: the answers, in the order in which they are read.
    """

    run: str
    facts: str
    headline: str
    sections: tuple[Section, ...]

    def __repr__(self) -> str:
        return f"<Explanation of {self.run}: {', '.join(section.name for section in self.sections)}>"

    def __str__(self) -> str:
        parts = [self.headline]
        for section in self.sections:
            lines = [section.title, section.said]
            if section.rows:
                lines += ["", *plain_table([list(section.columns), *section.written], section.numbers)]
            parts.append("\n".join(filter(None, lines[:2])) + "\n".join(["", *lines[2:]]))
        return "\n\n".join(parts)

    @property
    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """The table of each section, by its name: a mapping a row, JSON-ready and as `pandas.DataFrame` takes it."""
        return {section.name: section.records for section in self.sections if section.rows}

    def to_dict(self) -> dict[str, Any]:
        """Return all but figures and images, JSON-ready."""
        told = {section.name: {"said": section.said, "table": section.records} for section in self.sections}
        return {"run": self.run, "headline": self.headline, "sections": told}

    @checked
    def save(self, folder: Path | str) -> Path:
        """Write `explanation.html`, every figure as a PNG file, and `explanation.json` with the tables.

        Args:
            folder: made if missing; files of an earlier explanation are replaced.
        Returns:
            the path of the page.
        Raises:
            UserError: the folder cannot be written, or the explain extra is not installed.
        """
        if missing_extra():
            raise UserError('the page needs more packages. Install them: pip install "mmprompt[explain]".')
        folder = make_folder(Path(folder))
        charts = {
            f"{section.name}_{number}": draw
            for section in self.sections
            for number, draw in enumerate(section.charts.values(), 1)
        }
        page = write_page(folder, "explanation", charts, {}, PAGE, explanation=self)
        write_json(folder / TABLES, self.to_dict())
        return page


def data_of(kind: str, folder: Path | None, training: Mapping[str, Any], data: Any, root: Path | None = None) -> Any:
    """Return the data given, that of a name or path with its images in `root`, or what a run learned from, as drawn."""
    if data is None and folder is None:
        raise bad_value("data", None, "a prompt in memory does not say what to look at", "Give `data`.")
    if data is not None and not isinstance(data, str | Path):
        return data
    place = {"data": str(data)} if folder is None or data is not None else place_of_data(folder, training)
    place |= {} if root is None else {"root": str(root)}
    return importlib.import_module(f"mmprompt.{kind}.explanation").data_at(place, training)


@checked
def explain(
    run: Any,
    data: Any = None,
    model: Any = None,
    split: SplitName = "test",
    k: Count = 5,
    to_words: bool = False,
    count: Counter = uncounted,
    device: str = "auto",
) -> Explanation:
    """Say what a run has learned: words near its vectors, what each is worth, what changed, and what to do next.

    Args:
        run: a run folder, or a classifier, captioner or language model with a prompt.
        data: to look at; a data set, captions or rows, or the name or path of some. By default those of the run, with
            its own draw.
        model: the frozen model or its name; by default the one that the run names.
        split: the part that is looked at, `"train"`, `"val"` or `"test"`. Nothing is chosen on it.
        k: words for each vector, 1 or more.
        to_words: put a soft prompt into words, and measure how much they keep.
        count: `ProgressDisplay.count`, to show how far it is.
        device: where a model that is loaded goes, as of `load`.
    Returns:
        the explanation: `print` it, read its `tables`, or `save` it as a page.
    Raises:
        UserError: the run or the data cannot be read, do not go together, or are not found; or a model or a device is
            named for a run in memory, which has its own.
    """
    folder = expanded(run) if isinstance(run, Path | str) else None
    if folder is None:
        check("run", run, Predictor, "Give a run folder, what load gave, or the `predictor` of a Result.")
        for name, value in {"model": model, "device": None if device == "auto" else device}.items():
            if value is not None:
                raise bad_value(name, repr(value)[:60], "a run in memory has its own", "Leave it out.")
    header = {"kind": run.kind, "training": {}} if folder is None else read_header(folder)
    room = importlib.import_module(f"mmprompt.{header['kind']}.explanation")
    found = data_of(header["kind"], folder, header["training"], data)
    check("data", found, annotations_of(room.sections_of)["data"], "Give data of the kind that the run learned from.")
    predictor = run if folder is None else load(folder, model, device)
    asked = Asked(split, k, to_words, count, folder, header["training"])
    headline, sections = room.sections_of(predictor, found, asked)
    if split == "train":
        headline += " Of what it learned from, the figures flatter it."
    facts = f"{header['kind']} · {found.name} · on {predictor.backbone.name}"
    return Explanation(repr(run) if folder is None else folder.resolve().name, facts, headline, tuple(sections))
