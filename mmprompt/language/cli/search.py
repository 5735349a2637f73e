"""`mmprompt llm search`: words, not vectors, that make a frozen language model give the wanted answers."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from mmprompt.errors import unknown_name
from mmprompt.language.cli.options import MODEL_HELP, Learning, Loading, say_of_words
from mmprompt.language.search.methods import SEARCHES
from mmprompt.language.start import PromptInit
from mmprompt.terminal.output import JSON_HELP, Output
from mmprompt.terminal.parser import parse, peek
from mmprompt.terminal.run_folder import check_folder

DESCRIPTION = "Search a prompt in words, which can be read and is used as every other prompt."
SEARCH_HELP = f"How words are searched: {' or '.join(SEARCHES)}; each brings its own options."


@dataclass(frozen=True)
class Settings:
    """What is searched, and where it goes."""

    backbone: Annotated[str, tyro.conf.arg(metavar="NAME", help=MODEL_HELP)] = "tiny"
    search: Annotated[str, tyro.conf.arg(metavar="NAME", help=SEARCH_HELP)] = "coordinates"
    n_tokens: Annotated[int | None, tyro.conf.arg(metavar="INT|None")] = None
    """Tokens of the words; None for as many as those that the search starts from, or 10."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The new run folder; by default runs/DATA-words."""
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False


def run(arguments: Sequence[str], prog: str) -> None:
    """Search words and show them."""
    name = peek(arguments, "search") or Settings.search
    if name not in SEARCHES:
        raise unknown_name("search", name, SEARCHES)
    search = SEARCHES[name]
    parts = {"run": Settings, "rows": Learning, "words": search, "first": PromptInit, "loading": Loading}
    form = make_dataclass("Search", list(parts.items()), frozen=True)
    call: Any = parse(form, arguments, prog, DESCRIPTION, form(*(part() for part in parts.values())))

    from mmprompt.language.search.task import search_words
    from mmprompt.training.callbacks import ProgressBar

    settings, rows = call.run, call.rows
    output = Output(settings.json)
    folder = settings.out or Path("runs") / f"{Path(rows.data).stem}-words"
    check_folder(folder)
    task = rows.task(output)
    model = call.loading.model(settings.backbone)
    bars = [ProgressBar()]
    result = search_words(task, model, None, call.words, settings.n_tokens, call.first, folder, rows.seed, bars)
    say_of_words(output, result.prompted)
    lines = [["start", f"{result.start_loss:.3f}", result.start_text], ["found", f"{result.loss:.3f}", result.text]]
    output.table(["", "loss", "words"], lines, numbers=(1,))
    output.say(f"\nThe prompt is in {folder}. The weights of {model.name} are what they were before.")
    output.say(f"Next: mmprompt llm eval --prompt {shlex.quote(str(folder))} --data {shlex.quote(rows.data)}")
    facts = {"run": str(folder), "text": result.text, "token_ids": list(result.token_ids), "loss": result.loss}
    facts |= {"start_text": result.start_text, "start_loss": result.start_loss}
    output.document(facts | {"history": result.history, "notices": list(result.notices)})
