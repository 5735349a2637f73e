"""`mmprompt inspect`: what a saved prompt of any kind holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from mmprompt.core.header import read_header
from mmprompt.errors import bad_value
from mmprompt.terminal.output import JSON_HELP, Output, shorten
from mmprompt.terminal.parser import parse

LONGEST = 110


@dataclass(frozen=True)
class Settings:
    """What is shown."""

    run: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """The run folder."""
    words: Annotated[int, tyro.conf.arg(metavar="INT")] = 5
    """How many of the nearest words to show for each vector; 0 for none, which loads no model."""
    json: Annotated[bool, tyro.conf.arg(help=JSON_HELP)] = False


def run(arguments: Sequence[str], prog: str) -> None:
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
    output.table(["learned", "scope", "shape"], parts_of(header))
    if words:
        output.say()
        near = [[row["vector"], "  ".join(f"{word} {number:.2f}" for word, number in row["words"])] for row in words]
        output.table(["", f"nearest words, with {measure_of(header)} (a hint only)"], near)
    output.document({**header, "nearest_words": words})


def parts_of(header: Mapping[str, Any]) -> list[list[str]]:
    """List what was learned: vectors by site, and sources and heads by kind."""
    rows = []
    for facts in [*header["sources"], *([header["head"]] if header["head"] else [])]:
        if facts["kind"] == "vectors":
            each = facts["sites"].items()
            rows += [[site, one["scope"], " x ".join(map(str, one["shape"]))] for site, one in each]
        else:
            rows += [[f"{facts['kind']}: {name}", "", " x ".join(map(str, s))] for name, s in facts["state"].items()]
    return rows


def measure_of(header: Mapping[str, Any]) -> str:
    """What the numbers beside the nearest words are."""
    return "distances" if header["kind"] == "classification" else "cosines"


def near_words(folder: Path, header: Mapping[str, Any], k: int) -> list[dict[str, Any]]:
    """The nearest words of each vector, JSON-ready; none where the prompt has no vectors among words.

    Raises:
        UserError: the prompt or its backbone cannot be had.
    """
    if header["kind"] == "captioning":
        return []
    from mmprompt.core.file import load

    if header["kind"] == "classification":
        from mmprompt.classification.words import context_words

        return context_words(load(folder), k)
    from mmprompt.language.explain import nearest_tokens
    from mmprompt.models.sites import Site

    prompted = load(folder)
    vectors = prompted.vectors()
    if Site("lm") not in vectors:
        return []
    words = nearest_tokens(prompted.model, vectors[Site("lm")].values, k)
    return [{"vector": f"vector {m + 1}", "words": pairs} for m, pairs in enumerate(words)]


def own_facts(header: Mapping[str, Any]) -> list[list[str]]:
    """What a prompt of its kind says of itself."""
    if header["kind"] == "captioning":
        return [["focus", header["focus"]], *([["words", header["words"]]] if header["words"] else [])]
    template = ["template", shorten(repr(header["template"])[1:-1], LONGEST)]
    if header["kind"] == "classification":
        names = header["class_names"]
        return [["classes", shorten(f"{len(names)}: {', '.join(names)}", LONGEST)], template]
    facts = [template]
    words = (header["verbalizer"] or {}).get("words", {})
    if words:
        listed = ", ".join(f"{label} ({' / '.join(several)})" for label, several in words.items())
        facts.append(["labels (words)", shorten(f"{len(words)}: {listed}", LONGEST)])
    tasks = [name for source in header["sources"] for name in source.get("settings", {}).get("tasks", ())]
    facts += [["tasks", shorten(", ".join(tasks), LONGEST)]] if tasks else []
    return [*facts, *([["beside it", "LoRA, in the folder " + header["lora"]]] if header["lora"] else [])]


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
