"""`mmprompt caption`: learn what a frozen captioner speaks of, write captions with it, and measure it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from mmprompt.backbones.captioners.load import load_captioner
from mmprompt.backbones.load import load_backbone
from mmprompt.cli.counter import Counter
from mmprompt.cli.output import JSON_HELP, Output
from mmprompt.cli.parser import parse, peek
from mmprompt.data.captions import CaptionData, load_caption_data
from mmprompt.data.focus_sets import build_focus
from mmprompt.errors import bad_value, unknown_name
from mmprompt.experiments.caption_report import write_caption_report
from mmprompt.experiments.caption_tables import focus_table, speaker_table, strength_table
from mmprompt.experiments.pages import missing_extra
from mmprompt.methods.captions import CAPTION_MODES, SoftPrompt
from mmprompt.predictors.caption_search import Decoding
from mmprompt.predictors.caption_writing import caption_rows, find_pictures
from mmprompt.predictors.captioner import (
    Captioner,
    CaptionFeatures,
    FocusPrompt,
    Steering,
    hard_prompt,
    load_captioner_of,
    load_focus,
    read_caption_header,
)
from mmprompt.tasks.caption_measure import CaptionMeasure, measure_captions
from mmprompt.tasks.caption_pictures import describe_pictures
from mmprompt.tasks.captioning import MAPPER_RECIPE, RECIPE, CaptionResult, fit_captions, fit_mapper
from mmprompt.training.callbacks import ProgressBar
from mmprompt.training.recipe import Recipe

DATA = "openart-scenes"
MAPPER, MAPPER_AND_SOFT = "mapper", "mapper+soft"
TRAIN = "Learn a prompt that makes a frozen captioner speak of one focus. Without options: emotions, on drawn scenes."
EVAL = "Measure learned prompts beside the captioner without one and beside hand-written words."
WRITE = "Write captions of pictures, with a learned prompt, several, or none."
SHOWN = 8
Device = Annotated[str, tyro.conf.arg(metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")]


@dataclass(frozen=True)
class TrainSettings:
    """What is trained, and where it goes."""

    data: Annotated[str, tyro.conf.arg(metavar="NAME|FILE")] = DATA
    """Captions: openart-scenes, or a JSONL, COCO, Karpathy, Flickr, SentiCap, FlickrStyle or ArtEmis file."""
    images: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The folder of the pictures, if it is not that of the file."""
    focus: Annotated[str, tyro.conf.arg(metavar="NAME")] = "emotions"
    """What captions are to speak of; one that the data has captions of."""
    choose: bool = False
    """Choose captions of the focus (objects or actions) among neutral ones, such as COCO's."""
    backbone: Annotated[str, tyro.conf.arg(metavar="NAME")] = "tiny"
    """The frozen captioner: `tiny`, `hf:NAME`, `open_clip:coca_...`, `ENCODER + LM`, or a folder."""
    mode: Annotated[str, tyro.conf.arg(metavar="NAME")] = "soft"
    """What is learned: soft (vectors after the start token), kv (keys and values in every block), mapper (from an image
    encoder to a language model), mapper+soft (both, one after the other), or text (nothing; give --words)."""
    seed: Annotated[int, tyro.conf.arg(metavar="INT")] = 1
    """Seed of the order of the captions."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The new run folder; by default runs/FOCUS."""
    resume: bool = False
    """Go on from the newest checkpoint in the run folder."""
    device: Device = "auto"
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False


@dataclass(frozen=True)
class WriteSettings:
    """What is captioned, and how captions are steered."""

    pictures: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PICTURES...")]]
    """Picture files and folders of pictures."""
    prompt: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...")] = ()
    """Run folders of prompts; several are mixed. None is the captioner as it is."""
    weights: Annotated[tuple[float, ...], tyro.conf.arg(metavar="NUMBER...")] = ()
    """Weights of several prompts, by default the same for all."""
    strength: Annotated[float, tyro.conf.arg(metavar="NUMBER")] = 1.0
    """0 is the captioner without a prompt, 1 the plain prompt, more pushes harder."""
    avoid: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """The run folder of a prompt to push away from."""
    avoid_strength: Annotated[float, tyro.conf.arg(metavar="NUMBER")] = 0.5
    """How hard to push away."""
    words: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """A focus in words instead of a learned prompt."""
    backbone: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """The captioner, if it is not the one that the prompt names."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A JSONL file with a row a picture; run again, it goes on where it stopped."""
    rerank: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """A dual encoder that orders the n best captions of a picture by likeness too; needs --n-best."""
    device: Device = "auto"
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False
    decoding: Decoding = field(default_factory=Decoding)


@dataclass(frozen=True)
class EvalSettings:
    """What is measured."""

    data: Annotated[str, tyro.conf.arg(metavar="NAME|FILE")] = DATA
    """Pictures with captions: openart-scenes, openart-scenes-new-style, or a file."""
    images: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The folder of the pictures, if it is not that of the file."""
    prompts: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...")] = ()
    """Run folders of prompts, one a focus."""
    split: Annotated[str, tyro.conf.arg(metavar="NAME")] = "test"
    """Which part: train, val or test."""
    clip: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """A dual encoder for CLIPScore; it should be another than the captioner's."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """A folder for report.html, its figures and metrics.json."""
    device: Device = "auto"
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False
    decoding: Decoding = field(default_factory=Decoding)


def run_train(arguments: Sequence[str], prog: str) -> None:
    """Learn a focus, or a mapper, or one after the other, and show what it says.

    Raises:
        UserError: something in the call or the data is wrong; nothing is written then.
    """
    settings, recipe, method = read_train(arguments, prog)
    output = Output(settings.json)
    data = load_caption_data(settings.data, settings.images)
    data = build_focus(data, settings.focus) if settings.choose else data
    for note in data.notes:
        output.say(note)
    folder = settings.out or Path("runs") / (MAPPER if settings.mode == MAPPER else settings.focus)
    backbone = settings.backbone
    if settings.mode in (MAPPER, MAPPER_AND_SOFT):
        mapper = folder if settings.mode == MAPPER else folder.with_name(f"{folder.name}-mapper")
        history = train_mapper(settings, data, mapper, recipe)
        output.say(f"\nThe mapper is in {mapper}. The weights of encoder and language model are what they were before.")
        backbone = str(mapper)
        if settings.mode == MAPPER:
            output.say(f"Next: mmprompt caption train --backbone {shlex.quote(str(mapper))} --focus FOCUS")
            output.document({"run": str(mapper), "history": history})
            return
        recipe = RECIPE
    captioner = load_captioner(backbone, settings.device)
    with Counter("encoding pictures") as counter:
        features = CaptionFeatures(captioner, progress=counter)
        bars, resume = [ProgressBar()], settings.resume
        result = fit_captions(
            settings.focus, method, captioner, data, folder, recipe, settings.seed, bars, resume, features
        )
    conclude_training(output, settings, result, folder)


def train_mapper(settings: TrainSettings, data: CaptionData, folder: Path, recipe: Recipe) -> list[dict[str, Any]]:
    """Train a mapper unless an earlier call of the same command did; its history."""
    if settings.resume and folder.exists():
        return []
    captioner = load_captioner(settings.backbone, settings.device)
    resume = settings.resume and folder.with_name(f"{folder.name}-training").exists()
    return fit_mapper(captioner, data, folder, recipe, settings.seed, [ProgressBar()], resume)


def conclude_training(output: Output, settings: TrainSettings, result: CaptionResult, folder: Path) -> None:
    """Show what a prompt says beside the captioner without one, and what to do next."""
    captioner, data = result.captioner, result.data
    shown = (data.val or data.train)[:4]
    plain, steered = (caption_texts(one, shown) for one in (Captioner(captioner), result.steered))
    rows = [[item.image_id, before, after] for item, before, after in zip(shown, plain, steered, strict=True)]
    output.table(["picture", "without a prompt", settings.focus], rows)
    output.say(f"\nThe prompt is in {folder}. The weights of {captioner.name} are what they were before.")
    output.say(f"Next: mmprompt caption write PICTURES --prompt {shlex.quote(str(folder))}")
    output.say(f"      mmprompt caption eval --data {shlex.quote(settings.data)} --prompts {shlex.quote(str(folder))}")
    output.document({"run": str(folder), "history": result.history, "notices": list(result.notices)})


def read_train(arguments: Sequence[str], prog: str) -> tuple[TrainSettings, Recipe, Any]:
    """Read a command line of `caption train`, whose options depend on the mode.

    Raises:
        UserError: there is no such mode.
    """
    mode = peek(arguments, "mode") or TrainSettings.mode
    if mode not in (*CAPTION_MODES, MAPPER, MAPPER_AND_SOFT):
        raise unknown_name("mode", mode, (*CAPTION_MODES, MAPPER, MAPPER_AND_SOFT))
    method = CAPTION_MODES.get(mode, SoftPrompt)
    groups: dict[str, Any] = {"run": TrainSettings, "method": method, "recipe": Recipe}
    form = make_dataclass("Train", list(groups.items()), frozen=True)
    recipe = MAPPER_RECIPE if mode in (MAPPER, MAPPER_AND_SOFT) else RECIPE
    defaults = {"run": TrainSettings(), "method": method(), "recipe": recipe}
    read: Any = parse(form, arguments, prog, TRAIN, form(**defaults))
    return read.run, read.recipe, read.method


def caption_texts(captioner: Captioner, items: Sequence[Any]) -> list[str]:
    """The captions of some items."""
    return [caption.text for caption in captioner.caption([item.image for item in items])]


def run_write(arguments: Sequence[str], prog: str) -> None:
    """Write captions to a file or to the screen.

    Raises:
        UserError: a prompt, a number or a place cannot be used.
    """
    settings = parse(WriteSettings, arguments, prog, WRITE)
    output = Output(settings.json)
    pictures = find_pictures(settings.pictures)
    if settings.rerank is not None and settings.decoding.n_best < 2:
        raise bad_value("rerank", settings.rerank, "there is one caption a picture", "Add --n-beams 4 --n-best 4.")
    runs = [*settings.prompt, *([] if settings.avoid is None else [settings.avoid])]
    for run in runs:
        read_caption_header(run)
    captioner = load_captioner_of(runs, settings.backbone, settings.device)
    steering = read_steering(settings, captioner)
    ranker = None if settings.rerank is None else load_backbone(settings.rerank, settings.device)
    describe = describe_pictures(Captioner(captioner, steering, settings.decoding), ranker)
    facts = what_captions_depend_on(settings, captioner.fingerprint)
    with Counter("writing captions") as counter:
        rows = caption_rows(describe, pictures, settings.out, facts, counter)
    shown = rows if settings.out is None else rows[:SHOWN]
    output.table(["picture", "caption"], [[row["image"], row.get("caption", f"({row.get('error')})")] for row in shown])
    if settings.out is not None:
        n_broken = sum("error" in row for row in rows)
        broken = f", {n_broken} of them for broken pictures" if n_broken else ""
        output.say(f"\n{len(rows)} rows in {settings.out}{broken}.")
    output.document({"settings": facts, "captions": rows})


def read_steering(settings: WriteSettings, captioner: Any) -> Steering:
    """The steering that the options describe.

    Raises:
        UserError: prompts and weights do not match, or a prompt is of another captioner.
    """
    prompts: list[FocusPrompt] = [load_focus(run, captioner) for run in settings.prompt]
    if settings.words is not None:
        prompts.append(hard_prompt(captioner, "words", settings.words))
    weights = settings.weights or (1.0,) * len(prompts)
    if len(weights) != len(prompts):
        raise bad_value("weights", len(weights), f"there are {len(prompts)} prompts", "Give one weight a prompt.")
    avoid = None if settings.avoid is None else load_focus(settings.avoid, captioner)
    pairs = tuple(zip(prompts, weights, strict=True))
    return Steering(pairs, settings.strength, avoid, settings.avoid_strength)


def what_captions_depend_on(settings: WriteSettings, fingerprint: str) -> dict[str, Any]:
    """What must be the same for two halves of one file: prompts by their hashes, and all numbers."""
    hashes = [read_caption_header(run)["tensors_sha256"] for run in settings.prompt]
    avoid = None if settings.avoid is None else read_caption_header(settings.avoid)["tensors_sha256"]
    kept = {key: value for key, value in asdict(settings).items() if key not in ("pictures", "out", "json", "device")}
    return kept | {"prompt": hashes, "avoid": avoid, "backbone": fingerprint}


def run_eval(arguments: Sequence[str], prog: str) -> None:
    """Measure learned prompts beside no prompt and beside words.

    Raises:
        UserError: there is no prompt, or one cannot be used.
    """
    settings = parse(EvalSettings, arguments, prog, EVAL)
    output = Output(settings.json)
    if not settings.prompts:
        raise bad_value("prompts", "empty", "one or more run folders are needed", f"Write {prog} --prompts RUN.")
    for run in settings.prompts:
        read_caption_header(run)
    data = load_caption_data(settings.data, settings.images)
    captioner = load_captioner_of(settings.prompts, None, settings.device)
    prompts = [load_focus(run, captioner) for run in settings.prompts]
    encoder = None if settings.clip is None else load_backbone(settings.clip, settings.device)
    with Counter("captioning") as counter:
        measure = measure_captions(
            captioner, data, prompts, settings.split, settings.decoding, encoder, progress=counter
        )
    show(output, measure)
    if settings.out is not None:
        report = write_caption_report(measure, data, settings.out, shlex.join([*prog.split(), *arguments]))
        output.say(f"\nReport: {report or missing_extra()}")
    output.document(measure.to_dict())


def show(output: Output, measure: CaptionMeasure) -> None:
    """Print what was measured: who spoke of what, what it was worth, and the curve over strength."""
    output.say(
        f"{measure.data}, {measure.split}: {len(measure.speakers[0].said)} pictures, judged by the {measure.judge}\n"
    )
    output.table(*speaker_table(measure))
    output.say("")
    output.table(*focus_table(measure))
    for focus, points in measure.strengths.items():
        if points:
            output.say(f"\n{focus} over strength")
            output.table(*strength_table(points))
    for note in measure.notes:
        output.say(f"\n{note}")
