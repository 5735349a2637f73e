"""`mmprompt eval`, `inspect`, `report` and `export`: what is done with a finished run, of whatever kind it is."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from mmprompt.core.header import read_header
from mmprompt.errors import UserError, bad_value
from mmprompt.exports.export import FACTS, export, form_of, refuse_taken
from mmprompt.files import read_json
from mmprompt.terminal.output import Backbone, Json, Output, check_place, shorten
from mmprompt.terminal.parser import parse

EXPORT = "Write a finished run in a form that needs none of this package."
REPORT = "Write the report of a finished run: one HTML file, and its figures."
OPTION_OF_RUN = {"captioning": "--prompts", "language": "--prompt"}
"""What the verbs that measure several prompts at once call a run."""
LONGEST_FACT = 110
MOST_TENSORS = 12
"""Of a source that are shown one by one."""
Run = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN", help="The run folder.")]]


@dataclass(frozen=True)
class InspectSettings:
    """What is shown."""

    run: Run
    words: Annotated[int, tyro.conf.arg(metavar="INT")] = 5
    """How many of the nearest words to show for each vector; 0 for none, which loads no model."""
    backbone: Backbone = None
    json: Json = False


@dataclass(frozen=True)
class ReportSettings:
    """Of which run."""

    run: Run
    json: Json = False


@dataclass(frozen=True)
class ExportSettings:
    """What is written, and where to."""

    run: Run
    to: Annotated[str, tyro.conf.arg(metavar="FORM")]
    """onnx, pt2 (torch.export), npy or open_clip of a classifier; peft of a language model's prompt."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where an earlier export is replaced; by default a folder of the form's name in RUN."""
    backbone: Backbone = None
    json: Json = False


def run_eval(arguments: Sequence[str], prog: str) -> None:
    """Measure a run on labelled data beside the frozen model alone, by the verb of the room that the run is of."""
    if not arguments or (arguments[0].startswith("-") and not {"-h", "--help"} & set(arguments)):
        raise UserError(f"the run folder is missing. Write {prog} RUN [options].")
    kind = "classification" if {"-h", "--help"} & set(arguments[:1]) else read_header(Path(arguments[0]))["kind"]
    verb = importlib.import_module(f"mmprompt.{kind}.cli.eval")
    named = [OPTION_OF_RUN[kind]] if kind in OPTION_OF_RUN else []
    verb.run([*named, *arguments], prog)


def run_report(arguments: Sequence[str], prog: str) -> None:
    """Write `report.html` and the figures into the run folder, from what is in it alone."""
    settings = parse(ReportSettings, arguments, prog, REPORT)
    own = {"classification": "mmprompt.classification.report"}
    page = importlib.import_module(own.get(read_header(settings.run)["kind"], "mmprompt.reports.pages"))
    path, output = page.write_report(settings.run), Output(settings.json)
    output.say(f"report  {path}")
    output.document({"run": str(settings.run), "report": str(path)})


def run_export(arguments: Sequence[str], prog: str) -> None:
    """Write the export and say what is in it; what cannot be is refused before a model is loaded."""
    settings = parse(ExportSettings, arguments, prog, EXPORT)
    output, form = Output(settings.json), form_of(settings.to, read_header(settings.run)["kind"])
    target = settings.out or settings.run / settings.to
    refuse_taken(target)
    check_place(target)
    output.say(f"Writing {form.summary} ...", "dim")
    export(settings.run, settings.to, target, settings.backbone)
    files = {path.name: path.stat().st_size for path in sorted(target.iterdir()) if path.is_file()}
    output.table(["file", "bytes"], [[str(target / name), f"{size:,}"] for name, size in files.items()], numbers=(1,))
    facts = read_json(target / FACTS)
    if "use" in facts:
        output.say(f"Use: {facts['use']}")
    output.document({"folder": str(target), "files": files} | facts)


def run_inspect(arguments: Sequence[str], prog: str) -> None:
    """Print what a prompt says of itself and the words nearest to its vectors."""
    settings = parse(InspectSettings, arguments, prog, "What a prompt holds, and the words nearest to it.")
    if settings.words < 0:
        raise bad_value("words", settings.words, "it must be 0 or more", "Use --words 5.")
    output = Output(settings.json)
    header = read_header(settings.run)
    words = near_words(settings.run, header, settings.words, settings.backbone) if settings.words else []
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
        measure = "distances" if header["kind"] == "classification" else "cosines"
        output.table(["", f"nearest words, with {measure} (a hint only)"], near)
    output.document({**header, "nearest_words": words})


def parts_of(header: Mapping[str, Any]) -> list[list[str]]:
    """List what was learned: vectors by site, and sources and heads by kind."""
    rows = []
    for facts in [*header["sources"], *([header["head"]] if header["head"] else [])]:
        if facts["kind"] == "vectors":
            each = facts["sites"].items()
            rows += [[site, one["scope"], " x ".join(map(str, one["shape"]))] for site, one in each]
        elif len(facts["state"]) > MOST_TENSORS:
            n_numbers = sum(math.prod(shape) for shape in facts["state"].values())
            rows.append([facts["kind"], "", f"{len(facts['state'])} tensors, {n_numbers:,} numbers"])
        else:
            rows += [[f"{facts['kind']}: {name}", "", " x ".join(map(str, s))] for name, s in facts["state"].items()]
    return rows


def near_words(folder: Path, header: Mapping[str, Any], k: int, backbone: str | None = None) -> list[dict[str, Any]]:
    """Return the nearest words of each vector, JSON-ready; none where the prompt has no vectors among words."""
    if header["kind"] == "captioning":
        return []
    from mmprompt.core.file import load

    if header["kind"] == "classification":
        from mmprompt.classification.words import context_words

        return context_words(load(folder, backbone), k)
    from mmprompt.language.explain import nearest_tokens
    from mmprompt.models.sites import Site

    prompted = load(folder, backbone)
    vectors = prompted.vectors()
    if Site("lm") not in vectors:
        return []
    words = nearest_tokens(prompted.model, vectors[Site("lm")].values, k)
    return [{"vector": f"vector {m + 1}", "words": pairs} for m, pairs in enumerate(words)]


def own_facts(header: Mapping[str, Any]) -> list[list[str]]:
    """Say what a prompt of its kind says of itself."""
    if header["kind"] == "captioning":
        return [["focus", header["focus"]], *([["words", header["words"]]] if header["words"] else [])]
    template = ["template", shorten(repr(header["template"])[1:-1], LONGEST_FACT)]
    if header["kind"] == "classification":
        names = header["class_names"]
        return [["classes", shorten(f"{len(names)}: {', '.join(names)}", LONGEST_FACT)], template]
    facts = [template]
    words = (header["verbalizer"] or {}).get("words", {})
    if words:
        listed = ", ".join(f"{label} ({' / '.join(several)})" for label, several in words.items())
        facts.append(["labels (words)", shorten(f"{len(words)}: {listed}", LONGEST_FACT)])
    tasks = [name for source in header["sources"] for name in source.get("settings", {}).get("tasks", ())]
    facts += [["tasks", shorten(", ".join(tasks), LONGEST_FACT)]] if tasks else []
    return facts


def training_facts(training: Mapping[str, Any]) -> list[list[str]]:
    """Say how a prompt was learned, and from what, as far as its file says."""
    facts = []
    if "method" in training:
        given = ", ".join(f"{name} {value}" for name, value in training["method"]["settings"].items())
        facts.append(["method", f"{training['method']['name']}: {given}".rstrip(": ")])
    if "data" in training:
        data = training["data"]
        sizes = data.get("sizes")
        amount = f"{data.get('shots')} shots" if sizes is None else f"{sizes.get('train')} rows"
        facts.append(["learned from", f"{data['name']}, {amount}, seed {training.get('seed')}"])
    return facts
