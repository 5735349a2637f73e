"""Which forms of an export there are, for which runs, and where one may be written; nothing here imports torch."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from mmprompt.errors import UserError, bad_file, bad_value, unknown_name

INSTALL = 'pip install "mmprompt[export]"'
FACTS = "export.json"
"""What an export says of itself; a folder that holds one may be replaced by another."""


@dataclass(frozen=True)
class Form:
    """A form of an export.

    Args:
        kind: of the prompts that have it.
        writer: the module, and its function of a predictor, a folder and facts that gives further facts.
        summary: what it is.
        needs: libraries that come with `mmprompt[export]` alone.
    """

    kind: str
    writer: tuple[str, str]
    summary: str
    needs: tuple[str, ...] = ()


OF_GRAPH = "the whole classifier, from pixels to probabilities, for"
FORMS = {
    "onnx": Form("classification", ("graph", "write_onnx"), f"{OF_GRAPH} onnxruntime", ("onnxscript", "onnxruntime")),
    "pt2": Form("classification", ("graph", "write_pt2"), f"{OF_GRAPH} torch.export.load"),
    "npy": Form("classification", ("weights", "write_npy"), "class weights, for image features of any origin"),
    "open_clip": Form(
        "classification", ("weights", "write_open_clip"), "class weights as open_clip's zero-shot has them"
    ),
    "peft": Form("language", ("peft", "write_peft"), "the prompt of a language model as PEFT reads it"),
}
"""The forms there are, by name."""


def form_of(to: str, kind: str | None = None) -> Form:
    """Return the form of that name, for a prompt of a kind if one is given; refuse what cannot be."""
    if to == "torchscript":
        raise bad_value("to", to, "torch has replaced TorchScript by torch.export", "Use `to=pt2`.")
    if to not in FORMS:
        raise unknown_name("form", to, FORMS)
    form = FORMS[to]
    if kind is not None and kind != form.kind:
        own = [name for name, each in FORMS.items() if each.kind == kind]
        advice = f"Use `to={own[0]}`." if own else "Share the run folder as it is, or push it to the Hub."
        raise bad_value("to", to, f"it is {form.summary}, and this is a prompt for {kind}", advice)
    for library in form.needs:
        if importlib.util.find_spec(library) is None:
            raise UserError(f"an export to {to} is made with {library}, which is not installed. Run {INSTALL}.")
    return form


def refuse_taken(folder: Path) -> None:
    """Refuse to write over anything but an earlier export."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / FACTS).is_file():
        raise bad_file(folder, "holds something that is no export", "Give another folder as `out`.")
    if folder.is_file():
        raise bad_file(folder, "is a file, but an export is a folder", "Give another name as `out`.")
