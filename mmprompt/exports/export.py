"""A finished run in a form that needs none of this package."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from mmprompt.core.file import Predictor, describe_backbone, load
from mmprompt.core.header import public_name, read_header
from mmprompt.errors import bad_value
from mmprompt.exports.forms import FACTS, form_of, refuse_taken
from mmprompt.files import new_folder, write_json
from mmprompt.settings import checked
from mmprompt.version import __version__


@checked
def export(run: Any, to: str, path: Path | str | None = None, model: Any = None) -> Path:
    """Write a finished run in a form that needs none of this package.

    Args:
        run: a run folder, a predictor that `load` gave, or the result of a training.
        to: `"onnx"`, `"pt2"`, `"npy"`, `"open_clip"`, or `"peft"` of a language model.
        path: the folder to write, where an earlier export is replaced; by default one of the form's name in the run's.
        model: the frozen model or its name; by default the one that the run names.
    Returns:
        the folder. What is in it is said by its `export.json`: class names, input, output, how to use it.
    Raises:
        UserError: there is no such form of this run, a library is missing, or the folder holds something else.
        RunFailed: what was written computes something else than the classifier; nothing is kept.
    """
    predictor = getattr(run, "predictor", run)
    folder = Path(run) if isinstance(run, Path | str) else getattr(run, "folder", None)
    header = read_header(run) if isinstance(run, Path | str) else {}
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
