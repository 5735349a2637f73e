"""`mmprompt compare` and `mmprompt protocol`: a grid of methods, data sets of images or of texts, shots and seeds,
computed once and shown as table and report; the papers' protocols have their data sets by default.

Settings of methods and of the recipe count only where they are given: everything else is left to each method,
backbone and data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import tyro

import mmprompt.classification.methods as of_images
import mmprompt.language.methods as of_texts
from mmprompt.cli.methods import options_of
from mmprompt.cli.workers import WorkerSettings
from mmprompt.core.method import settled
from mmprompt.data.tables import SUFFIXES
from mmprompt.errors import UserError, bad_file, bad_value
from mmprompt.experiments.grid import (
    BASE_TO_NEW,
    CROSS_DATASET,
    DOMAIN,
    FEW_SHOT,
    INSTRUCTION,
    SETS,
    TEXTS,
    Contender,
    Origin,
    protocol_grid,
    without_broken,
)
from mmprompt.files import make_folder, write_json
from mmprompt.language.data import TextData, is_text, load_texts
from mmprompt.models.packaged import refuse_missing
from mmprompt.progress import ProgressDisplay
from mmprompt.settings import expanded, is_there
from mmprompt.terminal.images import own_path
from mmprompt.terminal.output import Device, Output, check_file, check_place, command_of
from mmprompt.terminal.parser import (
    counts_in,
    filled,
    given_names,
    names_in,
    parse,
    peek,
    remember,
    shots_in,
)
from mmprompt.training.problem import RunFailed
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from mmprompt.experiments.summary import Comparison
    from mmprompt.experiments.workers import Workers

COMPARE = "Compare methods and baselines over data sets, shots and seeds. What was computed once is not again."
DESCRIPTIONS = {
    FEW_SHOT: "Accuracy by shots on each data set and on average; by default the eleven sets of the papers.",
    BASE_TO_NEW: "Learn from the first half of the classes, test on both halves; by default the eleven sets.",
    CROSS_DATASET: "Learn from the first data set, test on the others; by default ImageNet and ten others.",
    DOMAIN: "Learn from the first data set, test on shifted ones; by default ImageNet and its four variants.",
}
STDOUT = Path("-")
ALL, INSTRUCTIONS = "all", "instructions"
OF_TEXTS = f"prompt-tuning,{INSTRUCTIONS}"
FOR_IMAGES = ("root", "datasets_dir", "protocol", "skip_broken", "augment", "views")
"""Options that mean nothing for texts."""


@dataclass(frozen=True)
class Compared:
    """What is compared, and where it goes."""

    method: Annotated[str, tyro.conf.arg(metavar="NAMES")] = "coop,zero-shot"
    """Methods with commas between (`mmprompt methods list`), joined ones such as coop+vpt too; `all` for every method
    that a backbone can carry. Of texts by default prompt-tuning,instructions: all those of the data's card."""
    data: Annotated[str | None, tyro.conf.arg(metavar="NAMES|PATH")] = None
    """Data sets known by name, with commas between (`mmprompt data list`), or your own images: a folder of class
    folders, a CSV or JSONL table, or a split file. Or rows of text, files with commas between (docs/language.md)."""
    root: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The folder that holds the named sets' folders; the openart sets need none."""
    datasets_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """A folder with YAML files of more data sets."""
    protocol: Annotated[str, tyro.conf.arg(metavar="NAME")] = "coop"
    """Whose rule draws the shots: coop, clip-lora, tip-adapter, or jsonl for published lists."""
    skip_broken: bool = False
    """Leave broken images out, and say which; by default the first stops everything at the start."""
    backbone: Annotated[str, tyro.conf.arg(metavar="NAMES")] = "tiny"
    """Frozen models with commas between."""
    shots: Annotated[str, tyro.conf.arg(metavar="NUMBERS")] = "1,2,4,8,16"
    """Training images or texts of each class, with commas between; `all` for all there are."""
    seed: Annotated[str, tyro.conf.arg(metavar="NUMBERS")] = "1,2,3"
    """Seeds of the shots and the start, with commas between."""
    out: Annotated[Path, tyro.conf.arg(metavar="PATH")] = Path("runs/compare")
    """The folder for tables, figures and report.html."""
    results: Annotated[Path, tyro.conf.arg(metavar="PATH")] = Path("runs/cells")
    """The folder that keeps every cell as a run folder; share it between comparisons."""
    device: Device = "auto"
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write all numbers to a JSON file, or to stdout with `-`."""


@dataclass(frozen=True)
class Call:
    """A command line, read: options, who computes, methods on backbones, the settings of the recipe that were given,
    and the texts that were named.
    """

    compared: Compared
    workers: Workers
    contenders: tuple[Contender, ...]
    recipe: Mapping[str, Any]
    texts: tuple[TextData, ...] = ()

    def origins(self, default: Sequence[str] = ()) -> tuple[Origin, ...]:
        """Say where the data is; the data sets of images in `default` if none is named."""
        given = self.compared
        if self.texts:
            return tuple(Origin(data.name, data) for data in self.texts)
        if given.data is None:
            names = tuple(default)
        else:
            names = (given.data,) if is_there(given.data) else names_in("data", given.data)
        if not names:
            raise UserError("no data set was named, but a comparison needs one. Give --data.")
        origins = []
        for name in names:
            origin = find_origin(name, given.root, given.datasets_dir, given.protocol)
            if origin.data is not None and len(names) > 1:
                advice = "Compare on one folder at a time."
                raise bad_value("data", given.data, "one folder, or names of data sets, was expected", advice)
            origins.append(origin)
        return tuple(origins)


def run(arguments: Sequence[str], prog: str) -> None:
    """Compute what is missing of a grid and show all of it."""
    show(read_call(arguments, prog, COMPARE), FEW_SHOT, (), command_of(arguments, prog))


def run_protocol(arguments: Sequence[str], prog: str) -> None:
    """Fill and show the table of the protocol that the command ends in."""
    protocol = prog.split()[-1]
    defaults = {"shots": "1,2,4,8,16" if protocol == FEW_SHOT else "16", "out": Path("runs") / protocol}
    call = read_call(arguments, prog, DESCRIPTIONS[protocol], defaults)
    show(call, protocol, SETS[protocol], command_of(arguments, prog))


def show(call: Call, protocol: str, default_sets: Sequence[str], command: str) -> None:
    """Compute a grid, print its table, and write tables, figures and report."""
    given = call.compared
    for name in dict.fromkeys(one.backbone for one in call.contenders):
        refuse_missing(name)
    origins, shots, seeds = call.origins(default_sets), shots_in(given.shots), counts_in("seed", given.seed)
    if call.texts and protocol != FEW_SHOT:
        raise UserError(f"{protocol} is a protocol for images, but {origins[0].name} is text. Use mmprompt compare.")
    call = replace(call, contenders=carried(call))
    grid = protocol_grid(protocol, origins, call.contenders, shots, seeds, call.recipe)

    from mmprompt.experiments.compare import compare_grid

    output = Output(given.json == STDOUT)
    check_place(given.out)
    check_place(given.results, "results")
    if given.json is not None and given.json != STDOUT:
        check_file(given.json, "json")
    n_cells = len(grid.cells())
    methods = ", ".join(dict.fromkeys(one.name for one in grid.contenders))
    sets = ", ".join(one.name for one in (*grid.sources, *grid.targets))
    count = "1 cell" if n_cells == 1 else f"{n_cells:,} cells"

    def begin() -> None:
        output.say(f"{count}: {methods} on {sets}; shots {given.shots}, seeds {given.seed}.")
        output.say(f"Finished ones are kept in {given.results}; the same command goes on where it was stopped.")

    with ProgressDisplay() as progress:
        if given.skip_broken:
            grid = without_broken(grid, given.device, progress.count("opened"))
        comparison = compare_grid(grid, given.results, call.workers, given.device, progress.show, begin)
    conclude(output, given, comparison, TEXTS if call.texts else protocol, command)


def carried(call: Call) -> tuple[Contender, ...]:
    """Return the methods without those that were not asked for by name and that a backbone cannot carry, and say so."""
    given = call.compared
    doubted = [one for one in call.contenders if given.method == ALL or one.name.startswith(f"{INSTRUCTION} ")]
    if not doubted:
        return call.contenders

    from mmprompt.experiments.compute import Bench

    bench, output, left_out = Bench(given.device), Output(given.json == STDOUT), []
    for one in doubted:
        model = bench.take("language" if call.texts else "classification", one.backbone)
        try:
            if not call.texts:
                one.method.build(model, ["cat", "dog"])  # type: ignore[attr-defined]
            for data in call.texts:
                data.task().predictor(settled(one.method, one.backbone, "language"), model, seed=0)
        except UserError as error:
            left_out.append(one)
            output.say(f"Left out: {one.name} on {one.backbone}. {error}", "dim")
    return tuple(one for one in call.contenders if one not in left_out)


def conclude(output: Output, given: Compared, comparison: Comparison, protocol: str, command: str) -> None:
    """Print the table, say where everything lies, and fail if a cell did."""
    from mmprompt.experiments.comparison_report import write_comparison
    from mmprompt.experiments.paper_tables import LAYOUTS
    from mmprompt.reports.pages import missing_extra

    if comparison.lines:
        table = LAYOUTS[protocol](comparison)
        output.say()
        output.table(table.headers, table.rows, range(table.n_names, len(table.headers)))
        output.say()
        for note in table.notes:
            output.say(note, "dim")
        problem = missing_extra()
        report = None if problem else write_comparison(comparison, given.out, protocol, command)
        output.say()
        output.say(f"report   {report or problem}")
        output.say(f"tables   {given.out}/table.txt, .md, .csv, .tex" if report else "")
    content = {"protocol": protocol, "command": command, **comparison.to_json()}
    if given.json is not None and given.json != STDOUT:
        make_folder(given.json.parent)
        write_json(given.json, content)
        output.say(f"numbers  {given.json}")
    output.document(content)
    if comparison.failures:
        what, why = next(iter(comparison.failures.items()))
        raise RunFailed(f"{len(comparison.failures)} cells could not be computed, the first: {what}: {why}")


def read_call(arguments: Sequence[str], prog: str, description: str, defaults: Mapping[str, Any] | None = None) -> Call:
    """Read a command line of `compare` or a protocol; `defaults` win over those of `Compared`."""
    texts = texts_in(peek(arguments, "data"))
    for name in given_names(arguments, FOR_IMAGES) if texts else ():
        raise UserError(f"--{name.replace('_', '-')} is for images, but {texts[0].name} is text. Leave it out.")
    room: Any = of_texts if texts else of_images
    usual = OF_TEXTS if texts else Compared.method
    names = names_in("method", peek(arguments, "method", usual))
    if names == (ALL,):
        names = tuple(name for name, kind in room.METHODS.items() if kind.learns and name != INSTRUCTION)
        names += (INSTRUCTIONS,) if texts else ()
    written = instructions_of(texts) if texts and INSTRUCTIONS in names else {}
    names = tuple(name for name in names if not (texts and name == INSTRUCTIONS))
    kinds = {name: room.method_types(name) for name in names}
    settings = merged_settings([kind for several in kinds.values() for kind in several])
    groups: dict[str, Any] = {"run": Compared, "workers": WorkerSettings, "method": settings, "recipe": Recipe}
    form = make_dataclass("Comparison", list(groups.items()), frozen=True)
    remember(form)
    read: Any = parse(form, arguments, prog, description, filled(form, {"method": usual, **(defaults or {})}))
    chosen = given_values(read.method, arguments)
    methods = {}
    for name in names:
        own = {one.name for kind in kinds[name] for one in fields(kind)}
        methods[name] = room.make_method(name, {key: value for key, value in chosen.items() if key in own})
    contenders = tuple(
        Contender(name, method, backbone)
        for backbone in names_in("backbone", read.run.backbone)
        for name, method in {**written, **methods}.items()
    )
    return Call(read.run, read.workers.chosen(), contenders, given_values(read.recipe, arguments), texts)


def instructions_of(texts: Sequence[TextData]) -> dict[str, of_texts.Instruction]:
    """Return a method for each number that instructions of some data have; refuse data without any."""
    n_most = max(len(data.instructions) for data in texts)
    if not n_most:
        raise UserError(f"{texts[0].name} has no card with instructions, which are to be compared. Give --method.")
    return {f"{INSTRUCTION} {number}": of_texts.Instruction(number) for number in range(1, n_most + 1)}


def texts_in(data: str | None) -> tuple[TextData, ...]:
    """Read the rows of text that are named, with commas between; none where the data is images."""
    if data is None:
        return ()
    names = (data,) if is_there(data) else names_in("data", data)
    for path in (expanded(name) for name in names):
        if path.suffix.lower() in SUFFIXES and not path.exists():
            raise bad_file(path, "is not there", "Give a table of images, or rows of text.")
    found = [is_text(name) for name in names]
    if any(found) and not all(found):
        raise bad_value("data", data, "images or texts were expected, and not both", "Compare on one kind at a time.")
    return tuple(load_texts(expanded(name) if Path(name).suffix else name) for name in names) if any(found) else ()


def merged_settings(kinds: Sequence[type]) -> type:
    """Make one class with the fields of all: a setting that several methods have is given once, for all of them."""
    members: dict[str, Any] = {}
    for kind in dict.fromkeys(kinds):
        helps = {option["name"]: option["help"] for option in options_of(kind)}
        hints = get_type_hints(kind)
        for one in fields(kind):
            if one.name not in members and one.name in helps:
                text = tyro.conf.arg(help=helps[one.name])
                members[one.name] = (one.name, Annotated[hints[one.name], text], field(default=one.default))
    made = make_dataclass("Settings", members.values(), frozen=True)
    made.__doc__ = "Of the methods; what is left out is up to each method."
    return made


def given_values(group: Any, arguments: Sequence[str]) -> dict[str, Any]:
    """Return those settings of a group that the command line gives, or a file."""
    return {name: getattr(group, name) for name in given_names(arguments, [one.name for one in fields(group)])}


def find_origin(data: str, root: Path | None, datasets_dir: Path | None, rule: str = "coop") -> Origin:
    """Say where the images of a data set are, given by its name or by a path."""
    path = own_path(data, datasets_dir)
    root_text, cards = (None if place is None else str(place.resolve()) for place in (root, datasets_dir))
    if path is not None and not path.exists():
        raise bad_file(path, "is not there", "Give a folder that holds a folder of images for each class, or a table.")
    if path is not None:
        place = path.resolve()
        return Origin(place.name if place.is_dir() else place.stem, str(place), root_text, rule=rule)
    return Origin(data, None, root_text, cards, rule)
