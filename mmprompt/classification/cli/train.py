"""`mmprompt train`: settings to one `fit`, one `measure`, one report, and a table of what came out.

Which options there are depends on the method, so the method is found first and one parser is made of
the run's settings, the method's and the recipe's.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmprompt.classification.methods import ClassificationMethod, make_method, method_types
from mmprompt.core.method import (
    ANY_BACKBONE,
    default_method,
    measured_for,
    refuse_idle_recipe,
    resolved_recipe,
    settled,
)
from mmprompt.errors import is_first_process
from mmprompt.files import write_json
from mmprompt.models.packaged import refuse_missing
from mmprompt.progress import ProgressDisplay
from mmprompt.terminal.images import Images, own_path
from mmprompt.terminal.output import Output, check_folder, command_of, result_table
from mmprompt.terminal.parser import (
    filled,
    given_names,
    parse,
    peek,
    remember,
    saved_settings,
    typed,
    typed_recipe,
)
from mmprompt.training.recipe import LENGTHS, Recipe

if TYPE_CHECKING:
    from mmprompt.classification.predictor import Classifier
    from mmprompt.core.fit import Result
    from mmprompt.data.splits import Dataset
    from mmprompt.models.dual_encoder.interface import DualEncoder

DESCRIPTION = "Learn a prompt from a few images of each class. Without options: 4 context vectors on openart-large."
DATA = "openart-large"
EXAMPLE = Path("examples/scene.png")
"""A test image of it, in a clone of the repository."""
WORDS = "nearest_words.json"


@dataclass(frozen=True)
class Settings:
    """What is trained, and where it goes."""

    backbone: Annotated[str, tyro.conf.arg(metavar="NAME")] = "tiny"
    """The frozen model: `tiny`, `photo`, `open_clip:ARCHITECTURE/TAG`, `hf:NAME`, `timm:NAME`, or a folder."""
    method: Annotated[str, tyro.conf.arg(metavar="NAME")] = ANY_BACKBONE.method
    """How to learn: coop, vpt, or both as coop+vpt; the method brings its own options. By default what was measured to
    suit the backbone."""
    shots: Annotated[int | None, tyro.conf.arg(metavar="INT|None")] = 16
    """Training images of each class; None for all there are."""
    seed: Annotated[int, tyro.conf.arg(metavar="INT")] = 1
    """Seed of the shots, the random start, the order and the augmentation."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The new run folder; by default runs/DATASET-METHOD-16shots-seed1."""
    resume: bool = False
    """Go on from the newest checkpoint in the run folder."""
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    json: bool = False
    """Print one JSON document; everything for people goes to stderr."""


@dataclass(frozen=True)
class Call:
    """A command line, read; the method is made of its own group of settings. `reason` is why, where none was named."""

    run: Settings
    images: Images
    recipe: Recipe
    method: ClassificationMethod
    reason: str = ""


def run(arguments: Sequence[str], prog: str) -> None:
    """Train, measure beside zero-shot, and report; a call that is refused writes nothing."""
    call = read_call(arguments, prog)
    folder = call.run.out or default_folder(call)
    if is_first_process():
        check_folder(folder, call.run.resume)
    refuse_missing(call.run.backbone)
    data = call.images.load(call.run.shots, call.run.seed)

    from mmprompt.classification.measure import measure
    from mmprompt.classification.task import ClassificationTask
    from mmprompt.core.fit import fit
    from mmprompt.data.splits import SPLITS
    from mmprompt.models.dual_encoder.load import load_backbone
    from mmprompt.models.image_features import ImageFeatures

    output = Output(call.run.json)
    backbone = load_backbone(call.run.backbone, call.run.device)
    features = ImageFeatures(backbone)
    task = ClassificationTask.of(data, features)
    task.complete(call.recipe)
    method = settled(call.method, backbone.name, task.kind)
    task.predictor(method, backbone, call.run.seed)  # what does not go together is refused before all work and promises
    with ProgressDisplay() as progress:
        known = features.stored([item.path for split in SPLITS for item in data.items(split)])
        data = call.images.sound(data, progress.count("checking images"), known)
    task = ClassificationTask.of(data, features)
    said = {"command": command_of(arguments, prog), "data": kept_place(call.images)}
    announce(output, call, backbone, data, folder)
    with ProgressDisplay() as progress:
        features.progress = progress.count("encoding images")
        result = fit(call.method, backbone, task, folder, call.recipe, call.run.seed, (), call.run.resume, call=said)
        if not is_first_process():
            return
        metrics = measure(result.predictor, data, folder, features)
    report = finish(result, folder)
    conclude(output, metrics, data, folder, report)


def read_call(arguments: Sequence[str], prog: str) -> Call:
    """Read a command line of `train`, whose options depend on the method."""
    saved = saved_settings(arguments)
    if typed(arguments, "data"):
        saved = {key: value for key, value in saved.items() if key not in {"root", "template"}}
    named = peek(arguments, "method")
    default = default_method(peek(arguments, "backbone", Settings.backbone))
    name = default.method if named is None else named
    names = [part.strip().replace("-", "_") for part in name.split("+")]
    kinds = dict(zip(names, method_types(name), strict=True))
    groups: dict[str, Any] = {"run": Settings, "images": Images, **kinds, "recipe": Recipe}
    form = make_dataclass("Train", list(groups.items()), frozen=True)
    remember(form)
    start = filled(form, first_values(arguments, groups) | {"method": name})
    read: Any = parse(form, arguments, prog, DESCRIPTION, start, saved)
    settings = {key: value for group in kinds for key, value in asdict(getattr(read, group)).items()}
    images = replace(read.images, data=DATA) if read.images.data is None else read.images
    method = make_method(name, settings)
    refuse_idle_recipe(typed_recipe(arguments), {name: method})
    recipe = read.recipe if method.is_trained else Recipe()
    return Call(read.run, images, recipe, method, default.reason if named is None else "")


def first_values(arguments: Sequence[str], groups: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that options start from: what suits the data set and the backbone."""
    from mmprompt.data.catalog import recipe_of

    name, folder = peek(arguments, "data", DATA), peek(arguments, "datasets-dir")
    of_data: Mapping[str, Any] = {}
    if own_path(name, None if folder is None else Path(folder)) is None:
        of_data = recipe_of(name, folder)
    kinds = [kind for kind in groups.values() if hasattr(kind, "recipe")]
    places = (peek(arguments, "backbone", Settings.backbone), "classification")
    leading = next((kind for kind in kinds if kind.learns), kinds[0])
    suited = resolved_recipe(leading, places, of_data, None).given
    if not peek(arguments, "ctx-init"):
        for kind in kinds:
            if getattr(kind, "ctx_init", None) is None:
                suited |= measured_for(kind, *places).settings
    length = given_names(arguments, LENGTHS)
    return {name: value for name, value in suited.items() if not length or name not in LENGTHS}


def default_folder(call: Call) -> Path:
    """Return `runs/DATASET-METHOD-16shots-seed1`."""
    name = Path(str(call.images.data)).stem
    shots = "all" if call.run.shots is None else f"{call.run.shots}shots"
    return Path("runs") / f"{name}-{call.run.method}-{shots}-seed{call.run.seed}"


def announce(output: Output, call: Call, backbone: DualEncoder, data: Dataset, folder: Path) -> None:
    """Say in a few lines what is about to happen, and what the data had to say."""
    shots = "all that there are" if data.shots is None else f"{data.shots} a class"
    output.say(
        f"Learning a prompt ({call.run.method}) for the frozen backbone {call.run.backbone} from {len(data.train):,} "
        f"images of {data.name} ({len(data.class_names)} classes, {shots})."
    )
    if call.reason:
        output.say(f"The method is {call.run.method}, {call.reason}.")
    beside = "beside zero-shot" if backbone.has_text else "without zero-shot, for want of a text tower"
    output.say(f"Testing it on {len(data.test):,} other images, {beside}. Everything goes to {folder}.")
    for note in data.notes:
        output.say(f"Note: {note}", "dim")


def kept_place(given: Images) -> dict[str, Any]:
    """Return where the images are, so that they are found from any folder."""
    place = asdict(given)
    place["data"] = str(given.path.resolve()) if given.path else given.data
    for name in ("root", "datasets_dir"):
        if place[name] is not None:
            place[name] = str(Path(str(place[name])).resolve())
    return place


def finish(result: Result[Classifier], folder: Path) -> Path | None:
    """Add to the run folder the nearest words and the report, whose path is returned."""
    from mmprompt.classification.report import write_report
    from mmprompt.classification.words import context_words
    from mmprompt.reports.pages import missing_extra

    words = context_words(result.predictor)
    if words:
        write_json(folder / WORDS, words)
    return None if missing_extra() else write_report(folder)


def conclude(output: Output, metrics: dict[str, Any], data: Dataset, folder: Path, report: Path | None) -> None:
    """Print what came out, where it lies and what to try next."""
    from mmprompt.reports.pages import missing_extra

    output.say()
    result_table(output, metrics, data.template)
    output.say()
    output.say(f"run folder  {folder}")
    output.say(f"report      {report}" if report else f"report      {missing_extra()}")
    output.say()
    output.say("Try next:")
    image = EXAMPLE if EXAMPLE.is_file() and data.name == DATA else data.test[0].path
    image = image.relative_to(Path.cwd()) if image.is_relative_to(Path.cwd()) else image
    for command in (["predict", folder, image], ["eval", folder], ["inspect", folder]):
        output.say(f"  mmprompt {shlex.join(map(str, command))}", "bold")
    shown = {key: metrics[key] for key in ("zero_shot_name", "zero_shot_template", "learned") if key in metrics}
    output.document({"folder": str(folder), "report": None if report is None else str(report), "metrics": shown})
