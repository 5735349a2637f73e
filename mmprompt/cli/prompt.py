"""`mmprompt prompt`: what a saved prompt holds, of a classifier, a captioner or a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from mmprompt.classification.nearest_words import context_words
from mmprompt.core.file import load
from mmprompt.core.header import read_header
from mmprompt.errors import bad_value
from mmprompt.language.explain import nearest_tokens
from mmprompt.language.predictor import load_prompted
from mmprompt.models.sites import Site
from mmprompt.terminal.output import Output, shorten
from mmprompt.terminal.parser import parse

LONGEST = 110


@dataclass(frozen=True)
class Settings:
    """What is shown."""

    run: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """The run folder."""
    words: Annotated[int, tyro.conf.arg(metavar="INT")] = 5
    """How many of the nearest words to show for each vector; 0 for none, which loads no model."""
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
    header = read_header(settings.run)
    words = near_words(settings.run, header, settings.words) if settings.words else []
    size = sum(path.stat().st_size for path in settings.run.glob("prompt.*"))
    facts = [
        ["backbone", f"{header['backbone']['name']} ({header['backbone']['fingerprint'][:16]})"],
        *own_facts(header),
        *training_facts(header["training"]),
        ["on disk", f"{size / 1024:.1f} KiB, mmprompt {header['mmprompt']}, format {header['format']}"],
    ]
    output.table(["", ""], facts)
    output.say()
    sites = [[site, facts["scope"], " x ".join(map(str, facts["shape"]))] for site, facts in header["sites"].items()]
    output.table(["site", "scope", "shape"], sites)
    if words:
        output.say()
        near = [[row["vector"], "  ".join(f"{word} {number:.2f}" for word, number in row["words"])] for row in words]
        output.table(["", f"nearest words, with {measure_of(header)} (a hint only)"], near)
    output.document({**header, "nearest_words": words})


def kind_of(header: Mapping[str, Any]) -> str:
    """What a prompt is for: classifier, captioner or language model."""
    return header.get("kind", "classifier")


def measure_of(header: Mapping[str, Any]) -> str:
    """What the numbers beside the nearest words are."""
    return "distances" if kind_of(header) == "classifier" else "cosines"


def near_words(folder: Path, header: Mapping[str, Any], k: int) -> list[dict[str, Any]]:
    """The nearest words of each vector, JSON-ready; none where the prompt has no vectors among words.

    Raises:
        UserError: the prompt or its backbone cannot be had.
    """
    kind = kind_of(header)
    if kind == "classifier":
        return context_words(load(folder), k)
    if kind == "captioner" or str(Site("lm")) not in header["sites"]:
        return []
    prompted = load_prompted(folder)
    found = nearest_tokens(prompted.model, prompted.vectors()[Site("lm")].values, k)
    return [{"vector": f"vector {m + 1}", "words": pairs} for m, pairs in enumerate(found)]


def own_facts(header: Mapping[str, Any]) -> list[list[str]]:
    """What a prompt of its kind says of itself."""
    kind = kind_of(header)
    if kind == "captioner":
        return [["focus", header["focus"]], *([["words", header["words"]]] if header["words"] else [])]
    if kind == "language model":
        facts = [["template", shorten(repr(header["template"])[1:-1], LONGEST)]]
        words = (header["verbalizer"] or {}).get("words", {})
        if words:
            listed = ", ".join(f"{label} ({' / '.join(some)})" for label, some in words.items())
            facts.append(["labels (words)", shorten(f"{len(words)}: {listed}", LONGEST)])
        facts += [["tasks", shorten(", ".join(header["tasks"]), LONGEST)]] if header["tasks"] else []
        return [*facts, *([["beside it", "LoRA, in the folder " + header["lora"]]] if header["lora"] else [])]
    layout, names = header["layout"], header["class_names"]
    around = f"{layout['n_ctx']} vectors, name at the {layout['class_position']}, “{layout['template']}”"
    return [
        ["classes", shorten(f"{len(names)}: {', '.join(names)}", LONGEST)],
        ["around the name", around],
    ]


def training_facts(training: Mapping[str, Any]) -> list[list[str]]:
    """How a prompt was learned, and from what, as far as its file says."""
    facts = []
    if "method" in training:
        given = ", ".join(f"{name} {value}" for name, value in training["method"]["settings"].items())
        facts.append(["method", f"{training['method']['name']}: {given}".rstrip(": ")])
    if "data" in training:
        data = training["data"]
        sizes = data.get("sizes")
        amount = f"{data.get('shots')} shots" if sizes is None else f"{sizes['train']} rows"
        facts.append(["learned from", f"{data['name']}, {amount}, seed {training['seed']}"])
    return facts
