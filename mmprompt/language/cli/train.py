"""`mmprompt llm train` and `mmprompt llm search`: learn a prompt for a frozen language model, vectors or words."""

from __future__ import annotations

import operator
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmprompt.core.method import measured_for, refuse_idle_recipe, resolved_recipe
from mmprompt.core.soft import DecoderMethod, PrefixTuning, PromptTuning
from mmprompt.errors import is_first_process, unknown_name
from mmprompt.language.cli.options import MODEL_HELP, Learning, Loading, say_of_words, say_scores
from mmprompt.language.data import EMBEDDED, load_texts
from mmprompt.language.methods import METHODS, SEARCHES, PromptInit, SearchedWords, method_types
from mmprompt.models.packaged import refuse_missing
from mmprompt.progress import ProgressDisplay
from mmprompt.terminal.output import Json, Output, check_folder, command_of, shorten
from mmprompt.terminal.parser import parse, peek, typed_recipe
from mmprompt.training.recipe import Recipe, refuse_views

if TYPE_CHECKING:
    from mmprompt.language.data import TextData
    from mmprompt.language.predictor import LanguagePredictor

SHOWN = 4
STARTING = (PromptTuning, PrefixTuning, SearchedWords)
"""Methods that start where `PromptInit` says, and those that inherit from them."""
DESCRIPTION = (
    "Learn a prompt for a frozen language model. Without options: whether a sentence has somebody in it, on `tiny`."
)

SEARCH_DESCRIPTION = "Search a prompt in words, which can be read and is used as every other prompt."
SEARCH_HELP = f"How words are searched: {' or '.join(SEARCHES)}; each brings its own options."
METHOD_HELP = f"How to learn: {', '.join(METHODS)}, or several joined by +; each brings its own options."


@dataclass(frozen=True)
class Settings:
    """How it is learned, and where it goes."""

    backbone: Annotated[str, tyro.conf.arg(metavar="NAME", help=MODEL_HELP)] = "tiny"
    method: Annotated[str, tyro.conf.arg(metavar="NAME", help=METHOD_HELP)] = "prompt-tuning"
    recompute: bool = False
    """Keep less for the gradient and read rows again: slower, and less memory."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The new run folder; by default runs/DATA-METHOD."""
    resume: bool = False
    """Go on from the newest checkpoint in the run folder."""
    json: Json = False


@dataclass(frozen=True)
class Call:
    """A command line, read."""

    run: Settings
    rows: Learning
    method: DecoderMethod
    start: PromptInit
    recipe: Recipe
    loading: Loading


def run(arguments: Sequence[str], prog: str) -> None:
    """Learn a prompt, test it beside the model without one, and say what to do next."""
    call = read_call(arguments, prog)
    settings, output = call.run, Output(call.run.json)
    folder = settings.out or Path("runs") / f"{Path(call.rows.data).resolve().stem}-{settings.method}"
    if is_first_process():
        check_folder(folder, settings.resume)
    refuse_missing(settings.backbone)
    load_texts(call.rows.data)  # what cannot be read is refused before torch is loaded

    from mmprompt.core.fit import fit

    task = call.rows.task(output, is_recomputed=settings.recompute, init=call.start)
    data = task.data
    model = call.loading.model(settings.backbone)
    output.say(
        f"Learning a prompt ({settings.method}) for {settings.backbone} from {len(data.train):,} rows of {data.name}, "
        f"testing it on {len(data.test):,} others. Everything goes to {folder}."
    )
    name = call.rows.data
    where = {"data": name if name in EMBEDDED else str(Path(name).resolve()), "shots": call.rows.shots}
    said = {"command": command_of(arguments, prog), "data": where}
    result = fit(call.method, model, task, folder, call.recipe, call.rows.seed, (), settings.resume, call=said)
    if not is_first_process():
        return
    say_of_words(output, result.predictor)
    output.say()
    test = test_labels(output, result.predictor, data) if data.labels else show_answers(output, result.predictor, data)
    output.say(f"\nThe prompt is in {folder}. The weights of {model.name} are what they were before.")
    if settings.backbone == "tiny":
        output.say("tiny is for the first minute; `mmprompt backbones get smollm2` fetches a real language model.")
    fields, texts = result.predictor.template.fields, data.test[0].fields
    named = [texts[name] if len(fields) == 1 else f"{name}={texts[name]}" for name in fields]
    place = shlex.quote(str(folder))
    output.say(f"Next: mmprompt llm eval --prompt {place} --data {shlex.quote(call.rows.data)}")
    own = f" --task {shlex.quote(data.test[0].task)}" if result.predictor.tasks else ""
    output.say(f"      mmprompt llm generate --prompt {place}{own} --input {shlex.join(named)}")
    output.document({"run": str(folder), "history": result.history, "notices": list(result.notices), "test": test})


def joined(methods: Sequence[DecoderMethod]) -> DecoderMethod:
    """Return one method that learns what all of them learn."""
    return reduce(operator.add, methods)


def read_call(arguments: Sequence[str], prog: str) -> Call:
    """Read a command line of `llm train`, whose options depend on the method."""
    name = peek(arguments, "method", Settings.method)
    kinds = method_types(name)
    own = {part.strip().replace("-", "_"): kind for part, kind in zip(name.split("+"), kinds, strict=True)}
    starts = {"start": PromptInit} if any(issubclass(kind, STARTING) for kind in kinds) else {}
    parts: dict[str, Any] = {"run": Settings, "rows": Learning, **own, **starts, "recipe": Recipe}
    form = make_dataclass("Train", [*parts.items(), ("loading", Loading)], frozen=True)
    places = (peek(arguments, "backbone", Settings.backbone), "language")
    chosen = [kind(**measured_for(kind, *places).settings) for kind in kinds]
    recipe = resolved_recipe(joined(chosen), places, {}, None)
    defaults = form(Settings(), Learning(), *chosen, *(kind() for kind in starts.values()), recipe, Loading())
    read: Any = parse(form, arguments, prog, DESCRIPTION, defaults)
    method = joined([getattr(read, part) for part in own])
    refuse_idle_recipe(typed_recipe(arguments), {name: method})
    refuse_views(read.recipe, "texts")
    recipe = read.recipe if method.is_trained else Recipe()
    return Call(read.run, read.rows, method, getattr(read, "start", PromptInit()), recipe, read.loading)


def test_labels(output: Output, prompted: LanguagePredictor, data: TextData) -> dict[str, Any]:
    """Measure prompt and no prompt on the test rows."""
    from mmprompt.language.measure import NO_PROMPT, measure_language, plain_model

    models = {NO_PROMPT: plain_model(prompted.model, data, prompted), "learned prompt": prompted}
    with ProgressDisplay() as progress:
        counter = progress.count("testing")
        scores = [measure_language(model, data, name=name, progress=counter) for name, model in models.items()]
    say_scores(output, scores)
    measured = {score.name: score.labels for score in scores if score.labels}
    return {name: {"accuracy": each.accuracy, "macro_f1": each.macro_f1} for name, each in measured.items()}


def show_answers(output: Output, prompted: LanguagePredictor, data: TextData) -> list[dict[str, str]]:
    """Show a few test rows with what the model answers without and with the prompt."""
    from mmprompt.language.generation import generate_texts
    from mmprompt.language.measure import NO_PROMPT, as_long_as, plain_model

    rows = data.test[:SHOWN]
    generation = as_long_as(prompted, [row.answer or "" for row in rows])
    models = plain_model(prompted.model, data, prompted), prompted
    answers = [generate_texts(model, rows, generation) for model in models]
    shown = [
        {**row.fields, "expected": row.answer or "", NO_PROMPT: before.text, "learned prompt": after.text}
        for row, before, after in zip(rows, *answers, strict=True)
    ]
    output.table(list(shown[0]), [[shorten(" ".join(text.split()), 40) for text in row.values()] for row in shown])
    return shown


@dataclass(frozen=True)
class SearchSettings:
    """What is searched, and where it goes."""

    backbone: Annotated[str, tyro.conf.arg(metavar="NAME", help=MODEL_HELP)] = "tiny"
    search: Annotated[str, tyro.conf.arg(metavar="NAME", help=SEARCH_HELP)] = "coordinates"
    n_tokens: Annotated[int | None, tyro.conf.arg(metavar="INT|None")] = None
    """Tokens of the words; None for as many as those that the search starts from, or 10."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The new run folder; by default runs/DATA-words."""
    json: Json = False


def run_search(arguments: Sequence[str], prog: str) -> None:
    """Search words and show them."""
    name = peek(arguments, "search", SearchSettings.search)
    if name not in SEARCHES:
        raise unknown_name("search", name, SEARCHES)
    search = SEARCHES[name]
    parts = {"run": SearchSettings, "rows": Learning, "search": search, "start": PromptInit, "loading": Loading}
    form = make_dataclass("Search", list(parts.items()), frozen=True)
    call: Any = parse(form, arguments, prog, SEARCH_DESCRIPTION, form(*(part() for part in parts.values())))
    settings, rows = call.run, call.rows
    output = Output(settings.json)
    folder = settings.out or Path("runs") / f"{Path(rows.data).resolve().stem}-words"
    check_folder(folder)
    refuse_missing(settings.backbone)
    load_texts(rows.data)  # what cannot be read is refused before torch is loaded

    from mmprompt.language.search.task import search_words
    from mmprompt.training.callbacks import ProgressBar

    task = rows.task(output)
    model = call.loading.model(settings.backbone)
    bars = [ProgressBar()]
    result = search_words(task, model, None, call.search, settings.n_tokens, call.start, folder, rows.seed, bars)
    say_of_words(output, result.prompted)
    lines = [["start", f"{result.start_loss:.3f}", result.start_text], ["found", f"{result.loss:.3f}", result.text]]
    output.table(["", "loss", "words"], lines, numbers=(1,))
    output.say(f"\nThe prompt is in {folder}. The weights of {model.name} are what they were before.")
    output.say(f"Next: mmprompt llm eval --prompt {shlex.quote(str(folder))} --data {shlex.quote(rows.data)}")
    facts = {"run": str(folder), "text": result.text, "token_ids": list(result.token_ids), "loss": result.loss}
    facts |= {"start_text": result.start_text, "start_loss": result.start_loss}
    output.document(facts | {"history": result.history, "notices": list(result.notices)})
