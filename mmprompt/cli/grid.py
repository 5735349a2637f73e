"""The options that `compare` and the protocols share: what is compared on what, and with which settings.

Settings of methods and of the recipe count only where they are given: everything else is left to each method,
backbone and data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

from mmprompt.classification.methods import make_method, method_types
from mmprompt.cli.methods import options_of
from mmprompt.errors import UserError, bad_value
from mmprompt.experiments.cells import Origin
from mmprompt.experiments.grid import Contender
from mmprompt.terminal.config import distribute, read_settings
from mmprompt.terminal.lists import is_given, names_in
from mmprompt.terminal.options import remember
from mmprompt.terminal.parser import parse, peek
from mmprompt.terminal.pictures import own_path, refuse_both
from mmprompt.training.recipe import Recipe

LISTS = {"method", "data", "backbone", "seed", "shots"}
"""Options that take several values, with commas between."""


@dataclass(frozen=True)
class Compared:
    """What is compared, and where it goes."""

    method: Annotated[str, tyro.conf.arg(metavar="NAMES")] = "coop,zero-shot"
    """Methods with commas between: coop, vpt, coop+vpt, zero-shot, zero-shot-ensemble, linear-probe, nearest-class-mean."""  # noqa: E501 (the help text is one line)
    data: Annotated[str | None, tyro.conf.arg(metavar="NAMES|PATH")] = None
    """Data sets known by name, with commas between (`mmprompt data list`), or your own images: a folder of class
    folders, a CSV or JSONL table, or a split file."""
    root: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The folder that holds the named sets' folders; the openart sets need none."""
    datasets_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """A folder with YAML files of more data sets."""
    protocol: Annotated[str, tyro.conf.arg(metavar="NAME")] = "coop"
    """Whose rule draws the shots: coop, clip-lora, tip-adapter, or jsonl for published lists."""
    strict: bool = False
    """Stop at the start if a picture is broken, naming it (the default)."""
    skip_broken: bool = False
    """Leave broken pictures out, and say which."""
    backbone: Annotated[str, tyro.conf.arg(metavar="NAMES")] = "tiny"
    """Frozen models with commas between."""
    shots: Annotated[str, tyro.conf.arg(metavar="NUMBERS")] = "1,2,4,8,16"
    """Training pictures of each class, with commas between; `all` for all there are."""
    seed: Annotated[str, tyro.conf.arg(metavar="NUMBERS")] = "1,2,3"
    """Seeds of the shots and the start, with commas between."""
    out: Annotated[Path, tyro.conf.arg(metavar="PATH")] = Path("runs/compare")
    """The folder for tables, figures and report.html."""
    results: Annotated[Path, tyro.conf.arg(metavar="PATH")] = Path("runs/cells")
    """The folder that keeps every cell as a run folder; share it between comparisons."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="INT|None")] = None
    """Processes that compute cells; by default one a GPU, else one."""
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write all numbers to a JSON file, or to stdout with `-`."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Start from the settings in a YAML or JSON file, such as the one that `tune` writes."""

    def __post_init__(self) -> None:
        refuse_both(self.strict, self.skip_broken)


@dataclass(frozen=True)
class GridCall:
    """A command line, read.

    Args:
        compared: the options.
        contenders: methods on backbones.
        recipe: the settings of the recipe that were given.
    """

    compared: Compared
    contenders: tuple[Contender, ...]
    recipe: Mapping[str, Any]

    def origins(self, default: Sequence[str] = ()) -> tuple[Origin, ...]:
        """Where the pictures are.

        Args:
            default: the data sets if none is named.
        Raises:
            UserError: no data set is named.
        """
        given = self.compared
        path = None if given.data is None else own_path(given.data.partition(",")[0], given.datasets_dir)
        if path is not None:
            if not Path(str(given.data)).exists() and "," in str(given.data):
                advice = "Compare on one folder at a time."
                raise bad_value("data", given.data, "one folder, or names of data sets, was expected", advice)
            root = None if given.root is None else str(given.root.resolve())
            return (Origin(path.stem, str(path.resolve()), root, rule=given.protocol),)
        names = tuple(default) if given.data is None else names_in("data", given.data)
        if not names:
            raise UserError("no data set was named, but a comparison needs one. Give --data.")
        places = (given.root, given.datasets_dir)
        root, folder = (None if place is None else str(place.resolve()) for place in places)
        return tuple(Origin(name, None, root, folder, given.protocol) for name in names)


def read_grid_call(
    arguments: Sequence[str], prog: str, description: str, defaults: Mapping[str, Any] | None = None
) -> GridCall:
    """Read a command line of `compare` or a protocol.

    Args:
        arguments: the words after the verb.
        prog: the command as typed.
        description: what it does.
        defaults: values that suit the verb better than those of `Compared`.
    Raises:
        UserError: a name is unknown, or a value is wrong.
    """
    path = peek(arguments, "config")
    saved = {} if path is None else read_settings(Path(path))
    saved = {key: str(value) if key in LISTS else value for key, value in saved.items()}
    start = {**(defaults or {}), **saved}
    names = names_in("method", peek(arguments, "method") or str(start.get("method", Compared.method)))
    kinds = {name: list(method_types(name)) for name in names}
    settings = merged_settings([kind for several in kinds.values() for kind in several])
    groups: dict[str, Any] = {"compared": Compared, "settings": settings, "recipe": Recipe}
    form = make_dataclass("Comparison", list(groups.items()), frozen=True)
    remember(form)
    read: Any = parse(form, arguments, prog, description, form(**distribute(start, groups, Path(path or "defaults"))))
    given = {
        name for group in (settings, Recipe) for name in _names(group) if is_given(arguments, name) or name in saved
    }
    chosen = {name: getattr(read.settings, name) for name in _names(settings) if name in given}
    recipe = {name: getattr(read.recipe, name) for name in _names(Recipe) if name in given}
    methods = {name: make_method(name, own_settings(kinds[name], chosen)) for name in names}
    contenders = tuple(
        Contender(name, method, backbone)
        for backbone in names_in("backbone", read.compared.backbone)
        for name, method in methods.items()
    )
    return GridCall(read.compared, contenders, recipe)


def merged_settings(kinds: Sequence[type]) -> type:
    """One class with the fields of all: a setting that several methods have is given once, for all of them."""
    members: dict[str, Any] = {}
    for kind in dict.fromkeys(kinds):
        helps = {option["name"]: option["help"] for option in options_of(kind)}
        hints = get_type_hints(kind)
        for one in fields(kind):
            if one.name not in members:
                hint = described(hints[one.name], helps[one.name])
                members[one.name] = (one.name, hint, field(default=one.default))
    made = make_dataclass("Settings", members.values(), frozen=True)
    made.__doc__ = "Of the methods; what is left out is up to each method."
    return made


def described(hint: Any, text: str) -> Any:
    """A type with a help text for the parser."""
    return Annotated[hint, tyro.conf.arg(help=text)]


def own_settings(kinds: Sequence[type], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Select the given settings that a method has."""
    own = {one.name for kind in kinds for one in fields(kind)}
    return {name: value for name, value in chosen.items() if name in own}


def _names(kind: type) -> list[str]:
    return [one.name for one in fields(kind)]
