"""What stands beside PEFT's files of a prompt: template and words of labels, for which those have no place."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mmprompt.core.file import RESTORE, describe_backbone
from mmprompt.data.strict_yaml import validate
from mmprompt.errors import bad_file
from mmprompt.files import read_bytes, read_json, read_tensors, sha256_bytes, tensor_bytes, write_bytes, write_json
from mmprompt.language.peft.layout import TENSORS
from mmprompt.language.predictor import PromptedModel
from mmprompt.version import __version__

FORMAT = 1
SIDE, COMPILED = "mmprompt.json", "mmprompt.safetensors"
MAX_BYTES = 2**31


@dataclass(frozen=True)
class Backbone:
    """The frozen model, as in a prompt file."""

    name: str
    fingerprint: str
    transform: str


@dataclass(frozen=True)
class Side:
    """The content of `mmprompt.json`.

    Args:
        format: of this file.
        mmprompt: the version that wrote it.
        backbone: the frozen model.
        template, verbalizer, n_soft: as in `LanguagePrompt`.
        tasks: names of the tasks, where PEFT has numbers.
        holds: of a compiled prompt the slots that its keys and values are of, as in `Question`; texts follow them
            without start tokens of their own.
        adapter_sha256: of the tensors beside it.
        compiled_sha256: of `mmprompt.safetensors`, the vectors that were compiled; None where none were.
    """

    format: int
    mmprompt: str
    backbone: Backbone
    template: str
    verbalizer: dict[str, Any] | None
    n_soft: int
    tasks: list[str]
    holds: list[int]
    adapter_sha256: str
    compiled_sha256: str | None


def read_side(folder: Path) -> Side | None:
    """Read it, None where there is none.

    Raises:
        UserError: it is broken, of a newer format, or of other tensors.
    """
    path = folder / SIDE
    if not path.is_file():
        return None
    found = read_json(path)
    if not isinstance(found, dict):
        raise bad_file(path, "is no JSON object", RESTORE)
    side = validate(Side, found, path)
    if side.format > FORMAT:
        problem = f"has format {side.format}, but this mmprompt {__version__} reads up to {FORMAT}"
        raise bad_file(path, problem, "Upgrade mmprompt.")
    if sha256_bytes(read_bytes(folder / TENSORS, MAX_BYTES)) != side.adapter_sha256:
        problem = f"was written with another {TENSORS} than the one beside it"
        raise bad_file(path, problem, "Restore the folder as it was saved, or remove this file.")
    return side


def read_compiled(folder: Path, side: Side) -> dict[str, Tensor]:
    """The vectors that were compiled, by site.

    Raises:
        UserError: they are missing or were changed.
    """
    path = folder / COMPILED
    if sha256_bytes(read_bytes(path, MAX_BYTES)) != side.compiled_sha256:
        raise bad_file(path, "was changed after it was saved (its hash does not match)", RESTORE)
    return read_tensors(path)


def write_side(
    folder: Path,
    prompted: PromptedModel,
    tasks: list[str],
    adapter: bytes,
    holds: list[int],
    compiled: dict[str, Tensor],
) -> None:
    """Write it.

    Args:
        folder: where PEFT's files are.
        prompted: the prompt.
        tasks: names of the tasks that PEFT's file has.
        adapter: PEFT's tensors.
        holds: slots that were compiled, () for none.
        compiled: the vectors that were, by site.
    """
    data = tensor_bytes(compiled) if compiled else None
    prompt = prompted.prompt
    side = Side(
        format=FORMAT,
        mmprompt=__version__,
        backbone=Backbone(**describe_backbone(prompted.model)),
        template=prompt.template.text,
        verbalizer=None if prompt.verbalizer is None else prompt.verbalizer.to_dict(),
        n_soft=prompt.n_soft,
        tasks=tasks,
        holds=holds,
        adapter_sha256=sha256_bytes(adapter),
        compiled_sha256=None if data is None else sha256_bytes(data),
    )
    if data is None:
        (folder / COMPILED).unlink(missing_ok=True)
    else:
        write_bytes(folder / COMPILED, data)
    write_json(folder / SIDE, asdict(side))
