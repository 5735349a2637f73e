"""`mmprompt predict`: labels and probabilities of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import tyro

from mmprompt.classification.predictor import Prediction
from mmprompt.core.file import load
from mmprompt.core.header import read_header
from mmprompt.errors import bad_value
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.terminal.output import Output, percent
from mmprompt.terminal.parser import parse

DESCRIPTION = "Label pictures with a trained prompt."


@dataclass(frozen=True)
class Settings:
    """What is labelled."""

    run: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """The run folder."""
    pictures: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PICTURES...")]]
    """Picture files, one or more."""
    top_k: Annotated[int, tyro.conf.arg(metavar="INT")] = 3
    """How many labels to show for each picture, the most probable first."""
    class_names: Annotated[str | None, tyro.conf.arg(metavar="NAME,NAME")] = None
    """Other class names for the same prompt, with commas between."""
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    json: bool = False
    """Print one JSON document; everything for people goes to stderr."""


def run(arguments: Sequence[str], prog: str) -> None:
    """Predict and print.

    Raises:
        UserError: the run, a picture or a class name cannot be used.
    """
    settings = parse(Settings, arguments, prog, DESCRIPTION)
    if not settings.pictures:
        raise bad_value("PICTURES", "empty", "at least one picture is needed", f"Write {prog} RUN PICTURE.")
    if settings.top_k < 1:
        raise bad_value("top_k", settings.top_k, "at least one label is shown", "Use --top-k 1.")
    output = Output(settings.json)
    name = read_header(settings.run)["backbone"]["name"]
    classifier = load(settings.run, load_backbone(name, settings.device))
    if settings.class_names is not None:
        classifier = classifier.with_class_names([part.strip() for part in settings.class_names.split(",")])
    rows, found = [], []
    for path, prediction in zip(settings.pictures, as_many(classifier.predict(list(settings.pictures))), strict=True):
        best = list(islice(prediction.probabilities.items(), settings.top_k))
        rows += [[str(path) if rank == 0 else "", label, percent(p)] for rank, (label, p) in enumerate(best)]
        top = [{"label": label, "probability": p} for label, p in best]
        found.append({"path": str(path), "label": prediction.label, "probability": prediction.probability, "top": top})
    output.table(["picture", "label", "probability"], rows, numbers=(2,))
    output.document({"run": str(settings.run), "predictions": found})


def as_many(predictions: Prediction | list[Prediction]) -> list[Prediction]:
    """Predictions as the list that a list of pictures gives."""
    return predictions if isinstance(predictions, list) else [predictions]
