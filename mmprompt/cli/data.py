"""`mmprompt data`: which sets there are, whether one is whole, and what a k-shot draw takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from mmprompt.cli.output import Output
from mmprompt.cli.parser import parse
from mmprompt.cli.pictures import Pictures
from mmprompt.data.catalog import list_datasets, read_card
from mmprompt.data.check import check_dataset
from mmprompt.errors import UserError

JSON_HELP = "Print one JSON document; everything for people goes to stderr."
Name = tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="NAME")]]


@dataclass(frozen=True)
class ListSettings:
    """Which sets are listed."""

    datasets_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """A folder with YAML files of more data sets."""
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False


@dataclass(frozen=True)
class CheckSettings:
    """What is looked over."""

    name: Name = None
    """A data set known by name; or give --data."""
    sample: Annotated[int | None, tyro.conf.arg(metavar="INT|None")] = 200
    """How many pictures to open; None for all."""
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False
    pictures: Pictures = field(default_factory=Pictures)


@dataclass(frozen=True)
class ShotsSettings:
    """Which draw is shown."""

    name: Name = None
    """A data set known by name; or give --data."""
    shots: Annotated[int, tyro.conf.arg(metavar="INT")] = 16
    """Training pictures of each class."""
    seed: Annotated[int, tyro.conf.arg(metavar="INT")] = 1
    """Seed of the draw."""
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False
    pictures: Pictures = field(default_factory=Pictures)


def named(name: str | None, pictures: Pictures, prog: str) -> Pictures:
    """The pictures of a set named in place or by an option.

    Raises:
        UserError: none, or two different ones, are named.
    """
    if name is None and pictures.dataset is None and pictures.data is None:
        raise UserError(f"no data set is named. Write {prog} NAME, or {prog} --data PATH.")
    return pictures if name is None else replace(pictures, dataset=name)


def run_list(arguments: Sequence[str], prog: str) -> None:
    """Print the data sets known by name."""
    settings = parse(ListSettings, arguments, prog, "The data sets there are.")
    output = Output(settings.json)
    cards = list_datasets(settings.datasets_dir)
    places = ["in the package" if card.archive else "--root" for card in cards]
    rows = [[card.name, card.title, place, card.licence] for card, place in zip(cards, places, strict=True)]
    output.table(["name", "what it is", "where", "licence"], rows)
    output.document([asdict(card) for card in cards])


def run_check(arguments: Sequence[str], prog: str) -> None:
    """Print what is there of a data set and what is missing.

    Raises:
        UserError: the set cannot be read, or problems were found.
    """
    settings = parse(CheckSettings, arguments, prog, "Look a data set over before using it.")
    output = Output(settings.json)
    pictures = named(settings.name, settings.pictures, prog)
    splits = pictures.splits()
    if pictures.dataset is None:
        report = check_dataset(splits, sample=settings.sample)
    else:
        card = read_card(pictures.dataset, pictures.datasets_dir)
        report = check_dataset(splits, card.n_classes, card.sizes, settings.sample)
    for line in report.lines:
        output.say(line)
    output.document({**asdict(report), "root": str(report.root), "is_ok": report.is_ok})
    if not report.is_ok:
        count = len(report.problems)
        found = f"{count} problem{'s' if count > 1 else ''}"
        raise UserError(f"{report.root} has {found}, the first: {report.problems[0]} Mend the data, then check again.")


def run_shots(arguments: Sequence[str], prog: str) -> None:
    """Print the pictures that a k-shot draw takes, class by class."""
    settings = parse(ShotsSettings, arguments, prog, "Show which pictures a k-shot draw takes.")
    output = Output(settings.json)
    data = named(settings.name, settings.pictures, prog).load(settings.shots, settings.seed)
    drawn: dict[str, dict[str, list[str]]] = {name: {"train": [], "val": []} for name in data.class_names}
    for split, items in (("train", data.train), ("val", data.val)):
        for item in items:
            drawn[data.class_names[item.label]][split].append(item.path.relative_to(data.root).as_posix())
    rows = [[name, str(len(of["train"])), str(len(of["val"])), ", ".join(of["train"])] for name, of in drawn.items()]
    output.table(["class", "train", "val", "training pictures"], rows, numbers=(1, 2))
    for note in data.notes:
        output.say(f"Note: {note}", "dim")
    output.document(
        {"dataset": data.name, "shots": data.shots, "seed": data.seed, "root": str(data.root), "drawn": drawn}
    )
