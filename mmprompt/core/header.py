"""The header of a prompt file, `prompt.json`: what a saved prompt says of itself. Nothing here imports torch, so that
a command line is refused, and a prompt inspected, at once.

A header may come from a stranger: all that anything reads of it is held to a schema here, before anything is made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen

from mmprompt.errors import UserError, bad_file
from mmprompt.files import read_json, sha256_bytes, write_json
from mmprompt.settings import validate
from mmprompt.version import __version__

FORMAT = 2
HEADER, TENSORS = "prompt.json", "prompt.safetensors"
VERBS = {
    "classification": "mmprompt predict",
    "captioning": "mmprompt caption write",
    "language": "mmprompt llm generate",
}
KINDS = tuple(VERBS)
RESTORE = "Restore the folder as it was saved, or train again."


@dataclass(frozen=True)
class BackboneFacts:
    """What files say of a frozen model."""

    name: str
    fingerprint: str
    transform: str


@dataclass(frozen=True)
class SiteFacts:
    """Of vectors at one site."""

    scope: str
    shape: list[int]


@dataclass(frozen=True)
class PartFacts:
    """Of a source or a head: vectors by site, or settings and the shapes of its state."""

    kind: str
    sites: dict[str, SiteFacts] | None = None
    settings: dict[str, Any] | None = None
    state: dict[str, list[int]] | None = None

    def __post_init__(self) -> None:
        if None in ((self.sites,) if self.kind == "vectors" else (self.settings, self.state)):
            raise UserError(f"a part of kind {self.kind[:40]!r} does not say what it holds. {RESTORE}")


@dataclass(frozen=True)
class DataFacts:
    """What a prompt was learned from."""

    name: str = ""
    shots: int | None = None
    seed: int | None = None
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodFacts:
    """How a prompt was learned."""

    name: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class TrainingFacts:
    """Where a prompt comes from, as far as it says."""

    data: DataFacts = DataFacts()  # null is refused, left out is not
    method: MethodFacts = MethodFacts("", {})
    seed: int = 0
    notices: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class HeaderFacts:
    """What every header says."""

    mmprompt: str
    backbone: BackboneFacts
    template: str
    sources: list[PartFacts]
    head: PartFacts | None
    training: TrainingFacts
    tensors_sha256: str


@dataclass(frozen=True)
class ClassifierFacts(HeaderFacts):
    """What that of a classifier says."""

    class_names: Annotated[list[str], MinLen(1)]
    form: str
    form_settings: dict[str, Any]


@dataclass(frozen=True)
class CaptionerFacts(HeaderFacts):
    """What that of a captioner says; earlier versions kept no words of the focus."""

    focus: str
    words: str
    own_words: dict[str, list[list[int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class VerbalizerFacts:
    """The words of labels."""

    words: dict[str, list[str]]


@dataclass(frozen=True)
class LanguageFacts(HeaderFacts):
    """What that of a language model says."""

    verbalizer: VerbalizerFacts | None
    dtype: str = "float32"
    """In which the frozen model was read, whose numbers and fingerprint are others in another."""


FACTS = {"classification": ClassifierFacts, "captioning": CaptionerFacts, "language": LanguageFacts}


def read_header(folder: Path | str, kind: str | None = None) -> dict[str, Any]:
    """Read what a saved prompt says of itself: kind, backbone, sources, training.

    Raises:
        UserError: it is missing, edited, damaged, of another format, or of another kind than is wanted.
    """
    folder = Path(folder)
    path = folder / HEADER
    if not path.is_file():
        problem = f"holds no {HEADER}, so it is no saved prompt" if folder.exists() else "is not there"
        advice = "Give a folder that a training or `save` wrote."
        if (folder / "checkpoint").is_dir():
            advice = "Its training is not finished: run the same command with --resume, or fit(..., resume=True)."
        raise bad_file(folder, problem, advice)
    header = read_json(path)
    if not isinstance(header, dict) or type(header.get("format")) is not int or header["format"] < 1:
        raise bad_file(path, "is not a prompt header", RESTORE)
    if header["format"] != FORMAT:
        advice = "Upgrade mmprompt." if header["format"] > FORMAT else "It was never released: train the prompt again."
        raise bad_file(
            path, f"has format {header['format']}, but this mmprompt {__version__} reads format {FORMAT}", advice
        )
    saved_hash = header.pop("header_sha256", None)
    if saved_hash != header_hash(header):
        raise bad_file(path, "was edited after it was saved (its hash does not match)", RESTORE)
    if header.get("kind") not in KINDS:
        raise bad_file(path, f"is of kind {header.get('kind')!r}, but one of {', '.join(KINDS)} was expected", RESTORE)
    if kind not in (None, header["kind"]):
        raise bad_file(folder, f"is a prompt for {header['kind']}, not for {kind}", f"Use {VERBS[header['kind']]}.")
    validate(FACTS[header["kind"]], header, path, RESTORE, is_whole=False)
    return header


def public_name(name: str) -> str:
    """Shorten the name of a frozen model that lies in a folder or file to what says nothing of the machine.

    What is named by a library or on the hub stays; of a path the last part stays.
    """
    if " + " in name:
        return " + ".join(map(public_name, name.split(" + ")))
    if "//" in name:
        head, _, file = name.partition("//")
        return f"{head}//{Path(file).name}"
    prefix, colon, place = name.rpartition(":")
    is_path = place.startswith(("/", "~", ".")) or Path(place).expanduser().exists()
    return f"{prefix}{colon}{Path(place).name}" if is_path else name


def write_header(folder: Path, header: Mapping[str, Any]) -> None:
    """Write a header with its hash, last of the files of a prompt; the other half of `read_header`."""
    write_json(folder / HEADER, {**header, "header_sha256": header_hash(header)})


def header_hash(header: Mapping[str, Any]) -> str:
    """Hash a header, its own hash left out."""
    return sha256_bytes(json.dumps(header, sort_keys=True, ensure_ascii=False).encode())


def check_new(folder: Path, option: str = "out") -> None:
    """Refuse to write where a finished prompt already is; `option` names the place."""
    if (folder / HEADER).exists():
        problem = "already holds a finished run, and it is never overwritten"
        raise UserError(f"{folder} {problem}. Give another `{option}`.")
