"""The prompt file: `prompt.safetensors` (vectors by site, class features) and `prompt.json` (what they mean).

Kilobytes, no pickle. A file that was edited, damaged, made for another backbone or by a newer version
is refused in one line. It knows how a prompt is stored, not how it was trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, get_args

import torch
from torch import Tensor

from mmprompt.core.prompt import SiteSources
from mmprompt.core.sources import FreeVectors
from mmprompt.errors import UserError, bad_file
from mmprompt.files import (
    make_folder,
    read_bytes,
    read_json,
    read_tensors,
    sha256_bytes,
    tensor_bytes,
    write_bytes,
    write_json,
)
from mmprompt.models.sites import Scope, Site
from mmprompt.version import __version__

FORMAT = 1
HEADER, TENSORS = "prompt.json", "prompt.safetensors"


class Frozen(Protocol):
    """What a prompt file says of a frozen model; see `DualEncoder`."""

    name: str
    fingerprint: str
    transform: str


RESTORE = "Restore the folder as it was saved, or train again."


def write_prompt(
    folder: Path,
    backbone: Frozen,
    prompt: SiteSources,
    more: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    training: Mapping[str, Any] | None,
) -> None:
    """Write the two files of a prompt of any kind, the header last.

    Args:
        folder: made if missing.
        backbone: what the prompt was learned on.
        prompt: its vectors.
        more: what the header says beside that.
        tensors: what is kept beside the vectors.
        training: JSON-ready facts about where the prompt comes from.
    """
    folder = make_folder(folder)
    data = tensor_bytes({**prompt.tensors(), **tensors})
    header = {
        "format": FORMAT,
        "mmprompt": __version__,
        "backbone": describe_backbone(backbone),
        **more,
        "sites": {str(site): {"scope": v.scope, "shape": list(v.values.shape)} for site, v in prompt.vectors().items()},
        "training": dict(training or {}),
        "tensors_sha256": sha256_bytes(data),
    }
    write_bytes(folder / TENSORS, data)
    write_json(folder / HEADER, header | {"header_sha256": _header_hash(header)})


def describe_backbone(backbone: Frozen) -> dict[str, str]:
    """What files say of a frozen model, JSON-ready."""
    return {"name": backbone.name, "fingerprint": backbone.fingerprint, "transform": backbone.transform}


def refuse_other_backbone(folder: Path, header: Mapping[str, Any], backbone: Frozen) -> None:
    """Refuse a prompt on weights that it was not learned on.

    Raises:
        UserError: the fingerprints differ.
    """
    if backbone.fingerprint != header["backbone"]["fingerprint"]:
        raise bad_file(
            folder,
            f"this prompt was learned on {header['backbone']['name']} ({header['backbone']['fingerprint'][:12]}), "
            f"not on {backbone.name} ({backbone.fingerprint[:12]})",
            "Load it with the same backbone and weights, or train on this one.",
        )


def read_sources(
    header: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device
) -> dict[Site, FreeVectors]:
    """The saved vectors by site, free to learn on."""
    return {
        Site.parse(name): FreeVectors(tensors[name], facts["scope"]).to(device)
        for name, facts in header["sites"].items()
    }


def read_prompt_header(folder: Path | str) -> dict[str, Any]:
    """What a saved prompt says of itself: backbone, class names, sites, training.

    Raises:
        UserError: it is missing, edited, damaged or of a newer format.
    """
    folder = Path(folder)
    path = folder / HEADER
    if not path.is_file():
        advice = "Give a folder that `mmprompt train` or `save` wrote."
        raise bad_file(folder, f"holds no {HEADER}, so it is no saved prompt", advice)
    header = read_json(path)
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise bad_file(path, "is not a prompt header", RESTORE)
    if header["format"] > FORMAT:
        raise bad_file(
            path,
            f"has format {header['format']}, but this mmprompt {__version__} reads up to {FORMAT}",
            "Upgrade mmprompt.",
        )
    said = header.pop("header_sha256", None)
    if said != _header_hash(header):
        raise bad_file(path, "was edited after it was saved (its hash does not match)", RESTORE)
    return header


def read_prompt_tensors(folder: Path, header: Mapping[str, Any], *more: str) -> dict[str, Tensor]:
    """The vectors that a header describes, and what stands beside them.

    Raises:
        UserError: the file is missing, was changed, or holds something else.
    """
    path = folder / TENSORS
    if sha256_bytes(read_bytes(path, 2**31)) != header["tensors_sha256"]:
        raise bad_file(path, "was changed after it was saved (its hash does not match)", RESTORE)
    tensors = read_tensors(path)
    for name, facts in header["sites"].items():
        if name not in tensors or list(tensors[name].shape) != facts["shape"] or facts["scope"] not in get_args(Scope):
            raise bad_file(path, f"does not hold {name} as {HEADER} describes it", RESTORE)
    for name in more:
        if name not in tensors:
            raise bad_file(path, f"holds no {name.replace('_', ' ')}", RESTORE)
    return tensors


def _header_hash(header: Mapping[str, Any]) -> str:
    return sha256_bytes(json.dumps(header, sort_keys=True, ensure_ascii=False).encode())


def check_new(folder: Path) -> None:
    """Refuse to write where a finished prompt already is.

    Raises:
        UserError: the folder holds a saved prompt.
    """
    if (folder / HEADER).exists():
        raise UserError(f"{folder} already holds a finished run, and it is never overwritten. Give another --out.")
