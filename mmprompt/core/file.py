"""The prompt file: `prompt.safetensors` (what was learned) and `prompt.json` (what it means), format 2.

Kilobytes, no pickle. A file that was edited, damaged, made for another backbone or by a newer version is refused in one
line. Which predictor a file becomes is said by its `kind`, the name of a room of the package; that room reads what it
alone knows. This file knows how a prompt is stored, not how it was trained.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mmprompt.core.header import FACTS, FORMAT, HEADER, RESTORE, TENSORS, read_header, write_header
from mmprompt.core.heads import HEADS, Head
from mmprompt.core.learned import Given, Learned, Prompt, Source, Template
from mmprompt.core.sources import SOURCES
from mmprompt.errors import UserError, bad_file, bad_value
from mmprompt.files import (
    ANY_SIZE,
    json_ready,
    make_folder,
    read_bytes,
    read_tensors,
    sha256_bytes,
    tensor_bytes,
    write_bytes,
)
from mmprompt.models.sites import Site, Vectors
from mmprompt.settings import checked, validate
from mmprompt.version import __version__

DIMS = {"shared": 2, "class": 3}
"""Of vectors that may be kept, by their scope."""


class Frozen(Protocol):
    """What a prompt file says of a frozen model; see `DualEncoder`."""

    name: str
    fingerprint: str
    transform: str


@runtime_checkable
class Predictor(Protocol):
    """A frozen model, the `backbone`, with all that was learned, the `prompt`; `kind` is one of `KINDS`."""

    @property
    def kind(self) -> str:
        """See the class."""
        ...

    if TYPE_CHECKING:  # from Python 3.12 on isinstance does not see the sub-modules of a torch module

        @property
        def backbone(self) -> Any:
            """See the class."""
            ...

        @property
        def prompt(self) -> Prompt:
            """See the class."""
            ...

    def header(self) -> dict[str, Any]:
        """Give what its kind alone keeps in the header, JSON-ready."""
        ...

    def kept_tensors(self) -> dict[str, Tensor]:
        """Give what is stored beside the learned tensors so that loading need not compute it."""
        ...


@checked
def save(predictor: Predictor, folder: Path | str, training: Mapping[str, Any] | None = None) -> None:
    """Write what a predictor has learned to a folder: kilobytes, and nothing of the frozen model.

    Args:
        predictor: what `load` will give back.
        folder: made if missing; the two files in it are replaced, the header last.
        training: JSON-ready facts about where the prompt comes from (method, data set, shots, seed, metrics).
    Raises:
        UserError: the folder cannot be written, a source says no kind under which it could be kept, or `training` is
            not JSON-ready or says one of these otherwise than `fit` does.
    """
    tensors: dict[str, Tensor] = {}
    facts = json_ready(describe(predictor, tensors) | {"training": dict(training or {})})
    data = tensor_bytes(tensors | predictor.kept_tensors())
    header = {**facts, "tensors_sha256": sha256_bytes(data)}
    validate(FACTS[predictor.kind], header, "what is to be saved", is_whole=False)
    folder = make_folder(Path(folder))
    write_bytes(folder / TENSORS, data)
    write_header(folder, header)


def describe(predictor: Predictor, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Give what the header says of a predictor, but for its training, and add what was learned to some tensors.

    Raises:
        UserError: a source, a head or the predictor itself says no kind under which it could be kept.
    """
    prompt = predictor.prompt
    return {
        "format": FORMAT,
        "mmprompt": __version__,
        "kind": predictor.kind,
        "backbone": describe_backbone(predictor.backbone),
        "template": prompt.template.text,
        "sources": [_describe(source, f"source{place}", tensors) for place, source in enumerate(prompt.sources)],
        "head": None if prompt.head is None else _describe(prompt.head, "head", tensors),
        **predictor.header(),
    }


def _describe(part: Source | nn.Module, place: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Describe a source or head for the header, and add its tensors to those of the file."""
    kind = getattr(part, "kind", "")
    if isinstance(part, Source) and kind == "vectors":
        is_plain = not part.needs_image and not part.tasks
        inserts = part(Given()) if is_plain else {}
        if not is_plain or not all(isinstance(insert, Vectors) for insert in inserts.values()):
            name = type(part).__name__
            raise UserError(
                f"{name} gives more than vectors of its own, so its vectors alone cannot be kept. Give the class a "
                "`kind` and `settings`, and add it to mmprompt.core.sources.SOURCES."
            )
        vectors = {site: insert for site, insert in inserts.items() if isinstance(insert, Vectors)}
        tensors |= {str(site): one.values.detach() for site, one in vectors.items()}
        facts = {str(site): {"scope": one.scope, "shape": list(one.values.shape)} for site, one in vectors.items()}
        return {"kind": kind, "sites": facts}
    known: Mapping[str, Any] = SOURCES if isinstance(part, Source) else HEADS
    if kind not in known:
        raise UserError(
            f"{type(part).__name__} has the kind {kind!r}, which no file could be read with. "
            "Add it to mmprompt.core.sources.SOURCES or mmprompt.core.heads.HEADS."
        )
    state = part.state_dict()
    tensors |= {f"{place}.{name}": value.detach() for name, value in state.items()}
    return {
        "kind": kind,
        "settings": part.settings(),  # type: ignore[operator]
        "state": {name: list(value.shape) for name, value in state.items()},
    }


def describe_backbone(backbone: Frozen) -> dict[str, str]:
    """Give what files say of a frozen model, JSON-ready."""
    return {"name": backbone.name, "fingerprint": backbone.fingerprint, "transform": backbone.transform}


@checked
def load(folder: Path | str, model: Any = None, device: str = "auto") -> Any:
    """Load what `fit` or `save` wrote: a classifier, a captioner or a language model with its prompt.

    Args:
        folder: a run folder, or any folder that `save` wrote.
        model: the frozen model or its name; by default the one that the file names.
        device: where a model that is loaded goes; `"auto"` takes cuda, then mps, then cpu.
    Raises:
        UserError: files are missing, edited, damaged, of another format, or for another model.
    """
    folder = Path(folder)
    header = read_header(folder)
    room = importlib.import_module(f"mmprompt.{header['kind']}.predictor")
    return room.load(folder, header, model, device)


def model_of(folder: Path, header: Mapping[str, Any], model: Any, load_named: Callable[[str], Any]) -> Any:
    """Return the frozen model to use a prompt on: the one given, or that of a name, by default the one in its header.

    Raises:
        UserError: it is no model, or cannot be loaded; where it was the file that named it, how to name another place
            is said.
    """
    if isinstance(model, str):
        return load_named(model)
    if model is not None:
        if not hasattr(model, "fingerprint"):
            expected = "a frozen model or the name of one was expected"
            raise bad_value("model", f"of type {type(model).__name__}", expected, "Leave it out for the file's own.")
        return model
    try:
        return load_named(header["backbone"]["name"])
    except UserError as error:
        advice = "If the same weights lie somewhere else now, say where: `model=NAME`."
        raise UserError(f"{folder}: its frozen model cannot be loaded. {error} {advice}") from None


def refuse_other_backbone(folder: Path, header: Mapping[str, Any], backbone: Frozen) -> None:
    """Refuse a prompt on weights that it was not learned on."""
    if backbone.fingerprint != header["backbone"]["fingerprint"]:
        raise bad_file(
            folder,
            f"this prompt was learned on {header['backbone']['name']} ({header['backbone']['fingerprint'][:12]}), "
            f"not on {backbone.name} ({backbone.fingerprint[:12]})",
            "Load it with the same backbone and weights, or train on this one.",
        )


def read_prompt(
    folder: Path, header: Mapping[str, Any], device: torch.device, template: Template, *kept: str
) -> tuple[Prompt, dict[str, Tensor]]:
    """Read the learned parts that a header describes, whose parameters may learn on, and all tensors of the file.

    The template is made of the header's by the room that knows how; tensors named in `kept` must stand beside those
    that were learned. A file that is missing, was changed, or holds something else is refused.
    """
    path = folder / TENSORS
    tensors = read_sealed(path, header["tensors_sha256"])
    for name in kept:
        if name not in tensors:
            raise bad_file(path, f"holds no {name.replace('_', ' ')}", RESTORE)
    sources: list[Source] = []
    for place, facts in enumerate(header["sources"]):
        if facts["kind"] == "vectors":
            sources += _read_vectors(path, facts["sites"], tensors)
        else:
            sources.append(_read_part(path, facts, f"source{place}", tensors, SOURCES, "source"))
    head: Head | None = None
    if header["head"] is not None:
        head = _read_part(path, header["head"], "head", tensors, HEADS, "head")
    return Prompt(template, *sources, head=head).to(device), tensors


def read_sealed(path: Path, sha256: str, advice: str = RESTORE) -> dict[str, Tensor]:
    """Read a tensor file; refuse one whose hash is not the one that was kept of it."""
    if sha256_bytes(read_bytes(path, ANY_SIZE)) != sha256:
        raise bad_file(path, "was changed after it was saved (its hash does not match)", advice)
    return read_tensors(path, ANY_SIZE)


def _read_vectors(path: Path, sites: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[Learned]:
    for name, facts in sites.items():
        values = tensors.get(name, torch.zeros(0, dtype=torch.bool))
        is_fit = values.is_floating_point() and list(values.shape) == facts["shape"]
        if not is_fit or values.dim() != DIMS.get(facts["scope"]):
            raise bad_file(path, f"does not hold {name} as {HEADER} describes it", RESTORE)
    return [Learned(Site.parse(name), tensors[name], facts["scope"]) for name, facts in sites.items()]


def _read_part(
    path: Path,
    facts: Mapping[str, Any],
    place: str,
    tensors: Mapping[str, Tensor],
    known: Mapping[str, Callable[..., Any]],
    what: str,
) -> Any:
    if facts["kind"] not in known:
        raise bad_file(
            path,
            f"holds a {what} of kind {facts['kind']!r}, which is not known here",
            "Upgrade mmprompt, or import the module that adds it first.",
        )
    state = {name.removeprefix(f"{place}."): value for name, value in tensors.items() if name.startswith(f"{place}.")}
    make = partial(known[facts["kind"]], **facts["settings"])
    try:
        _refuse_huge(facts["settings"], sum(value.numel() for value in state.values()))
        with torch.device("meta"):  # which allocates nothing
            expected = {name: (value.shape, value.dtype) for name, value in make().state_dict().items()}
        if expected != {name: (value.shape, value.dtype) for name, value in state.items()}:
            raise ValueError
        part = make()
        part.load_state_dict(state)
    except Exception:  # settings of a stranger may raise anything where a part is made
        raise bad_file(path, f"does not hold the {what} {facts['kind']!r} as {HEADER} describes it", RESTORE) from None
    return part


def _refuse_huge(settings: Any, n_numbers: int) -> None:
    """Raise ValueError where a whole number says more than a file of so many numbers could hold."""
    for value in settings.values() if isinstance(settings, dict) else settings if isinstance(settings, list) else ():
        if isinstance(value, int) and abs(value) > max(n_numbers, 10_000):
            raise ValueError
        _refuse_huge(value, n_numbers)
