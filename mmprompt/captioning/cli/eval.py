"""`mmprompt caption eval`: learned prompts beside the captioner without one, beside words, and beside people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mmprompt.captioning.data import DEFAULT_SET, EMBEDDED, CaptionData, load_captions, read_lexicon
from mmprompt.captioning.decoding import Decoding
from mmprompt.core.header import HEADER, read_header
from mmprompt.core.soft import PromptTuning
from mmprompt.errors import bad_file, bad_value
from mmprompt.progress import ProgressDisplay
from mmprompt.terminal.output import Backbone, Device, Json, Output, check_place, command_of
from mmprompt.terminal.parser import parse

if TYPE_CHECKING:
    from mmprompt.captioning.measure import CaptionMeasure
    from mmprompt.captioning.predictor import CaptionFeatures
    from mmprompt.captioning.readers.captioner import FrozenCaptioner
    from mmprompt.core.learned import Prompt


DESCRIPTION = (
    "Measure learned prompts beside the captioner without one, beside hand-written words and beside people. "
    "Without options: objects, emotions and actions on drawn scenes, learned first where runs/ does not hold them."
)


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    data: Annotated[str, tyro.conf.arg(metavar="NAME|FILE")] = DEFAULT_SET
    """Images with captions: openart-scenes, openart-scenes-new-style, or a file."""
    images: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The folder of the images, if it is not that of the file."""
    skip_missing: bool = False
    """Pass over captions of images that are not there, and images without captions."""
    choose: bool = False
    """Choose captions of the prompts' focuses among neutral ones, as `caption train --choose` did."""
    prompts: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...")] = ()
    """Run folders of prompts, one a focus."""
    split: Annotated[str, tyro.conf.arg(metavar="NAME")] = "test"
    """Which part: train, val or test."""
    lexicon: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Words by focus, as JSON, to judge by: {"brand voice": ["wow", "today"]}. Without it, and beside data that brings
    none, nouns, verbs and words of feeling are judged by a tagger, any other focus by a classifier of captions."""
    clip: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """A dual encoder for CLIPScore; it should be another than the captioner's."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """A folder for report.html, its figures and metrics.json."""
    backbone: Backbone = None
    device: Device = "auto"
    json: Json = False
    decoding: Decoding = field(default_factory=Decoding)


def run(arguments: Sequence[str], prog: str) -> None:
    """Measure learned prompts beside no prompt and beside words, and learn the default ones where they are missing."""
    settings = parse(Settings, arguments, prog, DESCRIPTION)
    output = Output(settings.json)
    if not settings.prompts and (settings.data not in EMBEDDED or "--prompts" in arguments):
        whose = "after it" if "--prompts" in arguments else "for data of one's own"
        expected = f"one or more run folders are needed {whose}"
        raise bad_value("prompts", "empty", expected, f"Write {prog} --prompts RUN.")
    focuses = [read_header(folder, "captioning")["focus"] for folder in settings.prompts]
    if settings.decoding.n_best > 1:
        raise bad_value("n_best", settings.decoding.n_best, "one caption an image is measured", "Leave --n-best out.")
    if settings.out is not None:
        check_place(settings.out)
    data = load_captions(settings.data, settings.images, settings.skip_missing)
    if settings.lexicon is not None:
        data = replace(data, lexicon=read_lexicon(settings.lexicon))
        for focus in focuses or data.focuses:
            if focus not in data.lexicon:
                raise bad_file(settings.lexicon, f"has no words of {focus!r}", "Add them.")
    data.with_captions(settings.split, None)

    from mmprompt.captioning.focus_sets import build_focus
    from mmprompt.captioning.measure import measure_captions
    from mmprompt.captioning.metrics.caption_metrics import coco_module
    from mmprompt.captioning.predictor import CaptionFeatures, load_captioner_of, load_focus
    from mmprompt.captioning.report import write_caption_report
    from mmprompt.models.dual_encoder.load import load_backbone
    from mmprompt.reports.pages import missing_extra

    coco_module("cider.cider")  # missed now, not after prompts are learned
    for focus in (focuses or data.focuses) if settings.choose else ():
        data = build_focus(data, focus)
    captioner = load_captioner_of(settings.prompts, settings.backbone, settings.device)
    encoder = None if settings.clip is None else load_backbone(settings.clip, settings.device)
    with ProgressDisplay() as progress:
        features = CaptionFeatures(captioner, progress=progress.count("encoding images"))
        prompts = [load_focus(folder, captioner) for folder in settings.prompts]
        prompts = prompts or own_prompts(output, captioner, features)
        how, counted = (settings.split, settings.decoding, encoder), progress.count("captioning")
        measure = measure_captions(captioner, data, prompts, *how, features=features, progress=counted)
    show(output, measure, data)
    if settings.out is not None:
        report = write_caption_report(measure, data, settings.out, command_of(arguments, prog))
        output.say(f"\nReport: {report or missing_extra()}")
    output.document(measure.to_dict())


def own_prompts(output: Output, captioner: FrozenCaptioner, features: CaptionFeatures) -> list[Prompt]:
    """Load the prompts that `caption train` learns by default, one a focus; learn first those that are not there."""
    from mmprompt.captioning.predictor import focus_of, load_focus
    from mmprompt.core.fit import fit

    data = load_captions(DEFAULT_SET)
    folders = {focus: Path("runs") / focus for focus in data.focuses}
    prompts = {}
    for focus, folder in folders.items():
        if (folder / HEADER).exists():
            prompts[focus] = prompt = load_focus(folder, captioner)
            if focus_of(prompt) != focus:
                problem = f"is a prompt for {focus_of(prompt)}, not for {focus}"
                raise bad_file(folder, problem, "Name the prompts with --prompts.")
    missing = {focus: folder for focus, folder in folders.items() if focus not in prompts}
    for folder in missing.values():
        check_place(folder, "prompts")
    for focus, folder in missing.items():
        output.say(f"{folder} holds no prompt: learning one, as `mmprompt caption train --focus {focus}` does.")
        result = fit(PromptTuning(), captioner, data.focus(focus, features), folder, resume=folder.exists())
        prompts[focus] = result.predictor.prompt
    return [prompts[focus] for focus in folders]


def show(output: Output, measure: CaptionMeasure, data: CaptionData) -> None:
    """Print what was measured: who spoke of what, what it was worth, and the curve over strength."""
    from mmprompt.captioning.report import focus_table, notes, speaker_table, strength_table

    n_images = len(measure.speakers[0].said)
    output.say(f"\n{measure.data}, {measure.split}: {n_images} images, judged by the {measure.judge}\n")
    output.table(*speaker_table(measure))
    output.say()
    output.table(*focus_table(measure))
    output.say("People: each reference of an image against the others. Gained: points over no prompt and over words.")
    for focus, points in measure.strengths.items():
        if points:
            output.say(f"\n{focus} over strength")
            output.table(*strength_table(points))
    for note in notes(measure, data):
        output.say(f"\n{note}")
