"""`mmprompt predict`: what a run of any kind says of images or texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import tyro

from mmprompt.core.header import read_header
from mmprompt.errors import UserError, bad_file, bad_value
from mmprompt.terminal.output import JSON_HELP, Output, percent, shorten
from mmprompt.terminal.parser import parse

DESCRIPTION = "Label images, caption them, or answer texts, as the run is of one kind or another."
LONGEST = 60


@dataclass(frozen=True)
class Settings:
    """What is predicted."""

    run: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """The run folder."""
    inputs: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="IMAGES|TEXTS...")]]
    """Image files, or texts for a prompt of a language model; one or more."""
    top_k: Annotated[int, tyro.conf.arg(metavar="INT")] = 3
    """How many labels to show for each, the most probable first."""
    class_names: Annotated[str | None, tyro.conf.arg(metavar="NAME,NAME")] = None
    """Other class names for a classifier's prompt, with commas between."""
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False


def run(arguments: Sequence[str], prog: str) -> None:
    """Predict and print.

    Raises:
        UserError: the run, an image or a class name cannot be used; no model is loaded then.
    """
    settings = parse(Settings, arguments, prog, DESCRIPTION)
    if not settings.inputs:
        raise bad_value("IMAGES|TEXTS", "empty", "at least one is needed", f"Write {prog} RUN IMAGE.")
    if settings.top_k < 1:
        raise bad_value("top_k", settings.top_k, "at least one label is shown", "Use --top-k 1.")
    header = read_header(settings.run)
    if settings.class_names is not None and header["kind"] != "classification":
        problem = f"{settings.run} is a prompt for {header['kind']}"
        raise bad_value("class_names", settings.class_names, problem, "Leave it out.")
    if header["kind"] != "language":
        for name in settings.inputs:
            if not Path(name).is_file():
                raise bad_file(name, "there is no such image", "Check the path.")
    output = Output(settings.json)
    show = {"classification": show_labels, "captioning": show_captions, "language": show_answers}[header["kind"]]
    output.document({"run": str(settings.run), "predictions": show(settings, header, output)})


def show_labels(settings: Settings, header: Mapping[str, Any], output: Output) -> list[dict[str, Any]]:
    """Print the most probable labels of each image, and give them JSON-ready."""
    from mmprompt.core.file import load
    from mmprompt.models.dual_encoder.load import load_backbone

    classifier = load(settings.run, load_backbone(header["backbone"]["name"], settings.device))
    if settings.class_names is not None:
        classifier = classifier.with_class_names([part.strip() for part in settings.class_names.split(",")])
    predictions = classifier.predict([Path(name) for name in settings.inputs])
    rows, described = [], []
    for name, prediction in zip(settings.inputs, predictions, strict=True):
        best = list(islice(prediction.probabilities.items(), settings.top_k))
        rows += [[name if rank == 0 else "", label, percent(p)] for rank, (label, p) in enumerate(best)]
        top = [{"label": label, "probability": p} for label, p in best]
        described.append({"path": name, "label": prediction.label, "probability": prediction.probability, "top": top})
    output.table(["image", "label", "probability"], rows, numbers=(2,))
    return described


def show_captions(settings: Settings, header: Mapping[str, Any], output: Output) -> list[dict[str, Any]]:
    """Print a caption of each image, and give them JSON-ready."""
    from mmprompt.captioning.readers.load import load_captioner
    from mmprompt.core.file import load

    captioner = load(settings.run, load_captioner(header["backbone"]["name"], device=settings.device))
    captions = captioner.caption([Path(name) for name in settings.inputs])
    rows = [[name, caption.text] for name, caption in zip(settings.inputs, captions, strict=True)]
    output.table(["image", f"caption ({header['focus']})"], rows)
    return [{"path": name, "caption": text} for name, text in rows]


def show_answers(settings: Settings, header: Mapping[str, Any], output: Output) -> list[dict[str, Any]]:
    """Print the label or the generated answer of each text, and give them JSON-ready.

    Raises:
        UserError: the template has several fields, which `mmprompt llm generate` takes.
    """
    from mmprompt.core.file import load
    from mmprompt.models.decoder.load import load_language_model

    prompted = load(settings.run, load_language_model(header["backbone"]["name"], settings.device))
    if len(prompted.template.fields) != 1:
        fields = ", ".join(prompted.template.fields)
        advice = f"Use mmprompt llm generate --prompt {settings.run} --input FIELD=TEXT."
        raise UserError(
            f"the template of {settings.run} has the fields {fields}, but single texts were given. {advice}"
        )
    answers = prompted.predict(list(settings.inputs))
    shown = [shorten(text, LONGEST) for text in settings.inputs]
    if prompted.label_words is None:
        output.table(["text", "answer"], [[text, answer.text] for text, answer in zip(shown, answers, strict=True)])
        return [{"text": text, "answer": one.text} for text, one in zip(settings.inputs, answers, strict=True)]
    rows, described = [], []
    for text, name, answer in zip(settings.inputs, shown, answers, strict=True):
        ranked = sorted(answer.probabilities.items(), key=lambda pair: -pair[1])[: settings.top_k]
        rows += [[name if rank == 0 else "", label, percent(p)] for rank, (label, p) in enumerate(ranked)]
        described.append({"text": text, "label": answer.label, "probabilities": dict(answer.probabilities)})
    output.table(["text", "label", "probability"], rows, numbers=(2,))
    return described
