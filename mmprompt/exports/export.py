"""A finished run in a form that needs none of this package: which forms there are, for which runs, and writing one.

Nothing here imports torch before something is written.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprompt.core.header import public_name, read_header
from mmprompt.errors import UserError, bad_file, bad_value, unknown_name
from mmprompt.files import new_folder, read_json, write_json
from mmprompt.settings import checked, expanded
from mmprompt.version import __version__

if TYPE_CHECKING:
    from mmprompt.core.file import Predictor

INSTALL = 'pip install "mmprompt[export]"'
FACTS = "export.json"
"""What an export says of itself."""


@dataclass(frozen=True)
class Form:
    """A form of an export of one kind of prompts; `needs` are libraries that come with `mmprompt[export]` alone.

    `writer` is the module, and its function of a predictor, a folder and facts that gives further facts. It writes
    some or all of `files`, which another export may replace.
    """

    kind: str
    writer: tuple[str, str]
    files: tuple[str, ...]
    summary: str
    needs: tuple[str, ...] = ()


OF_GRAPH = "the whole classifier, from pixels to probabilities, for"
FORMS = {
    "onnx": Form(
        "classification",
        ("graph", "write_onnx"),
        ("classifier.onnx", "classifier.onnx.data"),
        f"{OF_GRAPH} onnxruntime",
        ("onnxscript", "onnxruntime"),
    ),
    "pt2": Form("classification", ("graph", "write_pt2"), ("classifier.pt2",), f"{OF_GRAPH} torch.export.load"),
    "npy": Form(
        "classification",
        ("weights", "write_npy"),
        ("class_weights.npy",),
        "class weights, for image features of any origin",
    ),
    "open_clip": Form(
        "classification",
        ("weights", "write_open_clip"),
        ("zero_shot_classifier.safetensors",),
        "class weights as open_clip's zero-shot has them",
    ),
    "peft": Form(
        "language",
        ("peft", "write_peft"),
        ("adapter_config.json", "adapter_model.safetensors", "mmprompt.json", "mmprompt.safetensors"),
        "the prompt of a language model as PEFT reads it",
    ),
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
    """Refuse to write over anything but an earlier export, and in the place of a link or of the current folder."""
    if folder.is_symlink():
        raise bad_file(folder, "is a link, but an export is a folder", "Give a new folder as `out`.")
    if folder.resolve() == Path.cwd():
        raise bad_file(folder, "is the current folder, which cannot be replaced", "Give a new folder as `out`.")
    if folder.is_dir() and any(folder.iterdir()) and not _is_export(folder):
        raise bad_file(folder, "holds something that is no export", "Give another folder as `out`.")
    if folder.is_file():
        raise bad_file(folder, "is a file, but an export is a folder", "Give another name as `out`.")


def _is_export(folder: Path) -> bool:
    """Return whether a folder holds an export and nothing else."""
    facts = read_json(folder / FACTS) if (folder / FACTS).is_file() else None
    form = FORMS.get(str(facts.get("form"))) if isinstance(facts, dict) else None
    return form is not None and all(path.is_file() and path.name in (FACTS, *form.files) for path in folder.iterdir())


@checked
def export(run: Any, to: str, path: Path | str | None = None, model: Any = None) -> Path:
    """Write a finished run in a form that needs none of this package.

    Args:
        run: a run folder, a predictor that `load` gave, or the result of a training.
        to: `"onnx"`, `"pt2"`, `"npy"`, `"open_clip"`, or `"peft"` of a language model.
        path: the folder to write, where an earlier export is replaced; by default one of the form's name in the run's.
        model: the frozen model or its name, for a run folder; by default the one that the run names.
    Returns:
        the folder. What is in it is said by its `export.json`: class names, input, output, how to use it.
    Raises:
        UserError: there is no such form of this run, a library is missing, or the folder holds something else.
        RunFailed: what was written computes something else than the classifier; nothing is kept.
    """
    from mmprompt.core.file import Predictor, load

    run = expanded(run) if isinstance(run, Path | str) else run
    predictor = getattr(run, "predictor", run)
    folder = run if isinstance(run, Path) else getattr(run, "folder", None)
    header = read_header(run) if isinstance(run, Path) else {}
    if model is not None and not header:
        raise bad_value("model", repr(model)[:60], "a run in memory has its own", "Leave it out.")
    form = form_of(to, header.get("kind", getattr(predictor, "kind", None)))
    if path is None and folder is None:
        raise bad_value("path", None, "this predictor has no run folder to write into", "Give a folder.")
    target = Path(path) if path is not None else Path(str(folder)) / to
    refuse_taken(target)
    if header:
        predictor = load(run, model, "cpu")
    if not isinstance(predictor, Predictor):
        expected = "a run folder, or what fit or load gave, was expected"
        raise bad_value("run", f"of type {type(run).__name__}", expected, "Give one.")
    module, name = form.writer
    facts = facts_of(predictor, to)
    with new_folder(target, lambda: True) as fresh:
        more = getattr(importlib.import_module(f"mmprompt.exports.{module}"), name)(predictor, fresh, facts)
        write_json(fresh / FACTS, facts | more)
    return target


def facts_of(predictor: Predictor, to: str) -> dict[str, Any]:
    """Give what every export says of itself, JSON-ready."""
    from mmprompt.core.file import describe_backbone

    backbone = predictor.backbone
    frozen = describe_backbone(backbone)
    frozen["name"] = public_name(frozen["name"])
    facts = {"form": to, "mmprompt": __version__, "backbone": frozen}
    if predictor.kind != "classification":
        return facts
    if (backbone.device.type, str(backbone.dtype)) != ("cpu", "torch.float32"):
        there = f"{backbone.dtype} on {backbone.device}"
        raise bad_value("model", there, "an export is of single precision on the CPU", "Give the run folder instead.")
    names = list(predictor.class_names)  # type: ignore[attr-defined]
    return facts | {"class_names": names, "image_size": backbone.image_size, "transform": backbone.transform}
