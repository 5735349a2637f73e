"""`mmprompt eval`: a trained prompt on labelled images, beside zero-shot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from mmprompt.core.header import read_header
from mmprompt.data.splits import SplitName
from mmprompt.errors import UserError
from mmprompt.terminal.images import Images
from mmprompt.terminal.output import Backbone, Json, Output, result_table
from mmprompt.terminal.parser import parse

DESCRIPTION = "Measure a trained prompt beside zero-shot, on the images of its run or on others."


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    run: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """The run folder."""
    split: SplitName = "test"
    """Which part of the data set."""
    backbone: Backbone = None
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    json: Json = False
    images: Images = field(default_factory=Images)


def run(arguments: Sequence[str], prog: str) -> None:
    """Measure and print."""
    settings = parse(Settings, arguments, prog, DESCRIPTION)
    output = Output(settings.json)
    header = read_header(settings.run)
    images = settings.images.or_of_run(settings.run, header["training"])
    data = images.load_as_drawn(header["training"])  # so that train and val are the same again
    items = data.items(settings.split)
    if not items:
        raise UserError(f"the {settings.split} part of {data.name} is empty. Choose another --split.")

    from mmprompt.classification.measure import measure
    from mmprompt.core.file import load
    from mmprompt.models.image_features import ImageFeatures
    from mmprompt.progress import ProgressDisplay

    classifier = load(settings.run, settings.backbone, settings.device)
    features = ImageFeatures(classifier.backbone)
    with ProgressDisplay() as progress:
        known = features.stored([item.path for item in items])
        tested = images.sound(replace(data, train=(), val=(), test=items), progress.count("checking images"), known)
    if data.class_names != classifier.class_names:
        classifier = classifier.with_class_names(data.class_names)
    with ProgressDisplay() as progress:
        features.progress = progress.count("encoding images")
        metrics = measure(classifier, tested, features=features)
    output.say(f"{settings.run} on the {settings.split} part of {data.name}: {len(tested.test):,} images.")
    for note in tested.notes:
        output.say(f"Note: {note}", "dim")
    output.say()
    result_table(output, metrics, data.template)
    output.document({"run": str(settings.run), "dataset": data.name, "split": settings.split, "metrics": metrics})
