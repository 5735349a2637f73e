"""`mmprompt llm eval`: learned prompts beside the model without one and beside hand-written instructions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mmprompt.core.header import read_header
from mmprompt.errors import bad_value
from mmprompt.language.cli.options import DATA, DATA_HELP, Loading, read_rows, refuse_repeated, say_of_words, say_scores
from mmprompt.language.data import EMBEDDED
from mmprompt.progress import ProgressDisplay
from mmprompt.terminal.output import Json, Output, between, shorten
from mmprompt.terminal.parser import parse

if TYPE_CHECKING:
    from mmprompt.language.measure import LanguageMeasure


MOST_LABELS = 12
DESCRIPTION = (
    "Measure learned prompts beside the model without one and beside the hand-written instructions of the data. "
    "Without options: `tiny` and the instructions alone."
)


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    prompt: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...")] = ()
    """Run folders of prompts of one model; none measures the model alone."""
    data: Annotated[str | None, tyro.conf.arg(metavar="NAME|FILE", help=DATA_HELP)] = None
    split: Annotated[str, tyro.conf.arg(metavar="NAME")] = "test"
    """Which part: train, val or test."""
    calibrate: bool = False
    """Divide out what the model answers to texts that say nothing, of every prompt."""
    backbone: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """The frozen model, if it is not the one that the prompt names; `tiny` without a prompt."""
    json: Json = False
    loading: Loading = field(default_factory=Loading)


def run(arguments: Sequence[str], prog: str) -> None:
    """Measure, and show what was measured."""
    settings = parse(Settings, arguments, prog, DESCRIPTION)
    output = Output(settings.json)
    name = settings.data
    refuse_repeated(settings.prompt)
    headers = [read_header(folder, "language") for folder in settings.prompt]
    if name is None:  # the embedded set that the prompts were learned from
        sets = {header["training"].get("data", {}).get("name") for header in headers} or {DATA}
        for name in sets - set(EMBEDDED):
            expected = f"{settings.prompt[0]} was learned from {name}" if name else "there is nothing to measure on"
            raise bad_value("data", "empty", expected, "Write mmprompt llm eval --prompt RUN --data FILE.")
        name = sets.pop()
    data = read_rows(output, name, None, 1)
    data.rows(settings.split)

    from mmprompt.language.measure import compare_language

    model, prompts = settings.loading.model_and_prompts(settings.prompt, settings.backbone)
    names = [str(folder) for folder in settings.prompt]
    for prompted in prompts:
        say_of_words(output, prompted)
    with ProgressDisplay() as progress:
        named = dict(zip(names, prompts, strict=True))
        measure = compare_language(model, named, data, settings.split, settings.calibrate, progress.count("measuring"))
    show(output, measure, len(prompts))
    if not prompts:
        output.say(f"\nLearn a prompt to put beside them: mmprompt llm train, then {prog} --prompt RUN.")
    output.document(measure.to_dict())


def show(output: Output, measure: LanguageMeasure, n_prompts: int) -> None:
    """Print what was measured: a row a prompt, what was gained, and what was taken for what."""
    calibrated = ", calibrated" if measure.is_calibrated else ""
    output.say(f"\n{measure.data}, {measure.split}: {measure.n_rows} rows, {measure.model}{calibrated}\n")
    say_scores(output, measure.scores)
    output.say()
    for score in measure.scores[n_prompts + 1 :]:
        output.say(f"{score.name}: {shorten(' '.join(score.template.split()), 100)}", "dim")
    if measure.left_out:
        n_left = len(measure.left_out)
        output.say(f"Left out: {n_left} instructions that are chats, for which {measure.model} has no template.", "dim")
    for gain in measure.gains:
        over = f"over {gain.over}" + (", the best on these very rows" if gain.over.startswith("instruction") else "")
        output.say(f"{gain.of} gains {100 * gain.gain:+.1f} points ({between(gain.interval, signed=True)}) {over}.")
    first = measure.scores[0]
    if n_prompts and first.labels is not None and len(first.labels.class_names) <= MOST_LABELS:
        output.say()
        names = list(first.labels.class_names)
        counts = zip(names, first.labels.confusion.tolist(), strict=True)
        output.table(["is \\ said", *names], [[name, *map(str, row)] for name, row in counts], range(1, 1 + len(names)))
