"""What makes a run what it is: the parts of `run.json` that all tasks share, and the hash that a resume is held to.

It does not know what was trained; a task adds its data, its method and its recipe.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from mmprompt.files import sha256_bytes
from mmprompt.version import __version__


class Placed(Protocol):
    """A model that lives somewhere, in some precision."""

    device: torch.device
    dtype: torch.dtype


def surroundings(backbone: Placed) -> dict[str, Any]:
    """Where and by what versions a run computes, JSON-ready."""
    return {
        "device": str(backbone.device),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "versions": {"mmprompt": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def run_id_of(config: Mapping[str, Any]) -> str:
    """The hash of what makes two runs the same run: everything but the versions."""
    return sha256_bytes(repr(sorted((key, value) for key, value in config.items() if key != "versions")).encode())


def provenance(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a prompt file says of the run it comes from."""
    return {key: config[key] for key in ("data", "method", "recipe", "seed", "versions")}
