"""`mmprompt llm train`: learn a prompt for a frozen language model."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmprompt.core.method import measured_for, resolved_recipe
from mmprompt.core.soft import DecoderMethod
from mmprompt.errors import bad_value, unknown_name
from mmprompt.language.cli.options import (
    DATA,
    DATA_HELP,
    MODEL_HELP,
    TEMPLATE_HELP,
    Loading,
    read_rows,
    read_verbalizer,
    say_of_words,
)
from mmprompt.language.cli.tables import score_table
from mmprompt.language.data import TextData
from mmprompt.language.methods import METHODS
from mmprompt.language.start import Objective, PromptInit
from mmprompt.progress import ProgressDisplay
from mmprompt.terminal.output import JSON_HELP, Output, shorten
from mmprompt.terminal.parser import parse, peek
from mmprompt.terminal.run_folder import check_folder
from mmprompt.training.recipe import Recipe

if TYPE_CHECKING:
    from mmprompt.core.fit import Result
    from mmprompt.language.predictor import PromptedModel


SHOWN = 4
DESCRIPTION = (
    "Learn a prompt for a frozen language model. Without options: whether a sentence has somebody in it, on `tiny`."
)

METHOD_HELP = f"How to learn: {', '.join(METHODS)}; the method brings its own options."


@dataclass(frozen=True)
class Settings:
    """What is trained, and where it goes."""

    backbone: Annotated[str, tyro.conf.arg(metavar="NAME", help=MODEL_HELP)] = "tiny"
    data: Annotated[str, tyro.conf.arg(metavar="NAME|FILE", help=DATA_HELP)] = DATA
    method: Annotated[str, tyro.conf.arg(metavar="NAME", help=METHOD_HELP)] = "prompt-tuning"
    shots: Annotated[int | None, tyro.conf.arg(metavar="INT|None")] = None
    """Training rows of each class, drawn; None for all there are."""
    template: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help=TEMPLATE_HELP)] = None
    verbalizer: Annotated[tuple[str, ...], tyro.conf.arg(metavar="LABEL=WORD,WORD...")] = ()
    """The words of each label, if not those of the data's card; without either a label is its own word."""
    objective: Objective = "auto"
    """What is made probable: the label among the labels (choices), or the answer among all texts (answer)."""
    recompute: bool = False
    """Keep less for the gradient and read rows again: slower, and less memory."""
    seed: Annotated[int, tyro.conf.arg(metavar="INT")] = 1
    """Seed of the shots, of what is drawn to start from, and of the order of the rows."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The new run folder; by default runs/DATA-METHOD."""
    resume: bool = False
    """Go on from the newest checkpoint in the run folder."""
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False


@dataclass(frozen=True)
class Call:
    """A command line, read."""

    run: Settings
    loading: Loading
    method: DecoderMethod
    start: PromptInit
    recipe: Recipe


def run(arguments: Sequence[str], prog: str) -> None:
    """Learn a prompt, test it beside the model without one, and say what to do next.

    Raises:
        UserError: something in the call or the data is wrong; nothing is written then.
    """
    call = read_call(arguments, prog)

    from mmprompt.core.fit import fit

    settings, output = call.run, Output(call.run.json)
    folder = settings.out or Path("runs") / f"{Path(settings.data).stem}-{settings.method}"
    check_folder(folder)
    data = read_rows(output, settings.data, settings.shots, settings.seed)
    verbalizer = read_verbalizer(settings.verbalizer, data.labels)
    task = data.task(
        template=settings.template,
        verbalizer=verbalizer,
        objective=settings.objective,
        is_recomputed=settings.recompute,
        init=call.start,
    )
    model = call.loading.model(settings.backbone)
    output.say(
        f"Learning a prompt ({settings.method}) for {settings.backbone} from {len(data.train):,} rows of {data.name}, "
        f"testing it on {len(data.test):,} others. Everything goes to {folder}."
    )
    result = fit(call.method, model, task, folder, call.recipe, settings.seed, (), settings.resume)
    conclude(output, settings, result, folder)


def read_call(arguments: Sequence[str], prog: str) -> Call:
    """Read a command line of `llm train`, whose options depend on the method.

    Raises:
        UserError: there is no such method, or a setting does nothing for texts.
    """
    name = peek(arguments, "method") or Settings.method
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    method: Any = METHODS[name]
    groups = {"run": Settings, "method": method, "start": PromptInit, "recipe": Recipe, "loading": Loading}
    form = make_dataclass("Train", list(groups.items()), frozen=True)
    places = (peek(arguments, "backbone") or Settings.backbone, "language")
    chosen = measured_for(method, *places).settings
    recipe = resolved_recipe(method, places, {}, None)
    defaults = form(Settings(), method(**chosen), PromptInit(), recipe, Loading())
    read: Any = parse(form, arguments, prog, DESCRIPTION, defaults)
    refuse_idle(read.recipe)
    return Call(read.run, read.loading, read.method, read.start, read.recipe)


def refuse_idle(recipe: Recipe) -> None:
    """Refuse settings of the recipe that do nothing for texts.

    Raises:
        UserError: there is one.
    """
    for name in ("augment", "views"):
        value, default = getattr(recipe, name), {"augment": "none", "views": Recipe.views}[name]
        if value != default:
            raise bad_value(name, value, "texts are learned from as they are", f"Leave --{name} out.")


def conclude(output: Output, settings: Settings, result: Result[PromptedModel], folder: Path) -> None:
    """Show what the prompt is worth beside the model without one, and what to do next."""
    prompted, data = result.predictor, result.task.data
    say_of_words(output, prompted)
    output.say()
    test = test_labels(output, result) if data.labels else show_answers(output, result)
    output.say(f"\nThe prompt is in {folder}. The weights of {prompted.model.name} are what they were before.")
    if settings.backbone == "tiny":
        output.say("tiny is for the first minute; `mmprompt backbones get smollm2` fetches a real language model.")
    place = shlex.quote(str(folder))
    output.say(f"Next: mmprompt llm eval --prompt {place} --data {shlex.quote(settings.data)}")
    output.say(
        f"      mmprompt llm generate --prompt {place} --input {example_of(data, prompted.bound.template.fields)}"
    )
    output.document({"run": str(folder), "history": result.history, "notices": list(result.notices), "test": test})


def test_labels(output: Output, result: Result[PromptedModel]) -> dict[str, Any]:
    """Measure prompt and no prompt on the test rows."""
    from mmprompt.language.measure import NO_PROMPT, measure_language, plain_model

    prompted, data = result.predictor, result.task.data
    with ProgressDisplay() as progress:
        plain = plain_model(prompted.model, data, prompted)
        scores = [
            measure_language(plain, data, name=NO_PROMPT, progress=progress.count("testing")),
            measure_language(prompted, data, name="learned prompt", progress=progress.count("testing")),
        ]
    output.table(*score_table(scores), numbers=(1, 2, 3))
    return {
        score.name: {"accuracy": score.labels.accuracy, "macro_f1": score.labels.macro_f1}
        for score in scores
        if score.labels
    }


def show_answers(output: Output, result: Result[PromptedModel]) -> list[dict[str, str]]:
    """A few test rows with what the model answers without and with the prompt."""
    from mmprompt.language.generation import generate_texts
    from mmprompt.language.measure import NO_PROMPT, as_long_as, plain_model

    prompted, data = result.predictor, result.task.data
    rows = data.test[:SHOWN]
    generation = as_long_as(prompted, [row.answer or "" for row in rows])
    models = plain_model(prompted.model, data, prompted), prompted
    each = [generate_texts(one, rows, generation) for one in models]
    found = [
        {**row.fields, "expected": row.answer or "", NO_PROMPT: before.text, "learned prompt": after.text}
        for row, before, after in zip(rows, *each, strict=True)
    ]
    output.table(list(found[0]), [[shorten(" ".join(text.split()), 40) for text in row.values()] for row in found])
    return found


def example_of(data: TextData, fields: Sequence[str]) -> str:
    """A test row as `llm generate` takes it."""
    texts = data.test[0].fields
    if len(fields) == 1:
        return shlex.quote(texts[fields[0]])
    return " ".join(shlex.quote(f"{name}={texts[name]}") for name in fields)
