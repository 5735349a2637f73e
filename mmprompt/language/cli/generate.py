"""`mmprompt llm generate`: what a language model says with a prompt, as it says it, or of a file of rows."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmprompt.core.header import read_header
from mmprompt.errors import bad_file, bad_value, unknown_name
from mmprompt.files import read_objects, write_bytes
from mmprompt.language.cli.options import TEMPLATE_HELP, Loading
from mmprompt.language.data import TextRow
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.models.packaged import refuse_missing
from mmprompt.progress import ProgressDisplay
from mmprompt.terminal.output import JSON_HELP, Output, check_place, percent
from mmprompt.terminal.parser import parse

if TYPE_CHECKING:
    from mmprompt.language.predictor import LanguagePredictor


PLAIN = "{text}{answer}"
ROWS_AT_ONCE = 64
DESCRIPTION = "Write what a language model says with a prompt, piece by piece; without one what it says by itself."
_log = logging.getLogger(__name__)
Answer = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What is answered."""

    input: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT|NAME=TEXT...|FILE.jsonl")] = ()
    """A text; several fields of a template as NAME=TEXT each; or a JSONL file of rows."""
    prompt: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """The run folder of a prompt."""
    template: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help=TEMPLATE_HELP)] = None
    classify: bool = False
    """Say how probable each label is, with a prompt that tells labels apart."""
    task: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Which task, with a prompt of several; rows of a file may name their own."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A new JSONL file of answers, a row each."""
    backbone: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """The frozen model, if it is not the one that the prompt names; `tiny` without a prompt."""
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False
    generation: Generation = field(default_factory=Generation)
    loading: Loading = field(default_factory=Loading)


def run(arguments: Sequence[str], prog: str) -> None:
    """Answer a text on the screen as the answer is written, or the rows of a file."""
    settings = parse(Settings, arguments, prog, DESCRIPTION)
    output = Output(settings.json)
    refuse_before_loading(settings)

    from mmprompt.language.predictor import stream_text

    prompted = read_prompt(settings)
    rows = read_input(settings.input, prompted.template.fields, settings.task)
    if prompted.label_words is not None and not settings.classify:
        _log.warning("this prompt tells labels apart; add --classify for the label and how probable it is.")
    is_streamed = settings.out is None and not settings.json and not settings.classify and len(rows) == 1
    if is_streamed and settings.generation.n_beams == 1:
        output.stream(without_blanks(stream_text(prompted, rows[0], settings.generation)))
        return
    with ProgressDisplay() as progress:
        answers = answers_of(prompted, rows, settings, progress)
    if settings.out is not None:
        write_bytes(settings.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in answers).encode())
        output.say(f"{len(answers)} rows in {settings.out}.")
    else:
        show(output, answers, settings.classify)
    output.document({"answers": answers})


def refuse_before_loading(settings: Settings) -> None:
    """Refuse options that do not go together, a prompt or input that is not there, and an output that is."""
    if settings.prompt is not None and settings.template is not None:
        expected = "the prompt has a template of its own"
        raise bad_value("template", repr(settings.template), expected, "Give one of --prompt and --template.")
    if settings.classify and settings.prompt is None:
        raise bad_value("classify", True, "labels come with a prompt", "Add --prompt RUN.")
    if settings.out is not None:
        if settings.out.exists():
            raise bad_file(settings.out, "is there already", "Give another --out, or remove it.")
        check_place(settings.out.parent)
    if settings.prompt is not None:
        read_header(settings.prompt, "language")
    if len(settings.input) == 1 and settings.input[0].endswith(".jsonl"):
        next(iter(read_objects(Path(settings.input[0]))), None)
    refuse_missing(settings.backbone or "")


def read_prompt(settings: Settings) -> LanguagePredictor:
    """Load the model with its prompt, with a template in words, or by itself."""
    from mmprompt.core.learned import Prompt
    from mmprompt.language.predictor import LanguagePredictor
    from mmprompt.language.templates.template import Template

    if settings.prompt is not None:
        prompted = settings.loading.model_and_prompts([settings.prompt], settings.backbone)[1][0]
    else:
        template = Template.parse(settings.template or PLAIN)
        if template.groups:
            expected = "there are no vectors for its {soft}"
            raise bad_value("template", repr(settings.template), expected, "Take {soft} out, or give --prompt RUN.")
        prompted = LanguagePredictor(settings.loading.model(settings.backbone or "tiny"), Prompt(template))
    if settings.task and settings.task not in prompted.tasks:
        raise unknown_name("task", settings.task, prompted.tasks, "" if prompted.tasks else "Leave --task out.")
    return prompted


def read_input(given: Sequence[str], fields: Sequence[str], task: str) -> list[TextRow]:
    """Read the rows to answer: a text, NAME=TEXT for each field, or a JSONL file, whose other fields are skipped."""
    if len(given) == 1 and given[0].endswith(".jsonl"):
        path, rows = Path(given[0]), []
        for line, record in read_objects(path):
            for name in fields:
                if not isinstance(record.get(name), str):
                    problem = f"has no text {name!r}, a field of the template"
                    raise bad_file(path, problem, "Write it in every row.", line)
            rows.append(TextRow({name: record[name] for name in fields}, task=str(record.get("task", task))))
        if not rows:
            raise bad_file(path, "holds no rows", "Write one JSON object on each line.")
        return rows
    pairs = [item.partition("=") for item in given]
    named = {name: text for name, sign, text in pairs if sign and name in fields}
    if len(fields) == 1 and len(given) == 1 and not named:
        named = {fields[0]: given[0]}
    if len(named) < len(given) or any(name not in named for name in fields):
        names = " ".join(f'{name}="..."' for name in fields) if len(fields) > 1 else '"..."'
        wanted = f"the template has {'the fields ' + ', '.join(fields) if fields else 'no field'}"
        advice = f"Write --input {names}." if fields else "Leave it out."
        raise bad_value("input", repr(" ".join(given)) if given else "empty", wanted, advice)
    return [TextRow(named, task=task)]


def answers_of(
    prompted: LanguagePredictor, rows: Sequence[TextRow], settings: Settings, progress: ProgressDisplay
) -> list[Answer]:
    """Answer each row, JSON-ready."""
    from mmprompt.language.predictor import generate_texts

    answers: list[Answer] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        if settings.classify:
            told = prompted.classify(some)
            found: list[Answer] = [{"label": one.label, "probabilities": dict(one.probabilities)} for one in told]
        else:
            written = generate_texts(prompted, some, settings.generation)
            found = [{"answer": one.text, "n_tokens": one.n_tokens, "is_cut": one.is_cut} for one in written]
        tasks = [{"task": row.task} if row.task else {} for row in some]
        answers += [{**row.fields, **more, **one} for row, more, one in zip(some, tasks, found, strict=True)]
        progress.show("answering", len(answers), len(rows))
    return answers


def show(output: Output, answers: Sequence[Answer], is_classified: bool) -> None:
    """Print answers, a line or a few each."""
    if not is_classified:
        for answer in answers:
            output.say(answer["answer"])
        return
    labels = list(answers[0]["probabilities"])
    if len(answers) == 1:
        ranked = sorted(answers[0]["probabilities"].items(), key=lambda pair: -pair[1])
        output.table(["label", "probability"], [[label, percent(share)] for label, share in ranked], numbers=(1,))
        return
    rows = [[row["label"], *(percent(row["probabilities"][label]) for label in labels)] for row in answers]
    output.table(["label", *labels], rows, numbers=range(1, len(labels) + 1))


def without_blanks(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the pieces of an answer without the blanks it begins with."""
    has_begun = False
    for piece in pieces:
        text = piece if has_begun else piece.lstrip()
        has_begun = has_begun or bool(text)
        if text:
            yield text
