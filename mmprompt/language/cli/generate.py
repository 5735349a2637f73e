"""`mmprompt llm generate`: what a language model says with a prompt, as it says it, or of many rows."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmprompt.core.header import read_header
from mmprompt.data.tables import SUFFIXES, Record, read_records
from mmprompt.errors import UserError, bad_file, bad_value, unknown_name
from mmprompt.files import parse_json, sha256_bytes, text_lines, utf8_text
from mmprompt.language.cli.options import TEMPLATE_HELP, Loading, refuse_repeated
from mmprompt.language.data import TextRow
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.models.packaged import refuse_missing
from mmprompt.progress import ProgressDisplay, waiting
from mmprompt.terminal.output import (
    OTHER_OUT,
    Json,
    Output,
    Row,
    check_place,
    hash_of,
    percent,
    whole_rows,
    write_rows,
)
from mmprompt.terminal.parser import parse

if TYPE_CHECKING:
    from mmprompt.language.predictor import LanguagePredictor


PLAIN = "{text}{answer}"
CHAT = "[[user]]{text}\n[[assistant]]{answer}"
ROWS_AT_ONCE = 64
WRITTEN = ("label", "probabilities", "n_tokens", "is_cut", "settings")
"""What an answer is written under, beside the fields of its row."""
STDIN = "-"
DESCRIPTION = "Write what a language model says with a prompt, piece by piece; without one what it says by itself."


@dataclass(frozen=True)
class Settings:
    """What is answered."""

    input: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT|NAME=TEXT...|FILE|-")] = ()
    """A text; several fields of a template as NAME=TEXT each; a text file with a text a line; a table (JSONL, CSV, TSV,
    Parquet) or, with its slash, a folder of some, with the fields as columns; or - for lines or rows of JSON from the
    standard input."""
    prompt: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...")] = ()
    """Run folders of prompts of one model. Of several, a column `prompt` names the one of each row, by its folder's
    name; where there is no such column, each answers every row."""
    template: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help=TEMPLATE_HELP)] = None
    as_text: bool = False
    """Write an answer with a prompt that tells labels apart too; by default its label is given."""
    chat: bool = False
    """Go on from one text to the next, with all that was said before. Ctrl-C ends an answer, Ctrl-D the chat."""
    task: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Which task, with a prompt of several; rows of a file may name their own."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A JSONL file of answers, a row each; run again, it goes on where it stopped."""
    backbone: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """The frozen model, if it is not the one that the prompt names; `tiny` without a prompt."""
    json: Json = False
    generation: Generation = field(default_factory=Generation)
    loading: Loading = field(default_factory=Loading)


class Line(Record):
    """A line of text, under the name ""."""


@dataclass(frozen=True)
class Asked:
    """A row, the prompt that answers it, and that prompt's name."""

    row: TextRow
    prompted: LanguagePredictor
    name: str = ""

    @property
    def facts(self) -> Row:
        """What an answer is written beside."""
        more = {"task": self.row.task, "prompt": self.name}
        return {**self.row.fields, **{key: text for key, text in more.items() if text}}

    def has_label(self, settings: Settings) -> bool:
        """Whether the answer is a label."""
        return self.prompted.label_words is not None and not settings.as_text


def run(arguments: Sequence[str], prog: str) -> None:
    """Answer a text on the screen as the answer is written, or the rows of a file."""
    settings = parse(Settings, arguments, prog, DESCRIPTION)

    output = Output(settings.json)
    refuse_idle(settings)
    records = read_input(settings.input) if not settings.chat else []
    prompts = load_prompts(settings)
    if settings.chat:
        from mmprompt.language.cli.chat import chat

        chat(output, next(iter(prompts.values())), settings)
        return
    asked = assign(records, prompts, settings)
    say_cut(asked, settings)
    one = asked[0]
    is_streamed = settings.out is None and not settings.json and len(asked) == 1 and not one.has_label(settings)
    if is_streamed and settings.generation.n_beams == 1:
        from mmprompt.language.generation import stream_text

        output.stream(without_blanks(stream_text(one.prompted, one.row, settings.generation)))
        return
    with ProgressDisplay() as progress:
        answers = answers_of(asked, settings, progress)
    if settings.out is not None:
        output.say(f"{len(answers)} rows in {settings.out}.")
    else:
        show(output, answers)
    output.document({"answers": answers})


def refuse_idle(settings: Settings) -> None:
    """Refuse what cannot be before a model is loaded."""
    if settings.prompt and settings.template is not None:
        expected = "the prompt has a template of its own"
        raise bad_value("template", repr(settings.template), expected, "Give one of --prompt and --template.")
    names = [folder.name for folder in settings.prompt]
    refuse_repeated(settings.prompt)
    models: dict[str, Path] = {}
    for folder in settings.prompt:
        models.setdefault(read_header(folder, "language")["backbone"]["fingerprint"], folder)
    if len(models) > 1:
        first, other = list(models.values())[:2]
        expected = f"{first} and {other} are of two models, but one batch has one model"
        raise bad_value("prompt", " ".join(map(str, settings.prompt)), expected, "Call it once for each model.")
    if settings.chat:
        for name, is_given in (("input", settings.input), ("out", settings.out), ("json", settings.json)):
            if is_given:
                raise bad_value(name, "given", "a chat reads and answers line by line", f"Leave --{name} out.")
        if len(settings.prompt) > 1:
            raise bad_value("prompt", " ".join(names), "a chat is with one prompt", "Give one.")
        if settings.generation.n_beams > 1:
            raise bad_value("n_beams", settings.generation.n_beams, "a chat is shown as it is written", "Use 1.")
    if settings.out is not None:
        check_place(settings.out.parent)
    refuse_missing(settings.backbone or "")


def load_prompts(settings: Settings) -> dict[str, LanguagePredictor]:
    """Load the model with its prompts by name, with a template in words, or by itself under the name ""."""
    from mmprompt.core.learned import Prompt
    from mmprompt.language.predictor import LanguagePredictor
    from mmprompt.language.templates.template import Template

    if settings.prompt:
        _, loaded = settings.loading.model_and_prompts(settings.prompt, settings.backbone)
        names = [folder.name for folder in settings.prompt]
        is_short = len(set(names)) == len(names)
        prompts = {
            folder.name if is_short else str(folder): one for folder, one in zip(settings.prompt, loaded, strict=True)
        }
    else:
        template = Template.parse(settings.template or PLAIN)
        if template.groups:
            expected = "there are no vectors for its {soft}"
            raise bad_value("template", repr(settings.template), expected, "Take {soft} out, or give --prompt RUN.")
        model = settings.loading.model(settings.backbone or "tiny")
        if settings.chat and settings.template is None and getattr(model.tokenizer, "chat_template", None):
            template = Template.parse(CHAT)
        prompts = {"": LanguagePredictor(model, Prompt(template))}
    for one in prompts.values():
        for name in set(one.template.fields).intersection(WRITTEN):
            expected = f"an answer is written beside its fields, under {name!r} too"
            raise bad_value("template", repr(one.template.text), expected, "Name that field otherwise.")
        if settings.task and settings.task not in one.tasks:
            raise unknown_name("task", settings.task, one.tasks, "" if one.tasks else "Leave --task out.")
    return prompts


def assign(
    given: Sequence[Record] | tuple[str, ...], prompts: Mapping[str, LanguagePredictor], settings: Settings
) -> list[Asked]:
    """Give every row, of a record or of words of the command line, to its prompt, or to each of them."""
    asked, is_one = [], len(prompts) == 1
    for item in [given] if isinstance(given, tuple) else given:
        name = item.values.get("prompt") if isinstance(item, Record) and not is_one else None
        if name is not None and (not isinstance(name, str) or name not in prompts):
            assert isinstance(item, Record), "it has a column"
            raise UserError(f"{item.file}, line {item.line}: {unknown_name('prompt', str(name), prompts)}")
        for own, one in prompts.items() if name is None else [(name, prompts[name])]:
            read: Any = row_of if isinstance(item, Record) else typed_row
            asked.append(Asked(read(item, one.template.fields, settings.task), one, "" if is_one else own))
    return asked


def read_input(given: Sequence[str]) -> list[Record] | tuple[str, ...]:
    """Read the records of a file, a folder or the standard input; other words are returned as they are."""
    if len(given) != 1:
        return tuple(given)
    path = Path(given[0])
    suffix = path.suffix.lower()
    try:
        is_there = path.exists()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        is_there = False
    is_place = is_there or " " not in given[0]  # and no sentence
    if given[0] == STDIN:
        records = read_stdin()
    elif is_place and suffix == ".txt":
        records = [Line(path, n, {"": line}) for n, line in enumerate(text_lines(path), 1) if line.strip()]
    elif is_place and (suffix in SUFFIXES or ("/" in given[0] and is_there and path.is_dir())):
        records = list(read_records(path))
    elif suffix and is_there and path.is_file():
        raise bad_file(path, "is a file of a kind that is not read", f"Name it .txt, or {', '.join(SUFFIXES)}.")
    else:
        return tuple(given)
    if not records:
        raise bad_file(path if given[0] != STDIN else "standard input", "holds no rows", "Write a text on each line.")
    return records


def read_stdin() -> list[Record]:
    """Make records of the lines of the standard input: rows of JSON where the first line is one, else a text each."""
    place = Path("standard input")
    with waiting():
        typed = utf8_text(place, sys.stdin.buffer.read()).split("\n")
    lines = [(number, line.removesuffix("\r")) for number, line in enumerate(typed, 1) if line.strip()]
    try:
        is_json = isinstance(parse_json(lines[0][1]), dict)
    except (ValueError, IndexError):
        is_json = False
    if not is_json:
        return [Line(place, number, {"": line}) for number, line in lines]
    records = []
    for number, line in lines:
        try:
            values = parse_json(line)
        except ValueError:
            raise bad_file(
                place, "is not valid JSON, as the first line is", "Write one object a line.", number
            ) from None
        if not isinstance(values, dict):
            raise bad_file(place, "is not a JSON object", "Write one object a line.", number)
        records.append(Record(place, number, values))
    return records


def row_of(record: Record, fields: Sequence[str], task: str) -> TextRow:
    """Make the row of a record, whose other columns are passed over."""
    values = record.values
    if isinstance(record, Line):
        if len(fields) != 1:
            problem = f"is a text, but the template has the fields {', '.join(fields)}"
            raise bad_file(record.file, problem, "Give a table with these columns.", record.line)
        return TextRow({fields[0]: values[""]}, task=task)
    for name in fields:
        if not isinstance(values.get(name), str):
            has = ", ".join(map(repr, values))
            problem = f"has no text {name!r}, a field of the template" + ("" if name in values else f"; it has {has}")
            raise bad_file(record.file, problem, "Write it in every row.", record.line)
    own = values.get("task")
    return TextRow({name: values[name] for name in fields}, task=task if own is None else str(own))


def typed_row(given: Sequence[str], fields: Sequence[str], task: str) -> TextRow:
    """Make the row of a text, or of NAME=TEXT for each field."""
    pairs = [item.partition("=") for item in given]
    named = {name: text for name, sign, text in pairs if sign and name in fields}
    if len(fields) == 1 and len(given) == 1 and not named:
        named = {fields[0]: given[0]}
    if len(named) < len(given) or any(name not in named for name in fields):
        names = " ".join(f'{name}="..."' for name in fields) if len(fields) > 1 else '"..."'
        wanted = f"the template has {'the fields ' + ', '.join(fields) if fields else 'no field'}"
        advice = f"Write --input {names}." if fields else "Leave it out."
        raise bad_value("input", repr(" ".join(given)) if given else "empty", wanted, advice)
    return TextRow(named, task=task)


def say_cut(asked: Sequence[Asked], settings: Settings) -> None:
    """Say how many texts each prompt cannot read whole."""
    for one in {id(each.prompted): each.prompted for each in asked}.values():
        rows = [each.row for each in asked if each.prompted is one]
        n_answer = settings.generation.max_tokens if settings.as_text else one.longest_answer(settings.generation)
        one.say_cut(rows, n_answer)


def answers_of(asked: Sequence[Asked], settings: Settings, progress: ProgressDisplay) -> list[Row]:
    """Answer each row, JSON-ready; with a file they are written there, and go on where an earlier call stopped.

    A killed call goes on by as many rows at once as before, so that samples are the same.
    """
    from mmprompt.language.generation import generate_texts
    from mmprompt.language.predictor import classify_texts

    named = {} if settings.out is None else {"settings": settings_hash(settings, asked)}

    def make(places: list[int]) -> list[Row]:
        found: dict[int, Row] = {}
        texts, labels = ([n for n in places if asked[n].has_label(settings) == is_label] for is_label in (False, True))
        each = [[asked[n].prompted for n in some] for some in (texts, labels)]
        written = generate_texts(each[0], [asked[n].row for n in texts], settings.generation.from_row(places[0]))
        for n, text in zip(texts, written, strict=True):
            found[n] = {"answer": text.text, "n_tokens": text.n_tokens, "is_cut": text.is_cut}
        for n, label in zip(labels, classify_texts(each[1], [asked[n].row for n in labels]), strict=True):
            found[n] = {"label": label.label, "probabilities": dict(label.probabilities)}
        return [{**asked[n].facts, **found[n], **named} for n in places]

    def known(out: Path, part: Path) -> dict[int, Row]:
        return dict(enumerate(known_answers(part if part.exists() else out, asked, named["settings"])))

    return write_rows(settings.out, len(asked), ROWS_AT_ONCE, known, make, progress.count("answering"))


def settings_hash(settings: Settings, asked: Sequence[Asked]) -> str:
    """Return the hash of all that answers depend on but the rows: the learned tensors too."""
    prompts = {}
    for one in {id(each.prompted): each for each in asked}.values():
        prompted, state = one.prompted, one.prompted.prompt.state_dict()
        tensors = [sha256_bytes(state[name].cpu().float().numpy().tobytes()) for name in sorted(state)]
        prompts[one.name] = [prompted.template.text, prompted.model.fingerprint, prompted.header(), *tensors]
    return hash_of([{"generation": asdict(settings.generation), "as_text": settings.as_text}, prompts])


def known_answers(path: Path, asked: Sequence[Asked], made_by: str) -> list[Row]:
    """Read the answers that an earlier call left; refuse those to other rows or by settings of another hash."""
    known = []
    for number, row in whole_rows(path, "answers"):
        if row["settings"] != made_by:
            raise bad_file(path, "holds answers of other settings or another prompt", OTHER_OUT, number)
        if number > len(asked) or any(row.get(key) != text for key, text in asked[number - 1].facts.items()):
            raise bad_file(path, "holds an answer to another row than the input has there", OTHER_OUT, number)
        known.append(row)
    n_whole = len(known) if len(known) == len(asked) else len(known) // ROWS_AT_ONCE * ROWS_AT_ONCE
    return known[:n_whole]


def show(output: Output, answers: Sequence[Row]) -> None:
    """Print answers, a line or a few each; of one label how probable each is."""
    if len(answers) == 1 and "label" in answers[0]:
        ranked = sorted(answers[0]["probabilities"].items(), key=lambda pair: -pair[1])
        output.table(["label", "probability"], [[label, percent(share)] for label, share in ranked], numbers=(1,))
        return
    if all("label" in row for row in answers) and len({tuple(row["probabilities"]) for row in answers}) == 1:
        labels = list(answers[0]["probabilities"])
        names = [name for name in ("prompt",) if name in answers[0]]
        rows = [
            [*(row[name] for name in names), row["label"], *(percent(row["probabilities"][label]) for label in labels)]
            for row in answers
        ]
        n_first = 1 + len(names)
        output.table([*names, "label", *labels], rows, numbers=range(n_first, n_first + len(labels)))
        return
    for row in answers:
        before = f"{row['prompt']}: " if "prompt" in row else ""
        output.say(before + str(row["label"] if "label" in row else row["answer"]))


def without_blanks(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the pieces of an answer without the blanks it begins with."""
    has_begun = False
    for piece in pieces:
        text = piece if has_begun else piece.lstrip()
        has_begun = has_begun or bool(text)
        if text:
            yield text
