"""`mmprompt doctor`: what is installed, which devices there are, what lies in the caches, and what can be fetched."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from mmprompt.cli.backbones import origin
from mmprompt.files import cache_folder
from mmprompt.models.packaged import PACKAGED
from mmprompt.progress import doing
from mmprompt.terminal.output import OnlyJson, Output
from mmprompt.terminal.parser import parse
from mmprompt.version import __version__

DESCRIPTION = "What is installed, which devices there are, what lies in the caches, and what can be fetched."
VARIABLES = ("MMPROMPT_CACHE", "MMPROMPT_CACHE_LIMIT", "HF_HOME", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES")
MIB, GIB = 2**20, 2**30
Rows = list[dict[str, str]]


def run(arguments: Sequence[str], prog: str) -> None:
    """Look around and tell; nothing is loaded but torch, and nothing is fetched."""
    output = Output(parse(OnlyJson, arguments, prog, DESCRIPTION).json)
    with doing("looking for devices"):
        devices, default, precision = find_devices()
    with doing("measuring caches"):
        caches = find_caches()
    found = {
        "versions": required(),
        "extras": extras(),
        "devices": devices,
        "caches": caches,
        "fetch": [{"model": name, **origin(name)} for name in PACKAGED],
        "variables": [{"variable": name, "value": os.environ[name]} for name in VARIABLES if name in os.environ],
    }
    for rows in found.values():
        if rows:
            output.table(list(rows[0]), [list(row.values()) for row in rows])
            output.say()
    output.say(f"--device auto takes {default} here; a training there computes in {precision}, the prompt in fp32.")
    if all(row["device"] == "cpu" for row in devices):
        output.say(
            "With a GPU the same commands take it by themselves, and compute in bf16, or fp16 where it lacks that."
        )
    output.document({**found, "device": default, "precision": precision})


def required() -> Rows:
    """List this package, Python, and the libraries that are always needed."""
    rows = [
        {"what": "mmprompt", "version": __version__},
        {"what": "python", "version": f"{platform.python_version()} on {platform.platform(terse=True)}"},
    ]
    return rows + [{"what": name, "version": version_of(name)} for name, extra in requirements() if not extra]


def extras() -> Rows:
    """List the extras, and what is missing for each."""
    names: dict[str, list[str]] = {}
    for name, extra in requirements():
        if extra and extra != "dev" and name != "mmprompt":
            names.setdefault(extra, []).append(name)
    rows = []
    for extra, needed in names.items():
        missing = [name for name in needed if version_of(name) == "missing"]
        state = f'lacks {", ".join(missing)}: pip install "mmprompt[{extra}]"' if missing else "there"
        rows.append({"extra": extra, "state": state})
    return rows


def requirements() -> list[tuple[str, str]]:
    """Give the libraries that this package names, each with its extra, "" for none."""
    pairs = []
    for line in metadata.requires("mmprompt") or ():
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        name = re.match(r"[\w.-]+", line)
        assert name is not None, line
        pairs.append((name[0], extra[1] if extra else ""))
    return pairs


def version_of(name: str) -> str:
    """Return the version of a library, or that it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def find_devices() -> tuple[Rows, str, str]:
    """List devices with their memory; give also the one that `auto` takes, and the precision of a training there."""
    import torch

    from mmprompt.models.dual_encoder.load import read_options
    from mmprompt.training.update import compute_dtype

    threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    rows = [{"device": "cpu", "what": f"{platform.machine()}, {threads}", "memory": f"{size / GIB:.1f} GB"}]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        rows.append({"device": f"cuda:{index}", "what": facts.name, "memory": f"{facts.total_memory / GIB:.1f} GB"})
    if torch.backends.mps.is_available():
        rows.append({"device": "mps", "what": "Apple's GPU", "memory": "that of the machine"})
    place = read_options("auto", "auto", None, False).device
    return rows, str(place), str(compute_dtype("auto", place)).removeprefix("torch.")


def find_caches() -> Rows:
    """List what is kept on disk by this package and by the libraries that download for it."""
    from huggingface_hub.constants import HF_HUB_CACHE

    own = cache_folder()
    places: dict[str, Path] = {"Hugging Face hub": Path(HF_HUB_CACHE)}
    if own.is_dir():
        places = {f"mmprompt {path.name}": path for path in sorted(own.iterdir()) if path.is_dir()} | places
    rows = []
    for name, folder in places.items():
        size = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() or path.is_symlink())
        said = f"{size / GIB:.1f} GB" if size >= GIB else f"{size / MIB:.1f} MB"
        rows.append({"cache": name, "size": said if folder.is_dir() else "nothing", "where": str(folder)})
    return rows
