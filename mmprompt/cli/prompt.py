"""`mmprompt prompt`: what a saved prompt holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mmprompt.cli.output import Output, shorten
from mmprompt.cli.parser import parse
from mmprompt.errors import bad_value
from mmprompt.explain.nearest_words import context_words
from mmprompt.predictors.file import load, read_prompt_header


@dataclass(frozen=True)
class Settings:
    """What is shown."""

    run: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """The run folder."""
    words: Annotated[int, tyro.conf.arg(metavar="INT")] = 5
    """How many of the nearest words to show for each context vector; 0 for none, which loads no backbone."""
    json: bool = False
    """Print one JSON document; everything for people goes to stderr."""


def run_inspect(arguments: Sequence[str], prog: str) -> None:
    """Print what a prompt says of itself and the words nearest to its vectors.

    Raises:
        UserError: the folder holds no sound prompt, or its backbone cannot be had.
    """
    settings = parse(Settings, arguments, prog, "What a prompt holds, and the words nearest to it.")
    if settings.words < 0:
        raise bad_value("words", settings.words, "it must be 0 or more", "Use --words 5.")
    output = Output(settings.json)
    header = read_prompt_header(settings.run)
    words = context_words(load(settings.run), settings.words) if settings.words else []
    training, layout = header["training"], header["layout"]
    size = sum(path.stat().st_size for path in settings.run.glob("prompt.*"))
    facts = [
        ["backbone", f"{header['backbone']['name']} ({header['backbone']['fingerprint'][:16]})"],
        ["classes", shorten(f"{len(header['class_names'])}: {', '.join(header['class_names'])}", 110)],
        [
            "around the name",
            f"{layout['n_ctx']} vectors, name at the {layout['class_position']}, “{layout['template']}”",
        ],
    ]
    if "method" in training:
        given = ", ".join(f"{name} {value}" for name, value in training["method"]["settings"].items())
        facts.append(["method", f"{training['method']['name']}: {given}"])
    if "data" in training:
        data = training["data"]
        facts.append(["learned from", f"{data['name']}, {data['shots']} shots, seed {training['seed']}"])
    facts.append(["on disk", f"{size / 1024:.1f} KiB, mmprompt {header['mmprompt']}, format {header['format']}"])
    output.table(["", ""], facts)
    output.say()
    sites = [[site, facts["scope"], " x ".join(map(str, facts["shape"]))] for site, facts in header["sites"].items()]
    output.table(["site", "scope", "shape"], sites)
    if words:
        output.say()
        near = [
            [row["vector"], "  ".join(f"{word} {distance:.2f}" for word, distance in row["words"])] for row in words
        ]
        output.table(["", "nearest words, with distances (a hint only)"], near)
    output.document({**header, "nearest_words": words})
