"""`mmprompt caption train`: learn what a frozen captioner speaks of."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmprompt.captioning.data import DEFAULT_SET, EMBEDDED, CaptionData, load_captions, shown_name
from mmprompt.captioning.methods import MAPPER_RECIPE, METHODS
from mmprompt.core.method import Method, measured_for, refuse_idle_recipe, resolved_recipe
from mmprompt.core.soft import PrefixTuning, PromptTuning
from mmprompt.errors import bad_value, is_first_process, unknown_name
from mmprompt.models.packaged import refuse_missing
from mmprompt.progress import ProgressDisplay
from mmprompt.settings import Count
from mmprompt.terminal.output import Device, Json, Output, check_folder, command_of
from mmprompt.terminal.parser import given_names, parse, peek, typed_recipe
from mmprompt.training.recipe import LENGTHS, Recipe, refuse_views

if TYPE_CHECKING:
    from mmprompt.captioning.predictor import Captioner
    from mmprompt.core.fit import Result


AUTO, MAPPER, MAPPER_AND_SOFT = "auto", "mapper", "mapper+prompt-tuning"
BOTH = "prompt-tuning+prefix-tuning"
DESCRIPTION = (
    "Learn a prompt that makes a frozen captioner speak of one focus. Without options: emotions, on drawn scenes."
)


@dataclass(frozen=True)
class Settings:
    """What is trained, and where it goes."""

    data: Annotated[str, tyro.conf.arg(metavar="NAME|FILE")] = DEFAULT_SET
    """Captions: openart-scenes, or a JSONL, COCO, Karpathy, Flickr, SentiCap, FlickrStyle or ArtEmis file."""
    images: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The folder of the images, if it is not that of the file."""
    skip_missing: bool = False
    """Pass over captions of images that are not there, and images without captions."""
    focus: Annotated[str, tyro.conf.arg(metavar="NAME")] = "emotions"
    """What captions are to speak of; one that the data has captions of."""
    choose: bool = False
    """Choose captions of the focus (objects or actions) among neutral ones, such as COCO's."""
    backbone: Annotated[str, tyro.conf.arg(metavar="NAME")] = "tiny"
    """The frozen captioner: `tiny`, `photo`, `hf:NAME`, `open_clip:coca_...`, `ENCODER + LM`, or a folder."""
    method: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """What is learned: prompt-tuning (vectors after the start token), prefix-tuning (keys and values in every block),
    prompt-tuning+prefix-tuning, lora (terms beside the decoder's layers), auto (the one of these four that makes
    held-out captions most probable; the default for data of your own), mapper (from an image encoder to a language
    model), mapper+prompt-tuning (both, one after the other; the recipe is the mapper's), or hard (nothing; give
    --words)."""
    mapper: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Kind of the mapper of `ENCODER + LM`: mlp, the default, concepts (detectors, each with vectors of its own),
    transformer, or linear (one vector an image token)."""
    n_prefix: Annotated[Count | None, tyro.conf.arg(metavar="INT")] = None
    """Vectors that the mapper makes of an image; by default 10."""
    seed: Annotated[int, tyro.conf.arg(metavar="INT")] = 1
    """Seed of the order of the captions."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The new run folder; by default runs/FOCUS, runs/neutral for captions of no focus."""
    resume: bool = False
    """Go on from the newest checkpoint in the run folder."""
    device: Device = "auto"
    json: Json = False


def run(arguments: Sequence[str], prog: str) -> None:
    """Learn a focus, or a mapper, or one after the other, and show what it says."""
    settings, recipe, method = read_train(arguments, prog)
    output = Output(settings.json)
    folder = settings.out or Path("runs") / (MAPPER if settings.method == MAPPER else shown_name(settings.focus))
    if is_first_process():
        check_folder(folder, settings.resume)
    refuse_missing(settings.backbone)
    data = load_captions(settings.data, settings.images, settings.skip_missing)

    from mmprompt.captioning.choice import choose_method
    from mmprompt.captioning.focus_sets import build_focus
    from mmprompt.captioning.predictor import CaptionFeatures
    from mmprompt.captioning.readers.load import load_captioner
    from mmprompt.captioning.task import FocusTask
    from mmprompt.core.fit import fit

    data = build_focus(data, settings.focus) if settings.choose else data
    if settings.method != MAPPER:
        data.with_captions("train", settings.focus)  # refused before a mapper is trained for nothing
    for note in data.notes:
        output.say(note)
    backbone = settings.backbone
    if settings.method in (MAPPER, MAPPER_AND_SOFT):
        mapper = folder if settings.method == MAPPER else folder.with_name(f"{folder.name}-mapper")
        history = train_mapper(settings, data, mapper, recipe)
        output.say(f"\nThe mapper is in {mapper}. The weights of encoder and language model are what they were before.")
        backbone = str(mapper)
        if settings.method == MAPPER:
            output.say(f"Next: mmprompt caption train --backbone {shlex.quote(str(mapper))} --focus FOCUS")
            output.document({"run": str(mapper), "history": history})
            return
        recipe = Recipe()
    captioner = load_captioner(backbone, settings.device)
    with ProgressDisplay() as progress:
        features = CaptionFeatures(captioner, progress=progress.count("encoding images"))
        task = FocusTask(data, settings.focus, features)
        if method is None:
            choice = choose_method(captioner, task, recipe, settings.seed)
            output.say(str(choice))
            method, task = choice.method, choice.task
        call = {"command": command_of(arguments, prog), "data": place_of(settings)}
        result = fit(method, captioner, task, folder, recipe, settings.seed, (), settings.resume, call=call)
    if is_first_process():
        conclude_training(output, settings, result, folder)


def place_of(settings: Settings) -> dict[str, Any]:
    """Return where the captions and images are, so that they are found from any folder."""
    data = settings.data if settings.data in EMBEDDED else str(Path(settings.data).resolve())
    root = None if settings.images is None else str(settings.images.resolve())
    return {"data": data, "root": root, "skip_broken": settings.skip_missing, "choose": settings.choose}


def options_of(settings: Settings) -> str:
    """Return the options by which another verb finds the same captions."""
    images = [] if settings.images is None else ["--images", str(settings.images)]
    options = {"--skip-missing": settings.skip_missing, "--choose": settings.choose}
    flags = [option for option, is_given in options.items() if is_given]
    return shlex.join(["--data", settings.data, *images, *flags])


def train_mapper(settings: Settings, data: CaptionData, folder: Path, recipe: Recipe) -> list[dict[str, Any]]:
    """Train a mapper unless an earlier call of the same command did; return its history."""
    from mmprompt.captioning.mapper import fit_mapper
    from mmprompt.captioning.readers.load import load_captioner
    from mmprompt.training.callbacks import ProgressBar

    if settings.resume and folder.exists():
        return []
    captioner = load_captioner(settings.backbone, settings.device, mapper=settings.mapper, n_prefix=settings.n_prefix)
    resume = settings.resume and folder.with_name(f"{folder.name}-training").exists()
    with ProgressDisplay() as progress:
        counted = progress.count("encoding images")
        return fit_mapper(captioner, data, folder, recipe, settings.seed, [ProgressBar()], resume, counted)


def conclude_training(output: Output, settings: Settings, result: Result[Captioner], folder: Path) -> None:
    """Show what a prompt says beside the captioner without one, and what to do next."""
    from mmprompt.captioning.predictor import Captioner

    captioner, data = result.predictor.backbone, result.task.data
    shown = (data.val or data.train)[:4]
    images = [item.image for item in shown]
    plain, steered = (one.caption(images) for one in (Captioner(captioner), result.predictor))
    rows = [[item.image_id, old.text, new.text] for item, old, new in zip(shown, plain, steered, strict=True)]
    output.table(["image", "without a prompt", shown_name(settings.focus)], rows)
    output.say(f"\nThe prompt is in {folder}. The weights of {captioner.name} are what they were before.")
    output.say(f"Next: mmprompt caption write IMAGES --prompt {shlex.quote(str(folder))}")
    output.say(f"      mmprompt caption eval {options_of(settings)} --prompts {shlex.quote(str(folder))}")
    output.document({"run": str(folder), "history": result.history, "notices": list(result.notices)})


def read_train(arguments: Sequence[str], prog: str) -> tuple[Settings, Recipe, Method | None]:
    """Read a command line of `caption train`, whose options depend on the method; None for `auto` and for a mapper."""
    is_embedded = peek(arguments, "data", DEFAULT_SET) in EMBEDDED
    name = peek(arguments, "method", "prompt-tuning" if is_embedded else AUTO)
    names = (*METHODS, BOTH, AUTO, MAPPER, MAPPER_AND_SOFT)
    if name not in names:
        raise unknown_name("method", name, names)
    kind: type[Any] = METHODS.get(name, PromptTuning)
    places = (peek(arguments, "backbone", Settings.backbone), "captioning")
    recipe = MAPPER_RECIPE if name in (MAPPER, MAPPER_AND_SOFT) else resolved_recipe(kind, places, {}, None)
    if given_names(arguments, LENGTHS):  # in place of the length that was measured
        recipe = Recipe(**{option: value for option, value in recipe.given.items() if option not in LENGTHS})
    parts: list[tuple[str, Any]] = [("run", Settings), ("recipe", Recipe)]
    given: list[Any] = [replace(Settings(), method=name), recipe]
    if name not in (AUTO, BOTH, MAPPER):
        parts.insert(1, ("method", kind))
        given.insert(1, kind(**measured_for(kind, *places).settings))
    form = make_dataclass("Train", parts, frozen=True)
    read: Any = parse(form, arguments, prog, DESCRIPTION, form(*given))
    refuse_idle_recipe(typed_recipe(arguments), {name: kind})
    refuse_idle(arguments, name, read.run, read.recipe)
    if name == MAPPER:
        return read.run, read.recipe, None
    if name != AUTO:
        return read.run, read.recipe, PromptTuning() + PrefixTuning() if name == BOTH else read.method
    typed = given_names(arguments, [field.name for field in fields(Recipe)])
    # each method keeps its own recipe but for what was given
    return read.run, Recipe(**{option: getattr(read.recipe, option) for option in typed}), None


def refuse_idle(arguments: Sequence[str], name: str, settings: Settings, recipe: Recipe) -> None:
    """Refuse options that are nothing to captions or to the method of this name."""
    refuse_views(recipe, "images with captions")
    if recipe.patience is not None and name != MAPPER:
        expected = "captions have no validation accuracy to wait for"
        raise bad_value("patience", recipe.patience, expected, "Leave --patience out.")
    for option in ("mapper", "n_prefix"):
        if name not in (MAPPER, MAPPER_AND_SOFT) and getattr(settings, option) is not None:
            advice = f"Add --method {MAPPER}, or leave --{option.replace('_', '-')} out."
            raise bad_value(option, getattr(settings, option), f"{name} learns no mapper", advice)
    for option in given_names(arguments, ("focus", "choose")) if name == MAPPER else ():
        advice = f"Use --method {MAPPER_AND_SOFT}, or leave --{option} out."
        raise bad_value(option, getattr(settings, option), "a mapper is learned before any focus", advice)
