"""`mmprompt predict`: labels, captions or answers of a run, for images, whole folders of them, or texts."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import tyro

from mmprompt.captioning.data import shown_name
from mmprompt.cli.run import Run
from mmprompt.core.header import read_header
from mmprompt.data.images import IMAGE_SUFFIXES, find_images, read_image
from mmprompt.errors import UserError, bad_file, bad_value
from mmprompt.files import make_folder, write_bytes
from mmprompt.models.packaged import refuse_missing
from mmprompt.progress import CountProgress, ProgressDisplay
from mmprompt.terminal.output import Backbone, Device, Json, Output, check_file, percent, shorten
from mmprompt.terminal.parser import parse

DESCRIPTION = "Label images, caption them, or answer texts, as the run is of one kind or another."
AT_ONCE, LONGEST, SHOWN = 32, 60, 3
UNSURE = "I don't know"
Said = dict[str, Any]
Describe = Callable[[Sequence[Any]], list[Said]]
"""Says what a run makes of some images or texts, JSON-ready."""


@dataclass(frozen=True)
class Settings:
    """What is predicted."""

    run: Run
    inputs: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="IMAGES|FOLDERS|TEXTS...")]]
    """Image files and folders of images, or texts for a prompt of a language model; one or more."""
    top_k: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """How many labels to show for each, the most probable first; by default 3."""
    threshold: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.0
    """Below this probability, 0 to 1, no label is given: the answer is "I don't know"."""
    class_names: Annotated[str | None, tyro.conf.arg(metavar="NAME,NAME")] = None
    """Other class names for a classifier's prompt, with commas between."""
    backbone: Backbone = None
    csv: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write a new CSV file, a row each, in place of the table."""
    device: Device = "auto"
    json: Json = False


def run(arguments: Sequence[str], prog: str) -> None:
    """Predict and print; what cannot be used is refused before a model is loaded."""
    settings = parse(Settings, arguments, prog, DESCRIPTION)
    if not settings.inputs:
        raise bad_value("IMAGES|FOLDERS|TEXTS", "empty", "at least one is needed", f"Write {prog} RUN IMAGE.")
    if settings.top_k is not None and settings.top_k < 1:
        raise bad_value("top_k", settings.top_k, "at least one label is shown", "Use --top-k 1.")
    if settings.run.suffix.lower() in IMAGE_SUFFIXES:
        raise bad_value("RUN", settings.run, "the folder of a run comes first", f"Write {prog} RUN {settings.run}.")
    header = read_header(settings.run)
    refuse_idle(settings, header)
    is_text = header["kind"] == "language"
    inputs = texts_of(settings) if is_text else find_images(list(map(Path, settings.inputs)))
    refuse_missing(settings.backbone or header["backbone"]["name"])
    output = Output(settings.json)
    from mmprompt.core.file import load

    described_by = {"classification": labels_of, "captioning": captions_of, "language": answers_of}[header["kind"]]
    with ProgressDisplay() as progress:
        describe = described_by(load(settings.run, settings.backbone, settings.device), settings)
        said = describe_all(describe, inputs, is_text, progress.count("predicting"))
    if settings.csv is not None:
        write_csv(settings.csv, said)
        output.say(f"{len(said)} rows in {settings.csv}.")
    else:
        show(output, said, header)
    n_broken = sum("error" in one for one in said)
    if n_broken:
        output.say(f"{n_broken} of {len(said)} images could not be read.")
    output.document({"run": str(settings.run), "predictions": said})


def texts_of(settings: Settings) -> list[tuple[str, str]]:
    """Return the texts, each beside itself; the name of a file is none."""
    for text in settings.inputs:
        path = Path(text)
        if len(text) <= LONGEST and path.suffix and path.is_file():
            advice = f"Use mmprompt llm generate --prompt {settings.run} --input {text}."
            raise bad_file(path, "is a file, but texts themselves are labelled here", advice)
    return [(text, text) for text in settings.inputs]


def refuse_idle(settings: Settings, header: Mapping[str, Any]) -> None:
    """Refuse options that a prompt of this kind has no use for, and a file that is there."""
    has_labels = header["kind"] == "classification" or bool(header.get("verbalizer"))
    if settings.class_names is not None and header["kind"] != "classification":
        problem = f"{settings.run} is a prompt for {header['kind']}"
        raise bad_value("class_names", settings.class_names, problem, "Leave it out.")
    for name in ("threshold", "top_k"):
        if getattr(settings, name) and not has_labels:
            problem = f"{settings.run} writes texts, which are not told apart by a probability"
            raise bad_value(name, getattr(settings, name), problem, "Leave it out.")
    if settings.top_k is not None and settings.csv is not None and not settings.json:
        raise bad_value("top_k", settings.top_k, "a CSV file has the first label alone", "Leave it out, or add --json.")
    if not 0 <= settings.threshold <= 1:
        raise bad_value("threshold", settings.threshold, "it is a probability, 0 to 1", "Use --threshold 0.5.")
    if settings.csv is not None:
        if settings.csv.exists():
            raise bad_file(settings.csv, "is there already", "Give another --csv, or remove it.")
        check_file(settings.csv, "csv")


def describe_all(
    describe: Describe, inputs: Sequence[tuple[str, Any]], is_text: bool, progress: CountProgress
) -> list[Said]:
    """Describe all inputs by name, some at once; an image that cannot be read is an error of its own."""
    said: list[Said] = []
    progress(0, len(inputs))
    for start in range(0, len(inputs), AT_ONCE):
        rows: list[Said] = [{"text" if is_text else "path": name} for name, _ in inputs[start : start + AT_ONCE]]
        whole, read = [], []
        for row, (_, source) in zip(rows, inputs[start : start + AT_ONCE], strict=True):
            try:
                read.append(source if is_text else read_image(source))
                whole.append(row)
            except UserError as error:
                row["error"] = str(error)
        for row, found in zip(whole, describe(read) if read else [], strict=True):
            row.update(found)
        said += rows
        progress(len(said), len(inputs))
    if all("error" in one for one in said):
        raise UserError(said[0]["error"])
    return said


def labels_of(classifier: Any, settings: Settings) -> Describe:
    """Give of images the label and the most probable labels."""
    if settings.class_names is not None:
        classifier = classifier.with_class_names([part.strip() for part in settings.class_names.split(",")])
    return lambda images: [
        labelled(each.label, each.probabilities, settings.top_k or SHOWN)
        for each in classifier.predict(images, settings.threshold)
    ]


def captions_of(captioner: Any, settings: Settings) -> Describe:
    """Give of images a caption."""
    return lambda images: [{"caption": each.text} for each in captioner.caption(images)]


def answers_of(prompted: Any, settings: Settings) -> Describe:
    """Give of texts a label or an answer."""
    if len(prompted.template.fields) != 1:
        fields = ", ".join(prompted.template.fields)
        advice = f"Use mmprompt llm generate --prompt {settings.run} --input FIELD=TEXT."
        raise UserError(
            f"the template of {settings.run} has the fields {fields}, but single texts were given. {advice}"
        )
    if prompted.label_words is None:
        return lambda texts: [{"answer": each.text} for each in prompted.predict(texts)]
    return lambda texts: [
        labelled(each.label, each.probabilities, settings.top_k or SHOWN)
        for each in prompted.predict(texts, settings.threshold)
    ]


def labelled(label: str | None, probabilities: Mapping[str, float], top_k: int) -> Said:
    """Give a label, None where none is sure enough, with the greatest probability and the most probable labels."""
    ranked = sorted(probabilities.items(), key=lambda pair: -pair[1])
    top = [{"label": name, "probability": p} for name, p in islice(ranked, top_k)]
    return {"label": label, "probability": ranked[0][1], "top": top}


def show(output: Output, said: Sequence[Said], header: Mapping[str, Any]) -> None:
    """Print a table of labels, captions or answers."""
    first = "text" if header["kind"] == "language" else "image"
    if any("top" in one for one in said):
        rows = [row for one in said for row in label_rows(one)]
        output.table([first, "label", "probability"], rows, numbers=(2,))
        return
    title = f"caption ({shown_name(header['focus'])})" if header["kind"] == "captioning" else "answer"
    rows = [[name_of(one), str(one.get("caption", one.get("answer", f"({one.get('error')})")))] for one in said]
    output.table([first, title], rows)


def label_rows(one: Said) -> Iterable[list[str]]:
    """Give the lines of one input: its labels, the most probable first."""
    if "error" in one:
        return [[name_of(one), f"({one['error']})", ""]]
    rows = [["", each["label"], percent(each["probability"])] for each in one["top"]]
    rows = rows if one["label"] is not None else [["", UNSURE, ""], *rows]
    return [[name_of(one), *rows[0][1:]], *rows[1:]]


def name_of(one: Said) -> str:
    """Return what an input is called in a table."""
    return str(one["path"]) if "path" in one else shorten(one["text"], LONGEST)


def write_csv(path: Path, said: Sequence[Said]) -> None:
    """Write a row for each input; no label where none is sure enough."""
    columns = list(dict.fromkeys(key for one in said for key in one if key != "top"))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(said)
    make_folder(path.parent)
    write_bytes(path, text.getvalue().encode())
