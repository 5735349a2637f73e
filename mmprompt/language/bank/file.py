"""A bank of prompts as a folder: the keys, and a folder of each prompt."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mmprompt.core.file import save as save_prompt
from mmprompt.core.header import read_header
from mmprompt.data.strict_yaml import validate
from mmprompt.errors import bad_file, bad_value
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
from mmprompt.language.bank.bank import PromptBank
from mmprompt.language.predictor import load_prompted
from mmprompt.models.decoder.load import load_language_model
from mmprompt.models.decoder.model import FrozenLanguageModel

FORMAT = 1
HEADER, TENSORS, PROMPTS = "bank.json", "bank.safetensors", "prompts"
_NAME = re.compile(r"\w[\w-]*")
_RESTORE = "Restore the folder as it was saved, or save the bank again."


@dataclass(frozen=True)
class BankHeader:
    """What a saved bank says of itself.

    Args:
        format: of the folder.
        names: of the prompts, as their folders are named.
        temperature: see `PromptBank`.
        tensors_sha256: of the file of the keys.
    """

    format: int
    names: tuple[str, ...]
    temperature: float
    tensors_sha256: str


def save_bank(bank: PromptBank, folder: Path | str) -> None:
    """Write a bank to a folder: the keys, and a folder of each prompt as `save` writes it.

    Args:
        bank: what `load_bank` will give back.
        folder: made if missing; the header is written last.
    Raises:
        UserError: a name is no name of a folder, or the folder cannot be written.
    """
    for name in bank.names:
        if not _NAME.fullmatch(name):
            raise bad_value("the name of a prompt", repr(name), "letters, digits, - and _ were expected", "Rename it.")
    folder = make_folder(Path(folder))
    for name, prompted in bank.prompts.items():
        save_prompt(prompted, folder / PROMPTS / name)
    data = tensor_bytes({"keys": bank.keys})
    write_bytes(folder / TENSORS, data)
    header = {"format": FORMAT, "names": list(bank.names), "temperature": float(bank.temperature)}
    write_json(folder / HEADER, header | {"tensors_sha256": sha256_bytes(data)})


def load_bank(folder: Path | str, model: FrozenLanguageModel | str | None = None) -> PromptBank:
    """Load a saved bank.

    Args:
        folder: as `save_bank` wrote it.
        model: the model or its name; by default the one that the prompts name.
    Raises:
        UserError: files are missing, damaged, of another model or of a newer version.
    """
    folder = Path(folder)
    path = folder / HEADER
    if not path.is_file():
        raise bad_file(
            folder, f"holds no {HEADER}, so it is no bank of prompts", "Give a folder that was saved as one."
        )
    content = read_json(path)
    if not isinstance(content, dict):
        raise bad_file(path, "is not a header", _RESTORE)
    if isinstance(content.get("format"), int) and content["format"] > FORMAT:
        problem = f"has format {content['format']}, but up to {FORMAT} is read"
        raise bad_file(path, problem, "Upgrade mmprompt.")
    header = validate(BankHeader, content, path)
    for name in header.names:
        if not _NAME.fullmatch(name):
            raise bad_file(path, f"names a prompt {name!r}, which is no name of a folder", _RESTORE)
    places = [folder / PROMPTS / name for name in header.names]
    if model is None or isinstance(model, str):
        model = load_language_model(model or read_header(places[0], "language")["backbone"]["name"])
    prompts = {place.name: load_prompted(place, model) for place in places}
    path = folder / TENSORS
    if sha256_bytes(read_bytes(path, 2**31)) != header.tensors_sha256:
        raise bad_file(path, "was changed after it was saved (its hash does not match)", _RESTORE)
    keys = read_tensors(path).get("keys")
    if keys is None or keys.dim() != 2 or len(keys) != len(prompts):
        raise bad_file(path, f"does not hold one key for each of {len(prompts)} prompts", _RESTORE)
    return PromptBank(prompts, keys, header.temperature)
