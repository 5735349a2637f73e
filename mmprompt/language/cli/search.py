"""`mmprompt llm search`: words, not vectors, that make a frozen language model give the wanted answers."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmprompt.errors import unknown_name
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
from mmprompt.language.search.methods import SEARCHES
from mmprompt.language.start import Objective, PromptInit
from mmprompt.terminal.output import JSON_HELP, Output
from mmprompt.terminal.parser import parse, peek
from mmprompt.terminal.run_folder import check_folder

if TYPE_CHECKING:
    pass


DESCRIPTION = "Search a prompt in words, which can be read and is used as every other prompt."
SEARCH_HELP = f"How words are searched: {' or '.join(SEARCHES)}; each brings its own options."


@dataclass(frozen=True)
class Settings:
    """What is searched, and where it goes."""

    backbone: Annotated[str, tyro.conf.arg(metavar="NAME", help=MODEL_HELP)] = "tiny"
    data: Annotated[str, tyro.conf.arg(metavar="NAME|FILE", help=DATA_HELP)] = DATA
    search: Annotated[str, tyro.conf.arg(metavar="NAME", help=SEARCH_HELP)] = "coordinates"
    n_tokens: Annotated[int | None, tyro.conf.arg(metavar="INT|None")] = None
    """Tokens of the words; None for as many as those that the search starts from, or 10."""
    shots: Annotated[int | None, tyro.conf.arg(metavar="INT|None")] = None
    """Training rows of each class, drawn; None for all there are."""
    template: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help=TEMPLATE_HELP)] = None
    verbalizer: Annotated[tuple[str, ...], tyro.conf.arg(metavar="LABEL=WORD,WORD...")] = ()
    """The words of each label, if not those of the data's card; without either a label is its own word."""
    objective: Objective = "auto"
    """What is made probable: the label among the labels (choices), or the answer among all texts (answer)."""
    seed: Annotated[int, tyro.conf.arg(metavar="INT")] = 1
    """Seed of all that is drawn."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The new run folder; by default runs/DATA-words."""
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False


def run(arguments: Sequence[str], prog: str) -> None:
    """Search words and show them.

    Raises:
        UserError: something in the call or the data is wrong; nothing is written then.
    """
    name = peek(arguments, "search") or Settings.search
    if name not in SEARCHES:
        raise unknown_name("search", name, SEARCHES)
    search = SEARCHES[name]
    groups = {"run": Settings, "words": search, "first": PromptInit, "loading": Loading}
    form = make_dataclass("Search", list(groups.items()), frozen=True)
    read: Any = parse(form, arguments, prog, DESCRIPTION, form(Settings(), search(), PromptInit(), Loading()))

    from mmprompt.language.search.task import search_words
    from mmprompt.training.callbacks import ProgressBar

    settings: Settings = read.run
    output = Output(settings.json)
    folder = settings.out or Path("runs") / f"{Path(settings.data).stem}-words"
    check_folder(folder)
    data = read_rows(output, settings.data, settings.shots, settings.seed)
    verbalizer = read_verbalizer(settings.verbalizer, data.labels)
    task = data.task(template=settings.template, verbalizer=verbalizer, objective=settings.objective)
    model = read.loading.model(settings.backbone)
    result = search_words(
        task, model, None, read.words, settings.n_tokens, read.first, folder, settings.seed, [ProgressBar()]
    )
    say_of_words(output, result.prompted)
    rows = [["start", f"{result.start_loss:.3f}", result.start_text], ["found", f"{result.loss:.3f}", result.text]]
    output.table(["", "loss", "words"], rows, numbers=(1,))
    output.say(f"\nThe prompt is in {folder}. The weights of {model.name} are what they were before.")
    output.say(f"Next: mmprompt llm eval --prompt {shlex.quote(str(folder))} --data {shlex.quote(settings.data)}")
    facts = {"run": str(folder), "text": result.text, "token_ids": list(result.token_ids), "loss": result.loss}
    facts |= {"start_text": result.start_text, "start_loss": result.start_loss}
    output.document(facts | {"history": result.history, "notices": list(result.notices)})
